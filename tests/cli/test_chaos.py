"""The short form of benchmarks/chaos.py: every command killed, starved, locked out and crowded, a case of each."""

import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.processes import start, words_into

ROOT = Path(__file__).parents[2]
QUICK = ["export", "compare"]
LONG = ["finetune --seeds", "fewshot (base training)", "fewshot CHECKPOINT", "eval", "predict", "embed", "review",
        "average", "study"]  # fmt: skip


def _chaos(said: Path, *commands: str) -> None:
    os.chdir(ROOT)
    sys.argv = ["chaos.py", "--cases", "1", "--minutes", "0", "--no-tmpfs", "--commands", *commands]
    with words_into(said):
        runpy.run_path("benchmarks/chaos.py", run_name="__main__")


@pytest.mark.skipif(sys.platform != "linux", reason="forks processes and kills them")
@pytest.mark.parametrize(
    "commands",
    [
        QUICK,
        pytest.param(["finetune"], marks=pytest.mark.slow),
        *(pytest.param([it], marks=pytest.mark.long) for it in LONG),
    ],
    ids=lambda names: names[0],
)
def test_what_is_killed_starved_or_crowded_ends_as_if_nothing_had_happened(commands: list[str], tmp_path: Path) -> None:
    chaos = start(_chaos, tmp_path / "said", *commands)
    chaos.join()
    said = (tmp_path / "said").read_text()
    assert chaos.exitcode == 0, said
    assert said.count("killed at each write") >= len(commands)
