"""`schane fewshot --support DIR --query DIR`: classify one's own photos by a few labelled ones of each class."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schane_cli.commands.calibration import Calibrated, calibrate
from schane_cli.commands.evaluate import flat
from schane_cli.commands.predict import Predictor, images_to_name, name_images, stream
from schane_cli.datasets.folders import class_folder_set
from schane_cli.distributed import on_first, rank
from schane_cli.errors import BadRequest
from schane_cli.features.stream import StreamedBatch
from schane_cli.fewshot.own_photos import Linear, judge
from schane_cli.images.imageset import Files, ImageSet
from schane_cli.metrics.intervals import Estimate, accuracy_interval
from schane_cli.metrics.registry import METRICS, PLAIN_SHARE
from schane_cli.models.checkpoint import Loaded, load_checkpoint
from schane_cli.models.model import build_model, input_spec
from schane_cli.preflight import PredictOptions
from schane_cli.recipe import Recipe, build_recipe
from schane_cli.run import RunFolder, new_run_path, pick_device, plain
from schane_cli.terminal import Terminal


@dataclass
class OwnClasses(Predictor):
    """A frozen backbone with a classifier for the classes of the support."""

    names: tuple[str, ...] = ()
    classifier: Linear | None = None
    support_sha256: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class folders of the support."""
        return self.names

    def identity(self) -> list[str]:
        """What must be the same when a stopped run is resumed: backbone and support."""
        return [f"{self.models[0].path} {self.recipes[0].model.backbone}", self.support_sha256]

    def probabilities(self, batch: StreamedBatch) -> torch.Tensor:
        """float64 (n, C), by the temperature that fits the photos of the support left out."""
        assert self.classifier is not None
        assert self.calibrated is not None
        if not batch.indices:
            return torch.empty(0, len(self.names), dtype=torch.float64)
        return (self.classifier(batch.outputs[0].embedding) / self.calibrated.temperature).softmax(1)


def own_backbone(checkpoint: Path | None, recipe: Recipe) -> Loaded:
    """The features of a run, or of the recipe's pretrained backbone; its classifier is not used."""
    if checkpoint is not None:
        return load_checkpoint(checkpoint)
    model = build_model(recipe.model, 2, recipe.data.image_size)
    spec = input_spec(model, recipe.data.image_size)
    return Loaded(Path(recipe.model.weights), model.eval(), recipe, (), spec, {"epoch": 0.0})


def fewshot_folder(
    support: Path,
    queries: Sequence[str],
    *,
    checkpoint: Path | None,
    recipe: Recipe,
    options: PredictOptions,
    out: Path | None,
    terminal: Terminal,
) -> dict[str, Any]:
    """Estimate how well the support's photos classify, and classify the query by them; returns summary.json's content.

    Raises:
        BadRequest: fewer than two class folders, a query image among the support, no images, no such checkpoint.
    """
    photos = class_folder_set(f"folder:{support}", "support", support.expanduser())
    options.check(len(photos.class_names))
    images, notes = images_to_name(queries, {}) if queries else (None, [])
    if images is not None:
        refuse_support_among(images, photos)
    loaded = own_backbone(checkpoint, recipe)
    recipe = (
        recipe if checkpoint is None else build_recipe(loaded.recipe.model_dump(mode="json"), {"device": recipe.device})
    )
    predictor = OwnClasses([loaded], [recipe], pick_device(recipe.device), names=photos.class_names)
    expected = learn(predictor, photos, terminal)
    for line in expected_sentences(expected):
        terminal.say(line)
    run = RunFolder(on_first(lambda: out or new_run_path("fewshot", support.resolve().name, "own")))
    summary = {
        "command": "fewshot",
        "support": str(support),
        "sources": list(queries),
        "checkpoints": [str(checkpoint)] if checkpoint else [],
        "backbone": recipe.model.backbone,
        "weights": recipe.model.weights,
        "classes_known": list(photos.class_names),
        **expected,
    }
    if images is None:
        if rank() == 0:
            run.create(recipe, "fewshot --support")
            run.finish(summary | {"run": str(run.path)})
        return plain(summary | {"run": str(run.path)})
    request = {"sources": list(queries), "options": asdict(options)}
    return name_images(predictor, images, notes, options, run, request, summary, resuming=False, terminal=terminal)


