"""Train / val / test of a dataset, base / val / novel classes of a few-shot one, and the rule for missing ones."""

from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np

from schane_cli.errors import BadRequest
from schane_cli.images.content import content_of, with_content
from schane_cli.images.imageset import ImageSet
from schane_cli.recipe import DataRecipe

_HIGHEST = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Splits:
    """The three splits of a dataset, and how they came about, in sentences for the header of every output.

    `left_out` counts the images that cannot be read and that the recipe leaves out.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet
    notes: list[str] = field(default_factory=list)
    left_out: int = 0


@dataclass(frozen=True)
class FewshotSplits:
    """Base classes to train on and classes that training never sees.

    `base` and `base_val` are images of the base classes (base_val is held out, for choosing the epoch); `novel` are
    all images of the test classes; `novel_val` those of the val classes, where the dataset has them: selection by
    episodes uses these and never `novel`. `left_out` counts the images that cannot be read and that the recipe leaves
    out.
    """

    base: ImageSet
    base_val: ImageSet
    novel: ImageSet
    notes: list[str] = field(default_factory=list)
    novel_val: ImageSet | None = None
    left_out: int = 0


def complete(parts: dict[str, ImageSet], recipe: DataRecipe, notes: list[str]) -> Splits:
    """The splits that a source delivers (`train`, `val`, `test`, or `all`), with the missing ones carved out.

    Raises:
        BadRequest: a class too small to be split.
    """
    parts, notes = dict(parts), list(notes)
    if "all" in parts:
        parts["train"] = parts.pop("all")
    for name, fraction in (("test", recipe.test_fraction), ("val", recipe.val_fraction)):
        if name not in parts:
            parts["train"], parts[name], note = carve(parts["train"], fraction, recipe.split_seed, name)
            notes.append(note)
    return Splits(parts["train"], parts["val"], parts["test"], notes)


def carve(whole: ImageSet, fraction: float, seed: int, name: str) -> tuple[ImageSet, ImageSet, str]:
    """(what stays in train, the part called `name`, a sentence).

    Of each class the given share of images goes, at least one, those whose sha256 of "seed/name/id" is lowest: a rule
    that does not depend on a library or on the order of files. Equal images stay together.

    Raises:
        BadRequest: a class of fewer than two images, or of fewer than two different ones.
    """
    counts = np.bincount(whole.labels, minlength=len(whole.class_names))
    if counts.min() < 2:
        small = whole.class_names[int(counts.argmin())]
        raise BadRequest(
            f"class {small!r} of {whole.dataset} has {counts.min()} image{'' if counts.min() == 1 else 's'}; "
            f"a {name} split needs two or more"
        )
    quota = np.clip(np.round(counts * fraction).astype(int), 1, counts - 1)
    keys = _keys(whole, f"{seed}/{name}")
    held = _lowest_of_each_class(whole, quota, keys)
    for label in np.flatnonzero(np.bincount(whole.labels[held], minlength=len(counts)) == 0):
        held[_one_group(whole, int(label), int(quota[label]), keys, name)] = True
    where = "" if whole.split == "all" else f"{whole.split} "
    note = f"{name}: {held.sum()} images, {fraction:.0%} of each {where}class, by sha256 of seed {seed} and name"
    return whole.subset(np.flatnonzero(~held), "train"), whole.subset(np.flatnonzero(held), name), note


def _lowest_of_each_class(images: ImageSet, quota: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Boolean (n,): in each class the `quota[class]` images of lowest key; ties at the edge are left out."""
    order = np.lexsort((keys, images.labels))
    labels = images.labels[order]
    first = np.searchsorted(labels, np.arange(len(quota)))
    rank = np.arange(len(labels)) - first[labels]
    edge = keys[order][np.minimum(first + quota, len(labels) - 1)]  # the first key of each class that is left out
    whole = quota >= np.bincount(labels, minlength=len(quota))
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[order] = (rank < quota[labels]) & (whole[labels] | (keys[order] < edge[labels]))
    return chosen


