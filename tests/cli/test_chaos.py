"""The short form of benchmarks/chaos.py: every command killed, starved, locked out and crowded, a case of each."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICK = ["export", "compare"]
LONG = ["finetune --seeds", "fewshot (base training)", "fewshot CHECKPOINT", "eval", "predict", "embed", "review",
        "average", "study"]  # fmt: skip


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
def test_what_is_killed_starved_or_crowded_ends_as_if_nothing_had_happened(commands: list[str]) -> None:
    chaos = [
        sys.executable,
        "benchmarks/chaos.py",
        "--cases",
        "1",
        "--minutes",
        "0",
        "--no-tmpfs",
        "--commands",
        *commands,
    ]
    ran = subprocess.run(chaos, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("killed at each write") >= len(commands)
