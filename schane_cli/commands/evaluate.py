"""`schane eval`: top-1, top-5, per-class accuracy and calibration of a checkpoint, each with its n and interval."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torchvision.io import encode_png

from schane_cli.commands.robustness import Foreign, corruption_figures, load_foreign, ood_figures, outputs
from schane_cli.datasets.load import load_splits
from schane_cli.distributed import on_first
from schane_cli.errors import BadRequest, refusing
from schane_cli.features.extract import Features
from schane_cli.images.identity import image_changes, record
from schane_cli.images.imageset import ImageSet
from schane_cli.images.splits import Splits
from schane_cli.metrics import classification as metrics
from schane_cli.metrics.classification import Calibration, ClassMeans
from schane_cli.metrics.intervals import Estimate
from schane_cli.models.checkpoint import Loaded, load_checkpoint
from schane_cli.preflight import SPLITS, require_choice
from schane_cli.recipe import DataRecipe, Recipe
from schane_cli.run import RunFolder, new_run_path, pick_device, plain, recipe_label
from schane_cli.spreadsheets import write_csv
from schane_cli.terminal import Terminal

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Scores:
    """Classification metrics of one image set, and the seconds of its pass through loader and model."""

    top1: Estimate
    top5: Estimate | None  # None with five classes or fewer, where it means nothing
    per_class: list[Estimate | None]
    class_means: ClassMeans
    calibration: Calibration
    features: Features
    seconds: float

    def summary(self, split: str) -> dict[str, Any]:
        """Flat, JSON-ready metrics under names that begin with the split's."""
        named = {
            f"{split}_accuracy": self.top1,
            f"{split}_top5_accuracy": self.top5,
            f"{split}_balanced_accuracy": self.class_means.balanced_accuracy,
            f"{split}_macro_f1": self.class_means.macro_f1,
        }
        return {f"{split}_n": self.top1.n, **flat(named), **calibration_figures(split, self.calibration)}


def flat(named: Mapping[str, Estimate | None]) -> dict[str, Any]:
    """Each metric and its interval under `NAME` and `NAME_ci95`; a metric without a value is left out."""
    entries: dict[str, Any] = {}
    for name, estimate in named.items():
        if estimate is not None:
            entries |= {name: estimate.value, f"{name}_ci95": list(estimate.ci95) if estimate.ci95 else None}
    return entries


def calibration_figures(split: str, calibration: Calibration, suffix: str = "") -> dict[str, Any]:
    """ECE, NLL and Brier score with their intervals."""
    named = {
        "ece": calibration.ece,
        "ece_debiased": calibration.ece_debiased,
        "nll": calibration.nll,
        "brier": calibration.brier,
    }
    calibrated = {f"{split}_ece_calibrated{suffix}": calibration.ece_calibrated}
    return flat({f"{split}_{name}{suffix}": estimate for name, estimate in named.items()}) | calibrated


def score(loaded: Loaded, images: ImageSet, *, device: torch.device, terminal: Terminal) -> Scores:
    """One pass of the model over the images, and all metrics from its logits."""
    started = time.perf_counter()
    with terminal.task(f"scoring {images.split}", len(images), "img") as task:
        features = outputs(loaded, images, device=device, task=task)
    seconds = time.perf_counter() - started
    logits, labels = features.logits, features.labels
    with refusing():
        return Scores(
            top1=metrics.topk_accuracy(logits, labels),
            top5=metrics.topk_accuracy(logits, labels, k=5) if logits.shape[1] > 5 else None,
            per_class=metrics.per_class_accuracy(logits, labels),
            class_means=metrics.class_means(logits, labels),
            calibration=metrics.calibration(logits, labels, seed=0),
            features=features,
            seconds=seconds,
        )


class Selection(NamedTuple):
    """The images of one split, notes on how it was made, and how many of the dataset's images cannot be read."""

    images: ImageSet
    notes: list[str]
    left_out: int


def select_images(loaded: Loaded, data: DataRecipe, split: str) -> Selection:
    """The split of the data, in the checkpoint's class order, and notes on how it was made.

    If the dataset has further classes, only images of the checkpoint's classes count, and a note says so.

    Raises:
        BadRequest: a class of the checkpoint is missing from the dataset, or the split's name is unknown.
    """
    require_choice("split", split, SPLITS)
    splits = load_splits(data)
    splits.notes.extend(_moved_note(loaded, splits, data))
    images: ImageSet = getattr(splits, split)
    missing = [name for name in loaded.class_names if name not in images.class_names]
    if missing:
        raise BadRequest(
            f"the checkpoint's class {missing[0]!r} is not in {data.dataset} ({len(missing)} of "
            f"{len(loaded.class_names)} are missing); evaluate it on the dataset that it was trained on"
        )
    known = images.of_classes(loaded.class_names)
    if known is images:
        return Selection(images, splits.notes, splits.left_out)
    note = f"only the images of the checkpoint's {len(known.class_names)} classes, of {len(images.class_names)}"
    return Selection(known, [*splits.notes, note], splits.left_out)


