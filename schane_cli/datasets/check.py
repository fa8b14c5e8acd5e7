"""`schane data check`: counts per split, images that decode, images that two splits share, and a verdict."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from schane_cli.datasets.catalog import Dataset, known_dataset
from schane_cli.datasets.load import listed_parts, numbered
from schane_cli.errors import BadRequest
from schane_cli.images.content import content_of, shared_between
from schane_cli.images.imageset import Files, ImageSet
from schane_cli.images.memory import fits_in_memory, read_all
from schane_cli.images.splits import complete
from schane_cli.recipe import build_recipe
from schane_cli.spreadsheets import write_csv
from schane_cli.terminal import Terminal

_SHOWN = 5
_SHOWN_UNREADABLE = 20


@dataclass
class Verdict:
    """What a check found. `problems` must be fixed; `remarks` are facts of the source to know about.

    `bad` lists (id, reason) of the images that `data.exclude` should leave out: those that cannot be read, and those
    of train that are also in val or test.
    """

    dataset: str
    splits: dict[str, dict[str, int]]
    decoded: int
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """As plain values, for --json."""
        return {**vars(self), "ok": not self.problems}

    def write_bad(self, file: Path) -> None:
        """The bad images as a CSV of path and reason, which `data.exclude` takes; BadRequest where it cannot be."""
        try:
            write_csv(pd.DataFrame(self.bad, columns=["path", "reason"]), file, index=False)
        except OSError as error:
            raise BadRequest(f"{file} cannot be written: {error.strerror or error}") from None


def check(
    name: str, root: Path, terminal: Terminal, *, sample: int | None = 500, settings: Mapping[str, Any] | None = None
) -> Verdict:
    """Look through a dataset: images and classes per split against the published ones, images decoded, and every
    image's content compared between splits. It does not stop at the first fault.

    Of a split that does not fit in memory `sample` images are decoded (None: all). `settings` are further recipe
    values under dotted keys, such as data.label_column.

    Raises:
        BadRequest: unknown, missing or incomplete dataset, or one whose files contradict each other.
    """
    recipe = build_recipe({}, {**(settings or {}), "data.dataset": name, "data.root": str(root)}).data
    parts = listed_parts(recipe)
    verdict = Verdict(name, {split: _counts(part) for split, part in parts.items()}, 0, remarks=list(parts.notes))
    dataset = known_dataset(name)
    if dataset is not None:
        _compare_counts(dataset, parts, verdict)
    for split, part in parts.items():
        _decode(split, part, sample, verdict, terminal)
    parts.update(numbered(parts, root))
    if dataset is not None and dataset.fewshot:
        _compare_classes(parts, verdict)
        final: dict[str, ImageSet] = parts
    else:
        try:
            splits = complete(parts, recipe, [])
            final = {"train": splits.train, "val": splits.val, "test": splits.test}
        except BadRequest as error:
            verdict.problems.append(str(error))
            final = parts
        verdict.splits = {split: _counts(part) for split, part in final.items()}
    _find_shared(final, verdict, official=dataset is not None)
    _find_contradictions(final, verdict)
    return verdict


def _counts(part: ImageSet) -> dict[str, int]:
    counts = np.bincount(part.labels, minlength=len(part.class_names))
    return {
        "images": len(part),
        "classes": int((counts > 0).sum()),
        "smallest_class": int(counts.min()),
        "largest_class": int(counts.max()),
    }


def _compare_counts(dataset: Dataset, parts: Mapping[str, ImageSet], verdict: Verdict) -> None:
    for split, expected in dataset.counts.items():
        actual = len(parts[split]) if split in parts else 0
        if actual != expected:
            verdict.problems.append(f"{split} has {actual} images, published with {expected}")
    class_names = {class_name for part in parts.values() for class_name in part.class_names}
    if dataset.classes and len(class_names) != dataset.classes:
        verdict.problems.append(f"{len(class_names)} classes, published with {dataset.classes}")


def _compare_classes(parts: Mapping[str, ImageSet], verdict: Verdict) -> None:
    owner: dict[str, str] = {}
    for split, part in parts.items():
        for class_name in part.class_names:
            if class_name in owner:
                verdict.problems.append(f"class {class_name} is in both {owner[class_name]} and {split}")
            owner[class_name] = split


def _decode(split: str, part: ImageSet, sample: int | None, verdict: Verdict, terminal: Terminal) -> None:
    """Decode all images of a set that a run would hold in memory, a sample of a larger one."""
    all_of_it = sample is None or (isinstance(part.images, Files) and fits_in_memory(part.images))
    count = len(part) if all_of_it else min(sample or 0, len(part))
    chosen = np.unique(np.linspace(0, len(part) - 1, count, dtype=np.int64))
    unreadable = []
    with terminal.task(f"decoding {split}", len(chosen), unit="img") as task:
        for index, image in read_all(part, chosen):
            if isinstance(image, str):
                unreadable.append(image)
                verdict.bad.append((part.ids[index], image))
            else:
                verdict.decoded += 1
            task.advance()
    verdict.problems += unreadable[:_SHOWN_UNREADABLE]
    if len(unreadable) > _SHOWN_UNREADABLE:
        verdict.problems.append(
            f"{len(unreadable) - _SHOWN_UNREADABLE:,} more images of {split} cannot be read; --write FILE lists all"
        )


def _find_shared(parts: dict[str, ImageSet], verdict: Verdict, *, official: bool) -> None:
    """Images of equal content (pixels in memory, bytes on disk) that two splits hold."""
    shared = []
    for (one, other), pairs in shared_between(parts).items():
        for first, second in pairs:
            shared.append((f"{one} {parts[one].ids[first]}", f"{other} {parts[other].ids[second]}"))
            if one == "train":
                verdict.bad.append((parts[one].ids[first], f"equal to {parts[other].ids[second]} of {other}"))
    if shared:
        first_few = "; ".join(f"{one} = {other}" for one, other in shared[:_SHOWN])
        text = f"{len(shared)} {'image is' if len(shared) == 1 else 'images are'} in two splits: {first_few}"
        (verdict.remarks if official else verdict.problems).append(text)


def _find_contradictions(parts: Mapping[str, ImageSet], verdict: Verdict) -> None:
    """A remark on images of equal content that are in two classes of one split."""
    for split, part in parts.items():
        _, group = np.unique(content_of(part), return_inverse=True)
        pairs = np.unique(np.stack([group, part.labels]), axis=1)
        contradictory = np.flatnonzero(np.bincount(pairs[0]) > 1)
        if len(contradictory):
            names = [part.ids[int(index)] for index in np.flatnonzero(group == contradictory[0])[:_SHOWN]]
            count = "1 image" if len(contradictory) == 1 else f"{len(contradictory)} images"
            verdict.remarks.append(f"{count} of {split} in more than one class: {' = '.join(names)}")
