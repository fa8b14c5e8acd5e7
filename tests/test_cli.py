"""The entry point: what it sets before a command runs."""

import ctypes
import subprocess
import sys

import pytest


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone has what is set here"
)
def test_memory_that_was_freed_is_used_again() -> None:
    """Twenty blocks of 64 MiB one after another touch the pages of one, where glibc alone maps twenty."""
    count = (
        "import resource; from schane_cli.cli import keep_freed_memory; {call}\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): bytearray(2**26 - 64).replace(b'1', b'2')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    with_it, without = (
        int(subprocess.check_output([sys.executable, "-c", count.format(call=call)]))
        for call in ("keep_freed_memory()", "")
    )
    assert with_it < without / 4