def _moved_note(loaded: Loaded, splits: Splits, data: DataRecipe) -> list[str]:
    """A warning where the images that the model was trained on are no longer what this dataset's train split holds."""
    before = {split: known for split, known in loaded.images.items() if split == "train"}
    same_source = data.model_copy(update={"root": loaded.recipe.data.root}) == loaded.recipe.data
    changes = image_changes(before, record({"train": splits.train})) if same_source else []
    if not changes:
        return []
    return [
        f"WARNING: the data has changed since training: {'; '.join(changes)}. Splits made by schane move when images "
        f"are added or removed, so this split may hold images that the model was trained on"
    ]


@dataclass(frozen=True)
class Extras:
    """What `schane eval` does beyond its metrics: corruption robustness, and out-of-distribution sets."""

    corruptions: bool = False
    ood: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One dataset to evaluate on, read and checked."""

    recipe: Recipe
    images: ImageSet
    held_out: ImageSet | None  # val, for the temperature; None where val is reported or was trained on
    foreign: dict[str, Foreign]
    notes: list[str]
    left_out: int


def evaluate(
    checkpoint: Path,
    *,
    datasets: Sequence[str] = (),
    overrides: Mapping[str, Any],
    split: str,
    extras: Extras = Extras(),
    out: Path | None,
    terminal: Terminal,
) -> dict[str, Any]:
    """Score a checkpoint or run folder on a split of one or several datasets; returns the content of summary.json.

    `overrides` are dotted recipe keys on top of the checkpoint's own recipe (data.root, device). Several datasets get
    a folder each below the run folder.

    Raises:
        BadRequest: no such checkpoint, device, split or dataset, or classes that do not match; before any work.
    """
    loaded = load_checkpoint(checkpoint)
    names = list(datasets) or [loaded.recipe.data.dataset]
    if len(set(names)) < len(names):
        raise BadRequest(f"--dataset names a dataset twice: {', '.join(names)}")
    plans = [make_plan(loaded, dataset_recipe(loaded, name, overrides), split, extras) for name in names]
    device = pick_device(plans[0].recipe.device)
    run = RunFolder(on_first(lambda: out or new_run_path("eval", recipe_label(plans[0].recipe), split)))
    on_first(lambda: run.create(plans[0].recipe, f"eval {checkpoint}"))
    terminal.say(f"checkpoint {loaded.path} (epoch {loaded.progress['epoch']:g}, {loaded.recipe.model.backbone})")
    if len(plans) == 1:
        return evaluate_one(loaded, plans[0], split, extras, run, device, terminal)
    summaries = []
    for plan in plans:
        part = RunFolder(run.path / recipe_label(plan.recipe).rsplit(f"-{plan.recipe.model.backbone}", 1)[0])
        on_first(partial(part.create, plan.recipe, f"eval {checkpoint}"))
        summaries.append(evaluate_one(loaded, plan, split, extras, part, device, terminal))
    shared = {"command": "eval", "checkpoint": str(loaded.path), "split": split}
    summary = {**shared, "datasets": summaries, "run": str(run.path)}
    on_first(lambda: run.finish(summary))
    return summary


def dataset_recipe(loaded: Loaded, dataset: str, overrides: Mapping[str, Any]) -> Recipe:
    """The checkpoint's recipe for a dataset; data.train_per_class applies only to its own training images."""
    values = {**overrides, "data.dataset": dataset}
    if dataset != loaded.recipe.data.dataset:
        values["data.train_per_class"] = None
    return loaded.recipe.with_values(values)


def make_plan(loaded: Loaded, recipe: Recipe, split: str, extras: Extras) -> Plan:
    """The images of an evaluation; BadRequest for what cannot be done."""
    images, notes, left_out = select_images(loaded, recipe.data, split)
    free = split == "test" and recipe.data.train_on == "train"
    held_out = select_images(loaded, recipe.data, "val")[0] if free else None
    foreign = {name: load_foreign(loaded, recipe, name, split) for name in extras.ood}
    notes = [*loaded.unfinished_notes, *notes, *(f"{name}: {one.note}" for name, one in foreign.items() if one.note)]
    return Plan(recipe, images, held_out, foreign, notes, left_out)