def _one_group(images: ImageSet, label: int, quota: int, keys: np.ndarray, name: str) -> np.ndarray:
    """Indices of equal images of one class to hold out whole: the first that fit the quota, else the fewest.

    Raises:
        BadRequest: all images of the class are equal, or are in other classes too.
    """
    members = np.flatnonzero(images.labels == label)
    groups, sizes = np.unique(keys[members], return_counts=True)
    free = (groups != _HIGHEST) & (sizes < len(members))
    if not free.any():
        raise BadRequest(
            f"class {images.class_names[label]!r} of {images.dataset} has no two different images of its own: its "
            f"{len(members)} are equal to each other or to images of other classes; a {name} split needs two"
        )
    groups, sizes = groups[free], sizes[free]
    fitting = np.flatnonzero(sizes <= quota)
    return members[keys[members] == groups[fitting[0] if len(fitting) else sizes.argmin()]]


def _keys(images: ImageSet, salt: str) -> np.ndarray:
    """uint64 (n,): sha256 of salt and id. Equal images share the lowest key of theirs, so that no split separates them;
    those that several classes hold (CIFAR-100 has some) get the highest, and stay in train."""
    keys = np.fromiter((_key(f"{salt}/{name}") for name in images.ids), dtype=np.uint64, count=len(images))
    if images.content is None:
        images = with_content({"": images}, lambda _: None)[""]
    numbers, group = np.unique(content_of(images), return_inverse=True)
    lowest = np.full(len(numbers), _HIGHEST)
    np.minimum.at(lowest, group, keys)
    pairs = np.unique(np.stack([group, images.labels]), axis=1)
    lowest[np.bincount(pairs[0], minlength=len(numbers)) > 1] = _HIGHEST
    return lowest[group]


def _key(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


def cut_train(train: ImageSet, per_class: int, seed: int) -> ImageSet:
    """`per_class` images of each class, by the same rule; BadRequest where a class has fewer."""
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    if counts.min() < per_class:
        small = int(counts.argmin())
        raise BadRequest(
            f"class {train.class_names[small]!r} has {counts[small]} training images, fewer than "
            f"data.train_per_class {per_class}"
        )
    keys = _keys(train, f"{seed}/train")
    chosen = _lowest_of_each_class(train, np.full(len(counts), per_class), keys)
    for label in np.flatnonzero(np.bincount(train.labels[chosen], minlength=len(counts)) == 0):
        members = np.flatnonzero(train.labels == label)  # more equal images than asked for
        chosen[members[np.argsort(keys[members], kind="stable")[:per_class]]] = True
    return train.subset(np.flatnonzero(chosen), train.split)


def fewshot_splits(
    parts: dict[str, ImageSet], recipe: DataRecipe, notes: list[str], *, expected: int | None = None
) -> FewshotSplits:
    """Base training and test sets from image sets of disjoint classes called `train`, `val` (or none) and `test`."""
    notes = [*notes, *(describe(name, part, expected) for name, part in parts.items())]
    base_all = parts["train"]
    if recipe.train_on == "trainval" and "val" in parts:
        base_all = merge_classes(base_all, parts["val"], "trainval")
        notes.append("BASE TRAINING ON TRAIN + VAL CLASSES: not comparable with figures trained on train alone")
    base, base_val, note = carve(base_all, recipe.val_fraction, recipe.split_seed, "base-val")
    if recipe.train_per_class is not None:
        base = cut_train(base, recipe.train_per_class, recipe.split_seed)
        notes.append(f"base cut to {recipe.train_per_class} images per class by seed {recipe.split_seed}")
    novel = replace(parts["test"], split="novel")
    novel_val = replace(parts["val"], split="novel-val") if "val" in parts else None
    return FewshotSplits(replace(base, split="base"), base_val, novel, [*notes, note], novel_val)


def describe(name: str, part: ImageSet, expected: int | None) -> str:
    """`test: 20 classes, 12000 images: baby, bed, ...` and a warning where counts are not as published."""
    counts = np.bincount(part.labels, minlength=len(part.class_names))
    first = ", ".join(part.class_names[:4])
    text = f"{name}: {len(part.class_names)} classes, {len(part)} images ({first}, ...)"
    if expected is not None and (counts.min(), counts.max()) != (expected, expected):
        text += f"; WARNING: {counts.min()} to {counts.max()} images per class, published with {expected}"
    return text


def merge_classes(first: ImageSet, second: ImageSet, split: str) -> ImageSet:
    """Two sets of disjoint classes as one; the second's labels follow the first's."""
    names = first.class_names + second.class_names
    shifted = replace(second, labels=second.labels + len(first.class_names), class_names=names)
    return replace(first, class_names=names).joined(shifted, split)
