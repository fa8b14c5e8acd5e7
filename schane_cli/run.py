"""The run folder and its files, and the machine that a run is made on."""

import json
import math
import os
import platform
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from schane_cli import __version__
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.recipe import Recipe, differences, flatten, read_recipe, saved_recipe, to_yaml

try:
    import fcntl
except ImportError:  # Windows: a second process on a folder is not noticed
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:  # whatever is refused by looking at a run folder alone costs no import of torch
    import torch

RESULTS = Path("results")
_LONGEST_LINE = 100_000  # characters
State = Literal["none", "started", "stopped", "finished", "reported"]


class RunFolder:
    """`results/<command>/<name>/`: the one place that knows the names of a run's files, writes them and reads them.

    Its state follows from its files. `started`: nothing in it is worth keeping yet, the same command starts it again.
    `stopped`: last.pt (of predict: request.json and the parts) holds all that a resumed run needs. `finished`:
    summary.json is there, the page is not. `reported`: everything is there. One process at a time holds the lock of a
    folder that is being written.
    """

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
        self.review_table = path / "review.csv"
        self.duplicates_table = path / "duplicates.csv"
        self.relabel_table = path / "relabel.csv"
        self.exclude_table = path / "exclude.csv"
        self.trackers_file = path / "trackers.json"
        self.lock_file = path / ".lock"
        self._lock: weakref.finalize | None = None  # closes the lock file, here or when the object is deleted

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
    def state(self) -> State:
        """How far the run got; "none" where no run was started."""
        if not self.recipe_file.is_file():
            return "none"
        if self.summary_file.is_file():
            return "reported" if self.page.is_file() else "finished"
        return "stopped" if self.last.is_file() or self.request_file.is_file() else "started"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.state != "none"

    @property
    def command(self) -> str:
        """The command in the first line of recipe.yaml, such as `finetune --seeds 0,1`; empty where it has none."""
        with self.recipe_file.open(encoding="utf-8", errors="replace") as file:
            first = file.readline(_LONGEST_LINE)
        return first.partition(": ")[2].strip() if first.startswith("#") else ""

    @property
    def finished(self) -> bool:
        """Whether the run got as far as its summary."""
        return self.state in {"finished", "reported"}

    @property
    def resumable(self) -> bool:
        """Whether the run was stopped after its first checkpoint."""
        return self.state == "stopped"

    @property
    def way_on(self) -> str:
        """What to do about a run that is not finished: `schane finetune --resume RUN goes on`."""
        if self.resumable or " --seeds " in f" {self.command} ":
            return f"schane {self.command or 'finetune'} --resume {self.path} goes on"
        return "run its command again"

    def epoch_checkpoint(self, epoch: int) -> Path:
        """Where the weights after an epoch are kept (train.keep_epochs)."""
        return self.checkpoints / f"epoch-{epoch:05d}.pt"

    @property
    def kept_epochs(self) -> list[Path]:
        """The checkpoints of single epochs that the run kept, by epoch."""
        return sorted(self.checkpoints.glob("epoch-*.pt"))

    def embeddings_table(self, name: str | None = None) -> Path:
        """The table of embeddings of the only checkpoint, or of checkpoint `name` of several."""
        return self.path / (f"embeddings-{name}.parquet" if name else "embeddings.parquet")

    def create(self, recipe: Recipe, command: str, *, resumable: bool = False) -> None:
        """Make the folder, lock it, and write what is known before the first step.

        A run of the same command and recipe that was stopped before its first checkpoint starts again in its folder.
        `resumable` says that the command has a --resume to recommend.

        Raises:
            BadRequest: something else is there, another process is writing it, or it cannot be written.
        """
        self._refuse_others(recipe, command, resumable)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock()
            self._refuse_others(recipe, command, resumable)  # another process may have been faster
            self._forget()
            self.figures.mkdir(exist_ok=True)
            write_text(self.recipe_file, f"# schane {__version__}: {one_line(command)}\n{to_yaml(recipe)}")
            write_json(self.environment_file, environment())
        except BadRequest:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise BadRequest(f"run folder {self.path} cannot be written: {error.strerror or error}") from None

    def _refuse_others(self, recipe: Recipe, command: str, resumable: bool) -> None:
        """BadRequest where the folder holds anything but the beginning of this same run."""
        if self.state == "started":
            changed = differences(self.read_recipe(), recipe, label="there")
            if not changed and self.command == one_line(command):
                return
            if changed:
                raise BadRequest(
                    f"{self.path} exists already, started with another recipe ({'; '.join(changed[:3])}); choose "
                    "another --out, or remove it"
                )
        if self.resumable and resumable:
            raise BadRequest(
                f"{self.path} exists already; resume it with --resume {self.path}, or choose another --out"
            )
        if self.state == "finished":
            raise BadRequest(
                f"{self.path} exists already and only its page is missing: schane report {self.path} draws it"
            )
        refuse_existing(self.path)

    def _forget(self) -> None:
        """Remove what a run left that was stopped before its first checkpoint."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        for file in (self.metrics_file, self.trackers_file):
            file.unlink(missing_ok=True)

    def lock(self) -> None:
        """Keep other processes from writing here until `close`, or until this process ends however it ends.

        What dead processes left half-written is removed.

        Raises:
            BadRequest: another process holds the lock.
            OSError: the folder cannot be written.
        """
        if fcntl is None or self._lock is not None:
            return
        while True:
            lock = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                holder = os.read(lock, 500).decode(errors="replace") or "another process"
                os.close(lock)
                raise BadRequest(
                    f"{self.path} is being written by {holder}; wait for it, or choose another --out"
                ) from None
            except OSError:  # a file system without locks
                os.close(lock)
                return
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), self.lock_file.stat()):
                    break
            os.close(lock)  # its last holder has just removed it
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._lock = weakref.finalize(self, os.close, lock)
        for folder in (self.path, self.checkpoints, self.parts):
            for left in folder.glob(".*.tmp*"):
                left.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock; nothing to do where this process does not hold it."""
        if self._lock is not None:
            self.lock_file.unlink(missing_ok=True)
            self._lock()
            self._lock = None

    def tidy(self) -> None:
        """Remove the lock and the half-written files of a process that died after its summary.

        Raises:
            BadRequest: a living process is writing here.
        """
        with suppress(OSError):  # a folder that cannot be written holds none
            self.lock()
            self.close()

    def cut_log(self, size: int, step: int) -> str | None:
        """Cut metrics.jsonl to the `size` bytes it had at the checkpoint of `step`; what was logged later comes again.

        Returns a sentence where the log is shorter than that (edited, or lost with the machine), whose last line is
        then cut if it is not complete; None where everything is there.
        """
        there = self.metrics_file.stat().st_size if self.metrics_file.is_file() else 0
        if there >= size:
            if there:
                os.truncate(self.metrics_file, size)
            return None
        if there:
            os.truncate(self.metrics_file, self.metrics_file.read_bytes().rfind(b"\n") + 1)
        return (
            f"{self.metrics_file} has lost {size - there:,} of the {size:,} bytes that it had at step {step}: the "
            "curves have a gap; weights and figures are not affected"
        )

    def create_comparison(self) -> None:
        """Make and lock the folder of a comparison, which has no recipe; one that a dead process left is taken over.

        The page is the last of its files, and all are made again within seconds.

        Raises:
            BadRequest: something else is there, or a whole comparison, or another process is writing it.
        """
        table = self.comparison_table
        own = [table, table.with_suffix(".md"), table.with_suffix(".tex"), self.compared_runs]
        own += [self.summary_file] if table.is_file() else []
        refuse_existing(self.path, free=[file.name for file in own])
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock()
            refuse_existing(self.path, free=[file.name for file in own])  # another process may have been faster
        except OSError as error:
            raise BadRequest(f"{self.path} cannot be written: {error.strerror or error}") from None

    def read_recipe(self) -> Recipe:
        """The resolved recipe that the run was made by; BadRequest where there is none that can be read."""
        return saved_recipe(read_recipe(self.recipe_file))

    def read_settings(self) -> dict[str, Any]:
        """The recipe's values by dotted key as they stand in the file, which an older version may have written."""
        return flatten(read_recipe(self.recipe_file))

    def require_summary(self) -> None:
        """BadRequest where no run was finished here."""
        if not self.summary_file.is_file():
            raise BadRequest(f"no finished run at {self.path}: it has no {self.summary_file.name}")

    def read_summary(self) -> dict[str, Any]:
        """The content of summary.json; BadRequest where there is none that can be read."""
        return read_json(self.summary_file)

    def read_environment(self) -> dict[str, Any]:
        """The content of environment.json; BadRequest where there is none that can be read."""
        return read_json(self.environment_file)

    def read_events(self, event: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind ("step" or "epoch"); half a line (a full disk) is left out."""
        lines = []
        for text in self.metrics_file.read_text(errors="replace").splitlines() if self.metrics_file.is_file() else []:
            with suppress(ValueError):
                lines.append(json.loads(text))
        return [line for line in lines if isinstance(line, dict) and line.get("event") == event]

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

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within it a file of the run folder that cannot be written is a SchaneError (no space, removed, read-only)."""
        try:
            yield
        except OSError as error:
            place = error.filename or self.path
            raise SchaneError(
                f"{place} cannot be written: {error.strerror or error}; free some space or choose another --out, and "
                "run the command again"
            ) from None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json and release the lock; SchaneError where it cannot be written (no space)."""
        try:
            write_json(self.summary_file, summary)
            self.close()
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


def refuse_existing(path: Path, free: Collection[str] = ()) -> Path:
    """The path, which must hold nothing but files named in `free`; BadRequest where something is there already."""
    if path.is_dir():
        free = {
            *free,
            RunFolder(path).lock_file.name,
            RunFolder(path).figures.name,
        }  # of a process that died at its start
        taken = any(entry.name not in free and ".tmp" not in entry.name for entry in path.iterdir())
    else:
        taken = path.exists() or path.is_symlink()
    if taken:
        raise BadRequest(f"{path} exists already; choose another --out")
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
    """results/<command>/<parts joined>-<time>, free of characters that shells or file systems treat specially."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part).strip("_") for part in parts)
    path = RESULTS / command / f"{name}-{stamp}"
    return path if not path.exists() else path.with_name(f"{path.name}-{os.getpid()}")


def temporary(path: Path) -> Path:
    """Where a file is written before it takes its name: beside it, named after this machine and process."""
    return path.with_name(f".{path.name}.tmp-{socket.gethostname()}-{os.getpid()}")


def remove_dead(folder: Path) -> None:
    """Remove the temporary files and folders of processes of this machine that have ended."""
    for left in folder.glob(f".*.tmp-{socket.gethostname()}-*"):
        number = left.name.rpartition("-")[2]
        if not number.isdecimal() or _is_alive(int(number)):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Text by way of a temporary file, so that a reader never sees half of it, and a full disk keeps the old one."""
    unfinished = temporary(path)
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """JSON, written completely or not at all. NaN and infinity become null."""
    write_text(path, json.dumps(plain(values), indent=2, allow_nan=False) + "\n")


def one_line(text: str) -> str:
    """Text from outside on one line, for the comment that a file begins with."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def escape_markdown(text: str) -> str:
    """Text that stays text in Markdown, in a cell of a table too: on one line, no column, no HTML, no link."""
    return re.sub(r"[\\|<>`\[\]]", lambda mark: "\\" + mark.group(), one_line(text))


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
    """`auto` (cuda, else mps, else cpu) or a device by name; BadRequest where this machine has no such device."""
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
