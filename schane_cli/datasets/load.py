"""Datasets by name, folder, list or container, as train / val / test image sets whose splits never share an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from schane_cli.datasets.catalog import Dataset, known_dataset, refuse_fewshot
from schane_cli.datasets.corrections import corrected
from schane_cli.datasets.parts import Parts
from schane_cli.datasets.remembered import WORTH_REMEMBERING, remembered
from schane_cli.datasets.sources import read_source
from schane_cli.errors import BadRequest
from schane_cli.images import memory
from schane_cli.images.content import content_of, shared_between, unread_count, with_content, without_shared
from schane_cli.images.decode import read_image
from schane_cli.images.imageset import Files, ImageSet
from schane_cli.images.memory import as_kept_files, in_memory_if_small
from schane_cli.images.splits import FewshotSplits, Splits, complete, cut_train, fewshot_splits
from schane_cli.recipe import DataRecipe
from schane_cli.terminal import Terminal

__all__ = [
    "FewshotSplits",
    "ImageSet",
    "Splits",
    "listed_parts",
    "load_fewshot_splits",
    "load_splits",
    "read_image",
    "reading_once",
    "source_parts",
]

_READ_BY = ("dataset", "root", "image_column", "label_column", "exclude", "relabel", "broken")
_kept: dict[tuple[Any, ...], Parts] | None = None  # the last source read, inside reading_once


@contextmanager
def reading_once() -> Iterator[None]:
    """Inside, a source that is asked for again is not read again: several seeds, the trials of a study."""
    global _kept  # noqa: PLW0603 (the readers are functions)
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def load_splits(recipe: DataRecipe) -> Splits:
    """Train, val and test of the dataset that the recipe names.

    Raises:
        BadRequest: unknown dataset, files missing, an empty class folder, a corrupt image, a few-shot dataset.
    """
    refuse_fewshot(recipe.dataset)
    parts = source_parts(recipe)
    notes = [*parts.notes, *_official(recipe.dataset)]
    if recipe.leave_out_shared:
        parts = _without_shared(parts, notes)
    splits = complete(parts, recipe, notes)
    splits.notes.extend(_shared_notes({"train": splits.train, "val": splits.val, "test": splits.test}))
    splits = replace(splits, left_out=parts.left_out)
    if recipe.train_per_class is not None:
        splits = replace(splits, train=cut_train(splits.train, recipe.train_per_class, recipe.split_seed))
        splits.notes.append(f"train cut to {recipe.train_per_class} images per class by seed {recipe.split_seed}")
    if recipe.train_on == "trainval":
        splits.notes.append("TRAINED ON TRAIN + VAL: val metrics are not on held-out images")
        splits = replace(splits, train=splits.train.joined(splits.val, "trainval"))
    return splits


def _without_shared(parts: Parts, notes: list[str]) -> Parts:
    """The parts, with the images that the source also puts into val or test left out of train."""
    others = [part for split, part in parts.items() if split in {"val", "test"}]
    if "train" not in parts or not others:
        return parts
    kept = Parts(parts, parts.notes[len(parts.notes) :])
    kept["train"], kept.left_out = without_shared(parts["train"], others), parts.left_out
    count = len(parts["train"]) - len(kept["train"])
    notes.append(f"{count:,} images left out of train, since they are also in val or test (data.leave_out_shared)")
    return kept


def _shared_notes(splits: dict[str, ImageSet]) -> list[str]:
    """A sentence for each two splits that hold equal images: the source put them there."""
    notes = []
    for (one, other), pairs in shared_between(splits).items():
        first, second = splits[one].ids[pairs[0][0]], splits[other].ids[pairs[0][1]]
        advice = "; --set data.leave_out_shared=true leaves them out of train" if one == "train" else ""
        notes.append(f"SHARED: {len(pairs):,} images of {other} are also in {one}, as {second} = {first}{advice}")
    return notes


def _official(name: str) -> list[str]:
    """A note where our test is the source's val."""
    dataset = known_dataset(name)
    is_val = dataset is not None and dataset.splits.startswith("the official val")
    return ["test: the official val split, the only one with public labels"] if is_val else []


