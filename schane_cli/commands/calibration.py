"""What the confidence of a prediction is worth: a temperature fitted on val, and accuracy above any confidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from schane_cli.commands.evaluate import select_images
from schane_cli.commands.robustness import outputs
from schane_cli.distributed import rank
from schane_cli.errors import BadRequest
from schane_cli.images.imageset import ImageSet
from schane_cli.metrics.classification import fit_temperature
from schane_cli.metrics.intervals import Estimate, accuracy_interval
from schane_cli.models.checkpoint import Loaded
from schane_cli.recipe import Recipe
from schane_cli.run import RunFolder, read_json, write_json
from schane_cli.terminal import Terminal


@dataclass(frozen=True)
class Calibrated:
    """A temperature for the logits, and the n val images that it was fitted on.

    `confidence` (n,): the calibrated probability of the predicted class; `right` (n,): whether that was the label.
    `note`: why the confidence is not calibrated, empty where it is; the temperature is then 1.
    """

    temperature: float
    confidence: np.ndarray
    right: np.ndarray
    note: str = ""

    @property
    def n(self) -> int:
        """The held-out images behind it; 0 where there are none."""
        return len(self.right)

    @property
    def fitted(self) -> bool:
        """Whether held-out images determine the temperature; otherwise the confidence is the model's own."""
        return self.n > 0 and not self.note

    def kept(self, least: float) -> tuple[Estimate, Estimate | None]:
        """The share of val with at least this confidence, and the accuracy on it (None where it is empty).

        Raises:
            ValueError: there are no val images.
        """
        if not self.n:
            raise ValueError("no val images to say what a confidence leaves")
        sure = self.confidence >= least
        accuracy = accuracy_interval(int(self.right[sure].sum()), int(sure.sum())) if sure.any() else None
        return accuracy_interval(int(sure.sum()), self.n), accuracy


def calibrate(logits: torch.Tensor, labels: torch.Tensor, judged: str = "val images") -> Calibrated:
    """Temperature scaling (Guo et al. 2017, section 4.2) of held-out logits (n, C) with labels (n,).

    Where every image is right, or the model is no better than chance, no temperature is best and 1 is kept. `judged`
    says in the note what the rows are.
    """
    fit = fit_temperature(logits, labels)
    temperature = 1.0 if fit.at_bound else fit.temperature
    note = f"the {len(labels)} {judged} do not determine a calibration; the confidence is the model's own, uncalibrated"
    confidence, predicted = (logits.double() / temperature).softmax(1).max(1)
    return Calibrated(temperature, confidence.numpy(), (predicted == labels).numpy(), note if fit.at_bound else "")


def calibration_of(loaded: Loaded, recipe: Recipe, device: torch.device, terminal: Terminal) -> Calibrated:
    """The calibration kept in the checkpoint's run folder, or made now from its val images and kept there.

    Without val images (trained on, or not on this machine) the confidence stays the model's own, and `note` says why.
    """
    kept = _read(loaded)
    if kept is not None:
        return kept
    try:
        images = held_out_images(loaded, recipe)
    except BadRequest as error:
        return _uncalibrated(f"the confidence of {loaded.path} is its own, not calibrated: {error}")
    made = calibrate_on(loaded, images, device, terminal)
    keep(loaded, made)
    return made


def held_out_images(loaded: Loaded, recipe: Recipe) -> ImageSet:
    """The val images of a checkpoint's data; BadRequest where they were trained on or are not here."""
    if loaded.recipe.data.train_on != "train":
        raise BadRequest("its val images were trained on")
    return select_images(loaded, recipe.data, "val")[0]


def calibrate_on(loaded: Loaded, images: ImageSet, device: torch.device, terminal: Terminal) -> Calibrated:
    """One pass over held-out images, and the temperature that fits them."""
    with terminal.task("scoring val for the temperature", len(images), "img") as task:
        features = outputs(loaded, images, device=device, task=task)
    return calibrate(features.logits, features.labels)


def keep(loaded: Loaded, made: Calibrated) -> None:
    """Write calibration.json beside the checkpoints of a run folder; where that cannot be, it is computed each time."""
    run = RunFolder.of_checkpoint(loaded.path)
    if run is None or rank() != 0:
        return
    content = {
        "progress": _progress(loaded),
        "temperature": made.temperature,
        "note": made.note,
        "val_n": made.n,
        "val_confidence": made.confidence.round(6),
        "val_right": made.right.astype(int),
    }
    try:
        write_json(run.calibration_file, content)
    except OSError:
        return


def _read(loaded: Loaded) -> Calibrated | None:
    """The kept calibration of this very checkpoint, or None."""
    run = RunFolder.of_checkpoint(loaded.path)
    if run is None or not run.calibration_file.is_file():
        return None
    try:
        content = read_json(run.calibration_file)
        if content["progress"] != _progress(loaded):
            return None
        return Calibrated(
            float(content["temperature"]),
            np.array(content["val_confidence"], dtype=np.float64),
            np.array(content["val_right"], dtype=bool),
            str(content["note"]),
        )
    except (BadRequest, ValueError, KeyError, TypeError):  # damaged: computed again
        return None


def _progress(loaded: Loaded) -> dict[str, Any]:
    """What distinguishes the checkpoints of one run."""
    return {"file": loaded.path.name, "step": loaded.progress.get("step"), "epoch": loaded.progress.get("epoch")}


def _uncalibrated(note: str) -> Calibrated:
    return Calibrated(1.0, np.empty(0), np.empty(0, dtype=bool), note)


def calibration_of_mean(
    models: Sequence[Loaded], recipes: Sequence[Recipe], device: torch.device, terminal: Terminal
) -> tuple[list[float], Calibrated]:
    """Temperatures of several models, and the calibration of the mean of their probabilities on the val they share."""
    each = [calibration_of(one, recipe, device, terminal) for one, recipe in zip(models, recipes, strict=True)]
    temperatures = [one.temperature for one in each]
    if len(models) == 1:
        return temperatures, each[0]
    try:
        images = [held_out_images(one, recipe) for one, recipe in zip(models, recipes, strict=True)]
    except BadRequest as error:
        return temperatures, _uncalibrated(f"the confidence of the mean is not calibrated: {error}")
    if len({one.identity() for one in images}) > 1:
        return temperatures, _uncalibrated("the runs hold out different val images; their mean is not calibrated")
    with terminal.task("scoring val for the mean", len(images[0]) * len(models), "img") as task:
        logits = [outputs(one, images[0], device=device, task=task).logits for one in models]
    mean = mean_probabilities(logits, temperatures)
    return temperatures, calibrate(mean.log(), torch.from_numpy(images[0].labels))


def mean_probabilities(logits: Sequence[torch.Tensor], temperatures: Sequence[float]) -> torch.Tensor:
    """The mean over models of softmax(logits / temperature): float64 (n, C) from tensors (n, C)."""
    parts = [(one.double() / t).softmax(1) for one, t in zip(logits, temperatures, strict=True)]
    return torch.stack(parts).mean(0).clamp_min(1e-300)


def calibrated_probabilities(
    logits: Sequence[torch.Tensor], temperatures: Sequence[float], calibrated: Calibrated
) -> torch.Tensor:
    """What is shown: the model's own calibrated probabilities, or the calibrated mean of several; float64 (n, C)."""
    mean = mean_probabilities(logits, temperatures)
    return mean if len(logits) == 1 else (mean.log() / calibrated.temperature).softmax(1)
