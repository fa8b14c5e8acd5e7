"""Time to help, to import and to the first training step, against `python -c "import timm"` in the same run.

    python benchmarks/startup.py [--rounds 7] [--markdown results/benchmarks/startup.md]

Every figure is that of a fresh process with files in the page cache; the commands take turns, round by round.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np

PEER = 'python -c "import timm"'
FIRST_STEP = "schane finetune, to its first step"
COMMANDS = {
    PEER: ["-c", "import timm"],
    "schane --help": ["-m", "schane_cli", "--help"],
    "schane finetune --help": ["-m", "schane_cli", "finetune", "--help"],
    "schane recipes ls": ["-m", "schane_cli", "recipes", "ls"],
    'python -c "import schane_cli.cli"': ["-c", "import schane_cli.cli"],
    'python -c "import schane_cli.training.trainer"': ["-c", "import schane_cli.training.trainer"],
}
FINETUNE = ["-m", "schane_cli", "finetune", "--epochs", "1", "--device", "cpu", "--set", "data.train_per_class=10"]


def seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - started


def seconds_to_first_step() -> float:
    """From the start of the process to the first line of metrics.jsonl, written after the first step."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        started = time.time()
        batch = ["--batch-size", "25", "--out", str(out)]
        subprocess.run([sys.executable, *FINETUNE, *batch], check=True, capture_output=True)
        return json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["time"] - started


def measure(rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each command, one a round; the first round warms the page cache and is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in (*COMMANDS, FIRST_STEP)}
    for round_number in range(rounds + 1):
        taken = {name: seconds_of(command) for name, command in COMMANDS.items()}
        taken[FIRST_STEP] = seconds_to_first_step()
        for name, value in taken.items():
            if round_number:
                seconds[name].append(value)
    return {name: np.array(values) for name, values in seconds.items()}


def report(seconds: dict[str, np.ndarray], rounds: int, load: float) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "timm", "typer", "pydantic"))
    rows = []
    for name, values in seconds.items():
        ratio = values / seconds[PEER]
        rows.append(
            f"| `{name}` | {np.median(values):.2f} | {values.min():.2f} | {np.median(ratio):.2f} "
            f"({ratio.min():.2f} to {ratio.max():.2f}) |"
        )
    return "\n".join(
        [
            "# Startup",
            "",
            f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}; {date.today()}; "
            f"`python benchmarks/startup.py --rounds {rounds}`. Load average {load:.1f} before, "
            f"{os.getloadavg()[0]:.1f} after (other work included). Fresh processes in turn; "
            "ratio: median (lowest to highest) over rounds.",
            "",
            f"| command | median s | least s | over `{PEER}` |",
            "| --- | ---: | ---: | ---: |",
            *rows,
            "",
            "The first step is of `test_resnet` on digits: imports, data, model, run folder and one batch of 25.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", type=Path, help="write the table here too")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    text = report(measure(arguments.rounds), arguments.rounds, load)
    print(text)
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