def source_parts(recipe: DataRecipe) -> Parts:
    """The image sets of a dataset as its source splits them (some of train, val and test, or `all`), ready to use.

    Small sets are decoded; images are numbered by content, so that equal ones are known.

    Raises:
        BadRequest: unknown, missing or incomplete, files that contradict each other, images that cannot be read.
    """
    if _kept is None:
        return _read(recipe)
    key = tuple(getattr(recipe, name) for name in _READ_BY)
    if key not in _kept:
        _kept.clear()  # two sources at once would take twice the memory
        _kept[key] = _read(recipe)
    return _kept[key]


def listed_parts(recipe: DataRecipe) -> Parts:
    """As `source_parts`, but with files left unread where the source allows, whether or not they can be read."""
    return corrected(Parts(read_source(recipe)), recipe)


def _read(recipe: DataRecipe) -> Parts:
    parts = listed_parts(recipe)
    as_listed = dict(parts)
    left_out: list[str] = []
    leave_out, at_once = recipe.broken == "leave_out", unread_count(parts) <= memory.AT_ONCE
    for split, part in parts.items():
        with Terminal(json=True).task(f"decoding {split}", len(part), unit="img") as task:
            parts[split], broken = in_memory_if_small(part, task.advance, leave_out=leave_out, at_once=at_once)
        left_out += broken
    if unread_count(parts):  # all are compared as files then, since pixels and bytes are never equal
        for split, part in parts.items():
            if isinstance(as_listed[split].images, Files) and not isinstance(part.images, Files):
                parts[split] = as_kept_files(part, as_listed[split])
    if left_out:
        parts.notes.append(f"{len(left_out):,} images left out since they cannot be read, such as {left_out[0]}")
    parts.left_out = len(left_out)
    parts.update(numbered(parts, recipe.root))
    return parts


def numbered(parts: dict[str, ImageSet], root: Path) -> dict[str, ImageSet]:
    """The image sets with their `content` numbers, which are remembered below `root` for a large set of files."""
    if unread_count(parts) < WORTH_REMEMBERING:
        return _compared(parts)
    name = " ".join(f"{part.dataset} {split} {len(part)}" for split, part in parts.items())
    state = " ".join(part.fingerprint() for part in parts.values())
    known = remembered(
        root, f"content {name}", state, lambda: {split: content_of(part) for split, part in _compared(parts).items()}
    )
    return {split: replace(part, content=known[split]) for split, part in parts.items()}


def _compared(parts: dict[str, ImageSet]) -> dict[str, ImageSet]:
    with Terminal(json=True).task("comparing images", sum(map(len, parts.values())), unit="img") as task:
        return with_content(parts, task.advance)


def load_fewshot_splits(recipe: DataRecipe, *, untrained: bool = False) -> FewshotSplits:
    """Base, val and novel classes: the published ones where there are any, else the first and second half of the list.

    The novel sets hold every image of their classes, since training sees none of them. Where nothing is trained
    (`untrained`) and no split is published, every class is novel.

    Raises:
        BadRequest: unknown dataset, files missing, too few classes or images.
    """
    parts = source_parts(recipe)
    return replace(_fewshot_splits(parts, recipe, untrained), left_out=parts.left_out)


def _fewshot_splits(parts: Parts, recipe: DataRecipe, untrained: bool) -> FewshotSplits:
    dataset = known_dataset(recipe.dataset)
    if dataset is None or not dataset.fewshot:
        if untrained:
            whole = _whole(parts)
            notes = [*parts.notes, "nothing is trained, so every class is a test class"]
            return fewshot_splits({"train": whole, "test": whole}, recipe, notes)
        return fewshot_splits(_split_by_class(recipe.dataset, parts), recipe, parts.notes)
    notes = [*parts.notes, *dataset.fewshot_notes(parts)]
    return fewshot_splits(parts, recipe, notes, expected=dataset.images_per_class)


def _split_by_class(name: str, parts: dict[str, ImageSet]) -> dict[str, ImageSet]:
    """The classes of a set without published few-shot classes, divided as its dataset says, else into two halves."""
    whole = _whole(parts)
    count = len(whole.class_names)
    if count < 4:
        raise BadRequest(f"{name} has {count} classes; few-shot needs at least 2 base and 2 novel ones")
    chosen = (known_dataset(name) or Dataset()).class_halves(count)
    return {split: whole.only_classes(list(classes), split) for split, classes in chosen.items()}


def _whole(parts: dict[str, ImageSet]) -> ImageSet:
    """All images of a source as one set."""
    whole, *others = parts.values()
    for other in others:
        whole = whole.joined(other, "all")
    return whole
