"""`schane data check`: counts per split, images that decode, images that two splits share, and a verdict."""

from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Any

import numpy as np

from schane_cli.datasets.catalog import DATASETS
from schane_cli.datasets.load import source_parts
from schane_cli.errors import BadRequest
from schane_cli.images.imageset import ImageSet
from schane_cli.images.splits import complete
from schane_cli.recipe import DataRecipe
from schane_cli.terminal import Terminal

_SHOWN = 5


@dataclass
class Verdict:
    """What a check found. `problems` are what must be mended; `remarks` are facts of the source to know about."""

    dataset: str
    splits: dict[str, dict[str, int]]
    decoded: int
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """As plain values, for --json."""
        return {**vars(self), "ok": not self.problems}


def check(name: str, root: Path, terminal: Terminal, *, sample: int | None = 500) -> Verdict:
    """Look through a dataset: images and classes per split against the published ones, `sample` images a split decoded
    (None: all), and every image's content compared between splits.

    Raises:
        BadRequest: unknown, missing or incomplete dataset.
    """
    recipe = DataRecipe(dataset=name, root=root)
    parts = source_parts(recipe)
    verdict = Verdict(name, {split: _counts(part) for split, part in parts.items()}, 0)
    if name in DATASETS:
        _compare_counts(name, parts, verdict)
    fewshot = name in DATASETS and DATASETS[name].fewshot
    if fewshot:
        _compare_classes(parts, verdict)
        final: dict[str, ImageSet] = parts
    else:
        splits = complete(parts, recipe, [])
        final = {"train": splits.train, "val": splits.val, "test": splits.test}
        verdict.splits = {split: _counts(part) for split, part in final.items()}
    for split, part in final.items():
        _decode(split, part, sample, verdict, terminal)
    _find_shared(final, verdict, official=name in DATASETS, terminal=terminal)
    return verdict


def _counts(part: ImageSet) -> dict[str, int]:
    counts = np.bincount(part.labels, minlength=len(part.class_names))
    return {
        "images": len(part),
        "classes": int((counts > 0).sum()),
        "smallest_class": int(counts.min()),
        "largest_class": int(counts.max()),
    }


def _compare_counts(name: str, parts: dict[str, ImageSet], verdict: Verdict) -> None:
    dataset = DATASETS[name]
    for split, expected in dataset.counts.items():
        if len(parts[split]) != expected:
            verdict.problems.append(f"{split} has {len(parts[split])} images, published with {expected}")
    found = {class_name for part in parts.values() for class_name in part.class_names}
    if len(found) != dataset.classes:
        verdict.problems.append(f"{len(found)} classes, published with {dataset.classes}")


def _compare_classes(parts: dict[str, ImageSet], verdict: Verdict) -> None:
    owner: dict[str, str] = {}
    for split, part in parts.items():
        for class_name in part.class_names:
            if class_name in owner:
                verdict.problems.append(f"class {class_name} is in both {owner[class_name]} and {split}")
            owner[class_name] = split


def _decode(split: str, part: ImageSet, sample: int | None, verdict: Verdict, terminal: Terminal) -> None:
    count = len(part) if sample is None else min(sample, len(part))
    chosen = np.unique(np.linspace(0, len(part) - 1, count, dtype=np.int64))
    with terminal.task(f"decoding {split}", len(chosen), unit="img") as task:
        for index in chosen:
            try:
                part.read(int(index))
                verdict.decoded += 1
            except BadRequest as error:
                verdict.problems.append(str(error))
            task.advance()


def _find_shared(parts: dict[str, ImageSet], verdict: Verdict, *, official: bool, terminal: Terminal) -> None:
    """Images of equal content (pixels in memory, bytes on disk) that two splits hold."""
    owner: dict[bytes, tuple[str, str]] = {}
    shared: list[tuple[str, str]] = []
    for split, part in parts.items():
        with terminal.task(f"comparing {split}", len(part), unit="img") as task:
            for index in range(len(part)):
                digest = _digest(part, index)
                if digest is not None:
                    first = owner.setdefault(digest, (split, part.ids[index]))
                    if first[0] != split:
                        shared.append((f"{first[0]} {first[1]}", f"{split} {part.ids[index]}"))
                task.advance()
    if shared:
        first_few = "; ".join(f"{one} = {other}" for one, other in shared[:_SHOWN])
        text = f"{len(shared)} images are in two splits: {first_few}"
        (verdict.remarks if official else verdict.problems).append(text)


def _digest(part: ImageSet, index: int) -> bytes | None:
    image = part.images[index]
    if isinstance(image, Path):
        try:
            image = image.read_bytes()
        except OSError:
            return None  # reported by the decoding, or not in the sample
    data = image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()
    return sha1(data, usedforsecurity=False).digest()
