"""The run folder and its files, and the machine that a run is made on."""

import json
import math
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
from typing import TYPE_CHECKING, Any

from schane_cli import __version__
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.recipe import Recipe, build_recipe, flatten, read_recipe, to_yaml

if TYPE_CHECKING:  # whatever is refused by looking at a run folder alone costs no import of torch
    import torch

RESULTS = Path("results")


class RunFolder:
    """`results/<command>/<name>/`: the one place that knows the names of a run's files, writes them and reads them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.environment_file = path / "environment.json"
        self.metrics_file = path / "metrics.jsonl"
        self.summary_file = path / "summary.json"
        self.page = path / "report.html"
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.pt"
        self.last = self.checkpoints / "last.pt"
        self.figures = path / "figures"
        self.per_class_table = path / "per_class.csv"
        self.confusion_table = path / "confusion.csv"
        self.predictions_table = path / "predictions.csv"
        self.points_table = path / "points.csv"
        self.comparison_table = path / "compare.csv"
        self.compared_runs = path / "runs.json"
        self.thumbnails = path / "thumbnails.webp"
        self.mistakes_table = path / "mistakes.parquet"
        self.episodes_table = path / "episodes.parquet"
        self.calibration_file = path / "calibration.json"
        self.request_file = path / "request.json"
        self.parts = path / "parts"
        self.full_predictions_table = path / "predictions.parquet"
        self.unreadable_table = path / "unreadable.csv"
        self.shown_table = path / "shown.parquet"

    @classmethod
    def of_checkpoint(cls, file: Path) -> "RunFolder | None":
        """The run folder that a checkpoint file lies in; None for a file that lies elsewhere."""
        run = cls(file.parent.parent)
        return run if file.parent == run.checkpoints else None

    @classmethod
    def below(cls, place: Path) -> list["RunFolder"]:
        """The run folders at or anywhere below `place`, by path."""
        return [cls(file.parent) for file in sorted(place.rglob(cls(place).recipe_file.name))]

    @property
    def embedded(self) -> "RunFolder":
        """Where `schane embed RUN --out RUN/embed` puts what it makes of the run's checkpoint."""
        return RunFolder(self.path / "embed")

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.recipe_file.is_file()

    @property
    def finished(self) -> bool:
        """Whether the run came to its summary."""
        return self.summary_file.is_file()

    @property
    def resumable(self) -> bool:
        """Whether the run was stopped after its first checkpoint."""
        return self.last.is_file() and not self.finished

    def embeddings_table(self, name: str | None = None) -> Path:
        """The table of embeddings of the only checkpoint, or of checkpoint `name` of several."""
        return self.path / (f"embeddings-{name}.parquet" if name else "embeddings.parquet")

    def create(self, recipe: Recipe, command: str) -> None:
        """Make the folder and write what is known before the first step.

        Raises:
            BadRequest: a run is there already, or the place cannot be written.
        """
        refuse_existing(self.path)
        try:
            self.figures.mkdir(parents=True)
            self.recipe_file.write_text(f"# schane {__version__}: {command}\n{to_yaml(recipe)}")
            write_json(self.environment_file, environment())
        except OSError as error:
            raise BadRequest(f"run folder {self.path} cannot be written: {error.strerror or error}") from None

    def read_recipe(self) -> Recipe:
        """The resolved recipe that the run was made by; BadRequest where there is none that can be read."""
        return build_recipe(read_recipe(self.recipe_file))

    def read_settings(self) -> dict[str, Any]:
        """The recipe's values by dotted key as they stand in the file, which an older version may have written."""
        return flatten(read_recipe(self.recipe_file))

    def read_summary(self) -> dict[str, Any]:
        """The content of summary.json; BadRequest where there is none that can be read."""
        return read_json(self.summary_file)

    def read_environment(self) -> dict[str, Any]:
        """The content of environment.json; BadRequest where there is none that can be read."""
        return read_json(self.environment_file)

    def read_events(self, event: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind ("step" or "epoch"); none where nothing was logged."""
        if not self.metrics_file.is_file():
            return []
        lines = map(json.loads, self.metrics_file.read_text().splitlines())
        return [line for line in lines if line["event"] == event]

    def log(self, event: str, **values: Any) -> dict[str, Any]:
        """Append one JSON line to metrics.jsonl; returns its content.

        Raises:
            SchaneError: it cannot be written (no space).
        """
        line = {"event": event, "time": round(time.time(), 3), **plain(values)}
        try:
            with self.metrics_file.open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise SchaneError(f"{self.metrics_file} cannot be written: {error.strerror or error}") from None
        return line

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, whole; SchaneError where it cannot be written (no space)."""
        try:
            write_json(self.summary_file, summary)
        except OSError as error:
            raise SchaneError(f"{self.summary_file} cannot be written: {error.strerror or error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; BadRequest for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(content, dict):
        raise BadRequest(f"{path} must hold a mapping, got {type(content).__name__}")
    return content


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
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and torch
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def environment() -> dict[str, Any]:
    """Versions, hardware and source state, for environment.json."""
    import torch

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
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def pick_device(name: str) -> "torch.device":
    """`auto` (cuda, else mps, else cpu) or a device by name; BadRequest where it is not there."""
    import torch

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
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def recipe_label(recipe: Recipe) -> str:
    """`digits-test_vit-schane-s0`, for the name of a run folder."""
    dataset = recipe.data.dataset
    name = Path(dataset).name if ":" in dataset else dataset
    return f"{name}-{recipe.model.backbone}-{recipe.loss.name}-s{recipe.seed}"