def refuse_support_among(queries: ImageSet, support: ImageSet) -> None:
    """BadRequest where a query image is a photo of the support, by place or by content."""
    if not isinstance(queries.images, Files) or not isinstance(support.images, Files):
        return
    places = {path.resolve() for path in support.images}
    by_size: dict[int, list[Path]] = {}
    for path in support.images:
        by_size.setdefault(path.stat().st_size, []).append(path)
    for path in queries.images:
        same = path.resolve() in places or (
            path.is_file() and any(_same(path, other) for other in by_size.get(path.stat().st_size, []))
        )
        if same:
            raise BadRequest(f"query image {path} is among the support, so its class is known; take it out of --query")


def _same(first: Path, second: Path) -> bool:
    return first.read_bytes() == second.read_bytes()


def learn(predictor: OwnClasses, photos: ImageSet, terminal: Terminal) -> dict[str, Any]:
    """Fit the classifier of the support in place; returns what to expect of it."""
    parts, broken = [], []
    with terminal.task("embedding the support", len(photos), "img") as task:
        for batch in stream(predictor, photos, np.arange(len(photos))):
            broken += batch.unreadable
            parts += [out.embedding for out in batch.outputs]
            task.advance(len(batch.indices) + len(batch.unreadable))
    if broken:
        raise BadRequest(f"{len(broken)} photos of the support cannot be read; {broken[0][1]}")
    labels = torch.from_numpy(photos.labels)
    judged = judge(torch.cat(parts), labels, len(photos.class_names))
    predictor.classifier = judged.classifier
    predictor.support_sha256 = hashlib.sha256("\0".join(photos.ids).encode()).hexdigest()
    countable = ~np.isnan(judged.right)
    predictor.calibrated = _calibrated(judged.held_out_logits[countable], labels[countable])
    estimate: dict[str, Estimate | None] = {}
    if countable.any():
        right = judged.right[countable]
        estimate["support_accuracy"] = accuracy_interval(int(right.sum()), len(right))
    return {
        "classifier": judged.classifier.name,
        "support_n": len(labels),
        "support_counted": int(countable.sum()),
        "support_counts": np.bincount(photos.labels, minlength=len(photos.class_names)),
        **flat(estimate),
    }


def _calibrated(logits: torch.Tensor, labels: torch.Tensor) -> Calibrated:
    if not len(labels):
        note = "the confidence is not calibrated: with one photo of each class none can be left out"
        return Calibrated(0.1, np.empty(0), np.empty(0, dtype=bool), note)
    return calibrate(logits.clamp_min(-1e3), labels, "support photos")


def expected_accuracy(expected: Mapping[str, Any]) -> str:
    """The leave-one-out accuracy of the support beside chance, or why there is none, as one sentence."""
    chance = f"chance {PLAIN_SHARE.text(1 / len(expected['support_counts']))}"
    if "support_accuracy" not in expected:
        return f"unknown, since one photo of each class leaves none to test on ({chance}); by {expected['classifier']}"
    metric, accuracy = METRICS["support_accuracy"], expected["support_accuracy"]
    return (
        f"{metric.label} {metric.text(accuracy, expected['support_accuracy_ci95'])}, "
        f"n = {expected['support_counted']}: about {round(10 * accuracy)} of 10 ({chance}); "
        f"by {expected['classifier']}"
    )


def expected_sentences(expected: Mapping[str, Any]) -> list[str]:
    """What to expect, in words."""
    lines = [
        f"support    {expected['support_n']} photos of {len(expected['support_counts'])} classes",
        f"expect     {expected_accuracy(expected)}",
    ]
    alone = expected["support_n"] - expected["support_counted"]
    if alone and "support_accuracy" in expected:
        which = "1 photo, alone in its class," if alone == 1 else f"{alone} photos, alone in their classes,"
        lines.append(f"           {which} could not be tested")
    return lines