def evaluate_one(
    loaded: Loaded, plan: Plan, split: str, extras: Extras, run: RunFolder, device: torch.device, terminal: Terminal
) -> dict[str, Any]:
    """Metrics, tables and summary of one dataset, into its own folder."""
    images, dataset = plan.images, plan.recipe.data.dataset
    terminal.say(f"data       {dataset} {split}: {len(images)} images, {len(images.class_names)} classes")
    for note in plan.notes:
        terminal.say(f"           {note}")
    scores = score(loaded, images, device=device, terminal=terminal)
    features = scores.features
    summary = {
        "command": "eval",
        "checkpoint": str(loaded.path),
        "dataset": dataset,
        "split": split,
        "split_notes": plan.notes,
        "images_left_out": plan.left_out,
        **scores.summary(split),
        "images_per_second": len(images) / scores.seconds,
        "device": str(device),
        "reliability": bins(scores.calibration),
        **scaled(loaded, plan, features, split, device, terminal),
        **(corruption_figures(loaded, images, device, terminal) if extras.corruptions else {}),
        **(ood_figures(loaded, plan.recipe, features, plan.foreign, device, terminal) if extras.ood else {}),
        "run": str(run.path),
    }
    on_first(lambda: write_results(run, scores, images, summary))
    return plain(summary)


def write_results(run: RunFolder, scores: Scores, images: ImageSet, summary: Mapping[str, Any]) -> None:
    """Tables and summary.json; SchaneError where they cannot be written."""
    with run.writing():
        write_tables(run, scores, images)
    run.finish(summary)


def scaled(
    loaded: Loaded, plan: Plan, features: Features, split: str, device: torch.device, terminal: Terminal
) -> dict[str, Any]:
    """Calibration after temperature scaling (Guo et al. 2017), the temperature fitted on val; none for val itself."""
    if plan.held_out is None:
        return {}
    with terminal.task("scoring val for the temperature", len(plan.held_out), "img") as task:
        held_out = outputs(loaded, plan.held_out, device=device, task=task)
    with refusing():
        fit = metrics.fit_temperature(held_out.logits, held_out.labels)
        after = metrics.calibration(features.logits, features.labels, seed=0, temperature=fit.temperature)
    return {
        "temperature": fit.temperature,
        "temperature_val_n": len(held_out.labels),
        **calibration_figures(split, after, "_scaled"),
        "reliability_scaled": bins(after),
    }


def bins(calibration: Calibration) -> list[dict[str, Any]]:
    """The reliability diagram's bins, JSON-ready."""
    return [
        {
            "low": b.low,
            "high": b.high,
            "n": b.n,
            "confidence": b.confidence,
            "accuracy": b.accuracy.value if b.accuracy else None,
            "accuracy_ci95": list(b.accuracy.ci95) if b.accuracy and b.accuracy.ci95 else None,
        }
        for b in calibration.reliability
    ]


def worst_mistakes(features: Features, images: ImageSet, most: int = 24) -> "pd.DataFrame":
    """The wrong predictions of highest confidence, one per row: id, label, prediction, confidence and a PNG picture."""
    import pandas as pd

    confidence, predicted = features.logits.double().softmax(1).max(1)
    wrong = (predicted != features.labels).nonzero()[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:most].tolist()
    names = images.class_names
    rows = [
        {
            "id": images.ids[index],
            "label": names[images.labels[index]],
            "prediction": names[int(predicted[index])],
            "confidence": float(confidence[index]),
            "picture": encode_png(images.read(index)).numpy().tobytes(),
        }
        for index in worst
    ]
    return pd.DataFrame(rows, columns=["id", "label", "prediction", "confidence", "picture"])


def write_tables(run: RunFolder, scores: Scores, images: ImageSet) -> None:
    """per_class.csv, predictions.csv, confusion.csv and mistakes.parquet: what a page of the scores needs."""
    import pandas as pd

    probabilities = scores.features.logits.softmax(1)
    predicted = probabilities.argmax(1)
    rows = [
        {"class": name, "n": e.n, "accuracy": e.value, "ci95_low": e.ci95[0], "ci95_high": e.ci95[1]}
        for name, e in zip(images.class_names, scores.per_class, strict=True)
        if e is not None and e.ci95 is not None
    ]
    write_csv(pd.DataFrame(rows), run.per_class_table, index=False)
    names = list(images.class_names)
    counts = metrics.confusion(scores.features.logits, scores.features.labels)
    write_csv(pd.DataFrame(counts, index=pd.Index(names, name="label"), columns=names), run.confusion_table)
    predictions = pd.DataFrame(
        {
            "id": images.ids,
            "label": [names[label] for label in images.labels],
            "prediction": [names[label] for label in predicted.tolist()],
            "confidence": probabilities.max(1).values.numpy(),
        }
    )
    write_csv(predictions, run.predictions_table, index=False)
    worst_mistakes(scores.features, images).to_parquet(run.mistakes_table, index=False)
