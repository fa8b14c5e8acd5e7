"""The run folder, its files, the machine it ran on, and the process's place among others."""

import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schane_cli import __version__
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.recipe import Recipe, to_yaml

RESULTS = Path("results")


class RunFolder:
    """`results/<command>/<name>/`: recipe.yaml, environment.json, metrics.jsonl, summary.json, checkpoints, figures."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"

    def create(self, recipe: Recipe, command: str) -> None:
        """Make the folder and write what is known before the first step.

        Raises:
            BadRequest: a run is there already, or the place cannot be written.
        """
        refuse_existing(self.path)
        try:
            self.figures.mkdir(parents=True)
            (self.path / "recipe.yaml").write_text(f"# schane {__version__}: {command}\n{to_yaml(recipe)}")
            write_json(self.path / "environment.json", environment())
        except OSError as error:
            raise BadRequest(f"run folder {self.path} cannot be written: {error.strerror or error}") from None

    def log(self, event: str, **values: Any) -> dict[str, Any]:
        """Append one JSON line to metrics.jsonl; returns its content.

        Raises:
            SchaneError: it cannot be written (no space).
        """
        line = {"event": event, "time": round(time.time(), 3), **plain(values)}
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise SchaneError(f"{self.path / 'metrics.jsonl'} cannot be written: {error.strerror or error}") from None
        return line

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, whole; SchaneError where it cannot be written (no space)."""
        try:
            write_json(self.path / "summary.json", summary)
        except OSError as error:
            raise SchaneError(f"{self.path / 'summary.json'} cannot be written: {error.strerror or error}") from None


def refuse_existing(path: Path) -> Path:
    """The path, which must be free; BadRequest where something is there already."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise BadRequest(f"{path} exists already; resume it with --resume {path}, or choose another --out")
    return path


def require_space(path: Path, needed: int) -> None:
    """BadRequest where the disk of `path` (which need not exist yet) has fewer than `needed` bytes left."""
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise BadRequest(
            f"{path} needs about {needed / 2**20:,.0f} MiB for its checkpoints and {place} has {free / 2**20:,.0f} MiB "
            "left; free some or choose another --out"
        )


def new_run_path(command: str, *parts: str) -> Path:
    """results/<command>/<parts joined>-<time>, free of characters that shells or file systems mind."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part).strip("_") for part in parts)
    path = RESULTS / command / f"{name}-{stamp}"
    return path if not path.exists() else path.with_name(f"{path.name}-{os.getpid()}")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """JSON by way of a temporary file, so that a reader never sees half of it. NaN and infinity become null."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(plain(values), indent=2, allow_nan=False) + "\n")
    temporary.replace(path)


def plain(value: Any) -> Any:
    """Numpy and torch scalars, paths and tuples as JSON's own types; a number that is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def environment() -> dict[str, Any]:
    """Versions, hardware and source state, for environment.json."""
    packages = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pandas")
    return {
        "schane": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "git_commit": _git_commit(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        if match:
            return match.group(1)
    return platform.processor()


def _git_commit() -> str | None:
    """Commit of the checkout this package runs from, or None where it runs from a wheel."""
    here = Path(__file__).parent.parent
    if not (here / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def pick_device(name: str) -> torch.device:
    """`auto` (cuda, else mps, else cpu) or a device by name; BadRequest where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadRequest(f"unknown device {name!r}; allowed: auto, cpu, cuda, cuda:N, mps") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise BadRequest(f"device {name!r} is not on this machine; torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (initial weights, dropout, drop path)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def recipe_label(recipe: Recipe) -> str:
    """`digits-test_vit-schane-s0`, for the name of a run folder."""
    dataset = recipe.data.dataset
    name = Path(dataset).name if ":" in dataset else dataset
    return f"{name}-{recipe.model.backbone}-{recipe.loss.name}-s{recipe.seed}"
