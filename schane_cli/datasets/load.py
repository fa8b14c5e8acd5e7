"""Datasets by name, folder, list or container, as train / val / test image sets whose splits never share an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from schane_cli.datasets import cifar, imagenet
from schane_cli.datasets.catalog import DATASETS, find_dataset, require_ready
from schane_cli.datasets.containers import huggingface_parts, webdataset_parts
from schane_cli.datasets.folders import csv_parts, folder_parts
from schane_cli.datasets.readers import READERS
from schane_cli.errors import BadRequest
from schane_cli.images.imageset import ImageSet, read_image
from schane_cli.images.splits import FewshotSplits, Splits, complete, cut_train, fewshot_splits
from schane_cli.recipe import DataRecipe

__all__ = [
    "FewshotSplits",
    "ImageSet",
    "Splits",
    "load_fewshot_splits",
    "load_splits",
    "read_image",
    "reading_once",
    "source_parts",
]

_CIFAR_SPLIT_IMAGES = 600
_kept: dict[tuple[str, Path], dict[str, ImageSet]] | None = None  # the last source read, inside reading_once


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
    if recipe.dataset in DATASETS and DATASETS[recipe.dataset].fewshot:
        raise BadRequest(
            f"{recipe.dataset} is a few-shot dataset, whose splits share no class; use `schane fewshot --dataset "
            f"{recipe.dataset}`"
        )
    splits = complete(source_parts(recipe.dataset, recipe.root), recipe, _official(recipe.dataset))
    if recipe.train_per_class is not None:
        splits = replace(splits, train=cut_train(splits.train, recipe.train_per_class, recipe.split_seed))
        splits.notes.append(f"train cut to {recipe.train_per_class} images a class by seed {recipe.split_seed}")
    if recipe.train_on == "trainval":
        splits.notes.append("TRAINED ON TRAIN + VAL: the val figures are not held out")
        splits = replace(splits, train=splits.train.joined(splits.val, "trainval"))
    return splits


def _official(name: str) -> list[str]:
    """A note where our test is the source's val."""
    is_val = name in DATASETS and DATASETS[name].splits.startswith("the official val")
    return ["test: the official val split, whose labels alone are public"] if is_val else []


def source_parts(name: str, root: Path) -> dict[str, ImageSet]:
    """The image sets of a dataset as its source splits them: some of train, val and test, or `all`.

    Raises:
        BadRequest: unknown, missing or incomplete, or files that contradict each other.
    """
    if _kept is None:
        return _read_source(name, root)
    if (name, root) not in _kept:
        _kept.clear()  # two sources at once would take twice the memory
        _kept[name, root] = _read_source(name, root)
    return _kept[name, root]


def _read_source(name: str, root: Path) -> dict[str, ImageSet]:
    for prefix, reader in (("folder:", folder_parts), ("csv:", csv_parts), ("wds/", webdataset_parts)):
        if name.startswith(prefix):
            return reader(name, Path(name.removeprefix(prefix)).expanduser())
    if name.startswith("hfds/"):
        return huggingface_parts(name, root)
    dataset = find_dataset(name)
    folder = dataset.folder(root)
    if name == "cifar100":
        return cifar.cifar100(_cifar_folder(root))
    require_ready(dataset, root)
    if not dataset.fewshot:
        return READERS[name](folder)
    if dataset.over == "cifar100":
        return cifar.fewshot_parts(_cifar_folder(root), name)
    below = DATASETS["imagenet1k"].folder(root)
    return imagenet.miniimagenet(folder, below) if name == "miniimagenet" else imagenet.tieredimagenet(below)


def _cifar_folder(root: Path) -> Path:
    """`<root>/cifar100`, or the root itself where torchvision has put its archive straight into it."""
    place = root.expanduser()
    if (place / "cifar-100-python").is_dir():
        return place
    require_ready(DATASETS["cifar100"], root)
    return DATASETS["cifar100"].folder(root)


def load_fewshot_splits(recipe: DataRecipe) -> FewshotSplits:
    """Base, val and novel classes: the published ones where there are any, else the first and second half of the list.

    The novel sets hold every image of their classes, since training sees none of them.

    Raises:
        BadRequest: unknown dataset, files missing, too few classes or images.
    """
    parts = source_parts(recipe.dataset, recipe.root)
    if recipe.dataset not in DATASETS or not DATASETS[recipe.dataset].fewshot:
        return fewshot_splits(_split_by_class(recipe.dataset, parts), recipe, [])
    warning = imagenet.unlike_ravi(parts) if recipe.dataset == "miniimagenet" else None
    expected = None if recipe.dataset == "tieredimagenet" else _CIFAR_SPLIT_IMAGES
    return fewshot_splits(parts, recipe, [warning] if warning else [], expected=expected)


def _split_by_class(name: str, parts: dict[str, ImageSet]) -> dict[str, ImageSet]:
    """CUB's 100/50/50 (class number odd: train, 2 mod 4: val, 0 mod 4: test); of any other set the two halves."""
    first, *others = parts.values()
    whole = first
    for other in others:
        whole = whole.joined(other, "all")
    count = len(whole.class_names)
    if count < 4:
        raise BadRequest(f"{name} has {count} classes; few-shot needs at least 2 base and 2 novel ones")
    if name == "cub200":
        chosen = {"train": range(0, count, 2), "val": range(1, count, 4), "test": range(3, count, 4)}
    else:
        chosen = {"train": range(count // 2), "test": range(count // 2, count)}
    return {split: whole.only_classes(list(classes), split) for split, classes in chosen.items()}
