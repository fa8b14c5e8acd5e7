"""TensorBoard, Weights & Biases and MLflow, fed with the lines of metrics.jsonl, which stays the source."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from PIL import Image

from schane_cli.errors import BadRequest, SchaneError, require_package
from schane_cli.recipe import Recipe
from schane_cli.run import RunFolder, write_json

PROJECT = "schane"
_NOT_FIGURES = {"event", "time", "step", "best", "val_n"}


def check_trackers(names: Iterable[str]) -> None:
    """BadRequest, with what to install, where a tracker's package is missing."""
    for name in names:
        require_package(f"train.trackers {name} needs the package {name}", name, name)


def points(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a line of metrics.jsonl by the name under which trackers show them: train/loss, val/accuracy."""
    group = "val" if line["event"] == "epoch" else "train"
    return {
        f"{group}/{key.removeprefix('val_')}": float(value)
        for key, value in line.items()
        if key not in _NOT_FIGURES and isinstance(value, int | float)
    }


def send_results(folder: Path, figures: Mapping[str, float]) -> None:
    """Give a finished run's metrics, hyper-parameters and page to the trackers that its recipe names.

    `figures` are by the names of summary.json; trackers show test_accuracy as test/accuracy. A server gets them once.

    Raises:
        BadRequest: a tracker does not start.
        SchaneError: a tracker does not take them; the run folder still has everything.
    """
    run = RunFolder(folder)
    recipe = run.read_recipe()
    named = {name.replace("_", "/", 1) if name.startswith("test_") else name: value for name, value in figures.items()}
    with closing(Trackers(recipe.train.trackers, folder, recipe)) as trackers:
        try:
            trackers.finish(recipe, named, run)
        except Exception as error:  # of many types: a server that is down, a full disk
            said = " ".join(str(error).split())[:200]
            raise SchaneError(f"the trackers did not take the results: {said or type(error).__name__}") from None


class Tracker(Protocol):
    """What every tracker does."""

    def log(self, figures: Mapping[str, float], step: int, seconds: float) -> None:
        """Figures of a step, at a time in seconds since 1970."""

    def finish(self, recipe: Recipe, figures: Mapping[str, float], run: RunFolder) -> None:
        """The results of the run, and its page."""

    def close(self) -> None:
        """Write out what is buffered."""


class RemoteTracker(Tracker, Protocol):
    """A tracker that keeps a run beyond this process, under an id by which it resumes."""

    id: str


class Trackers:
    """The trackers of a run. What a resumed run logs a second time reaches them only once.

    TensorBoard's file is rewritten from metrics.jsonl. A server keeps what it has, so trackers.json
    records how far each kind of line got; a repeated step has the same figures and is left out.
    """

    def __init__(self, names: Sequence[str], folder: Path, recipe: Recipe) -> None:
        self._file = folder / "trackers.json"
        self._known: dict[str, Any] = json.loads(self._file.read_text()) if self._file.is_file() else {"sent": {}}
        self._local: list[Tracker] = []
        self._remote: list[RemoteTracker] = []
        for name in names:
            try:
                if name == "tensorboard":
                    self._local.append(_TensorBoard(folder))
                else:
                    tracker = _REMOTE[name](folder, recipe, self._known.get(name))
                    self._remote.append(tracker)
                    self._known[name] = tracker.id
            except Exception as error:  # of many types: no login, no server, a store that is refused
                said = " ".join(str(error).split())[:200]
                raise BadRequest(f"train.trackers {name} does not start: {said or type(error).__name__}") from None
        if names:
            write_json(self._file, self._known)

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        event, step, figures = line["event"], int(line["step"]), points(line)
        for tracker in self._local:
            tracker.log(figures, step, line["time"])
        if not self._remote or step <= self._known["sent"].get(event, -1):
            return
        for tracker in self._remote:
            tracker.log(figures, step, line["time"])
        self._known["sent"][event] = step
        write_json(self._file, self._known)

    def finish(self, recipe: Recipe, figures: Mapping[str, float], run: RunFolder) -> None:
        """The results of the run, and its page."""
        for tracker in self._local:
            tracker.finish(recipe, figures, run)
        if self._known["sent"].get("results"):
            return
        for remote in self._remote:
            remote.finish(recipe, figures, run)
        self._known["sent"]["results"] = True
        write_json(self._file, self._known)

    def close(self) -> None:
        """Write out what is buffered."""
        for tracker in (*self._local, *self._remote):
            tracker.close()


class _TensorBoard:
    """An event file in <run>/tensorboard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self._writer = SummaryWriter(folder / "tensorboard")
        metrics = RunFolder(folder).metrics_file
        for text in metrics.read_text().splitlines() if metrics.is_file() else []:
            line = json.loads(text)
            self.log(points(line), int(line["step"]), line["time"])

    def log(self, figures: Mapping[str, float], step: int, seconds: float) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step, walltime=seconds)

    def finish(self, recipe: Recipe, figures: Mapping[str, float], run: RunFolder) -> None:
        settings = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in recipe.flat().items()
        }
        self._writer.add_hparams(settings, dict(figures), run_name=".")  # in this folder, the metrics with them
        for picture in sorted(run.figures.glob("*.png")):
            self._writer.add_image(
                f"report/{picture.stem}", np.asarray(Image.open(picture).convert("RGB")), dataformats="HWC"
            )

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run of project schane, by the environment's own WANDB_ settings (WANDB_MODE=offline keeps it here)."""

    def __init__(self, folder: Path, recipe: Recipe, id: str | None) -> None:
        import wandb

        self.id = id or uuid4().hex
        self._run = wandb.init(
            project=PROJECT,
            id=self.id,
            name=folder.name,
            dir=folder,
            config=recipe.flat(),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, figures: Mapping[str, float], step: int, seconds: float) -> None:
        self._run.log(dict(figures), step=step)

    def finish(self, recipe: Recipe, figures: Mapping[str, float], run: RunFolder) -> None:
        import wandb

        self._run.summary.update(dict(figures))
        artifact = wandb.Artifact(f"report-{self.id}", type="report")
        artifact.add_file(str(run.page))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of experiment schane, in the store that MLFLOW_TRACKING_URI (or MLflow's own default) names."""

    def __init__(self, folder: Path, recipe: Recipe, id: str | None) -> None:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient()
        self.id = id or self._new_run(folder, recipe)

    def _new_run(self, folder: Path, recipe: Recipe) -> str:
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        run_id = str(self._client.create_run(number, run_name=folder.name).info.run_id)
        for key, value in recipe.flat().items():
            self._client.log_param(run_id, key, value)
        return run_id

    def log(self, figures: Mapping[str, float], step: int, seconds: float) -> None:
        metrics = [self._metric(name, value, round(seconds * 1000), step) for name, value in figures.items()]
        self._client.log_batch(self.id, metrics)

    def finish(self, recipe: Recipe, figures: Mapping[str, float], run: RunFolder) -> None:
        for name, value in figures.items():
            self._client.log_metric(self.id, name, value)
        self._client.log_artifact(self.id, str(run.page))

    def close(self) -> None:
        self._client.set_terminated(self.id)


_REMOTE: dict[str, Callable[[Path, Recipe, str | None], RemoteTracker]] = {"wandb": _WandB, "mlflow": _MLflow}
