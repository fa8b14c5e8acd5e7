"""Shared fixtures: the folder of real test data, and one thread so that two test processes do not fight."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: OpenMP's waiting threads starve a second test process

import pytest

from schane_cli.cli import main


def run_cli(*arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def installed_packages_of(code: str) -> set[str]:
    """The top-level names of installed packages that a fresh process imports for these lines, beyond those of none."""
    after = "; import json, sys; print(json.dumps([name.split('.')[0] for name in sys.modules]))"

    def imported(lines: str) -> set[str]:
        command = [sys.executable, "-c", lines + after]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return set(json.loads(done.stdout.splitlines()[-1]))

    known = {name.split(".")[0] for name in packages_distributions()}
    return (imported(code) - imported("pass")) & known


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: a long file at the end would leave every process but one without work."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(name="blank_pictures")
def _blank_pictures() -> Iterator[None]:
    from tests.jobs import blank_pictures  # which imports torch: the process that hands out the tests needs none

    with blank_pictures():
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """`SCHANE_TEST_DATA` (default ../shared/data): real CIFAR-100 and pretrained weights; skips where absent."""
    default = Path(__file__).parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("SCHANE_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}; set SCHANE_TEST_DATA")
    return folder
