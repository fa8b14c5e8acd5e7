"""The few-shot sets made of ImageNet-1k's training images: miniImageNet by Ravi's lists, tieredImageNet by classes."""

import re
from collections.abc import Mapping
from pathlib import Path

from schane_cli.datasets.dataset import class_list
from schane_cli.datasets.folders import class_folder_set, listed_set
from schane_cli.datasets.listing import list_images
from schane_cli.datasets.tables import read_csv
from schane_cli.errors import BadRequest
from schane_cli.images.imageset import ImageSet

_RAVI_NAME = re.compile(r"(n\d{8})(\d{8})\.jpg")


def imagenet1k(folder: Path) -> dict[str, ImageSet]:
    """ImageNet-1k's class folders under train/ and val/, called by their WordNet ids; the official val is our test."""
    train = class_folder_set("imagenet1k", "train", folder / "train", below=folder)
    test = class_folder_set("imagenet1k", "test", folder / "val", below=folder)
    if train.class_names != test.class_names:
        other = sorted(set(train.class_names) ^ set(test.class_names))
        raise BadRequest(f"{folder / 'train'} and {folder / 'val'} differ in their classes: {', '.join(other[:3])}")
    return {"train": train, "test": test}


def miniimagenet(folder: Path, imagenet: Path) -> dict[str, ImageSet]:
    """The images that train.csv, val.csv and test.csv (filename,label) in `folder` list.

    A name is looked up as it stands in `folder`/images, else among ImageNet's training files. Ravi's names are not
    ImageNet's: n0153282900000005.jpg is the fifth file of n01532829 in the order of the files' own numbers. A list
    that uses ImageNet's own names (n01532829_77.JPEG) is taken by name.

    Raises:
        BadRequest: a class in two lists, an image listed twice, a name that no file has.
    """
    lists = {split: read_csv(folder / f"{split}.csv", ("filename", "label")) for split in ("train", "val", "test")}
    _require_disjoint(folder, lists)
    own = folder / "images"
    base = own if own.is_dir() else imagenet / "train"
    parts = {}
    for split, rows in lists.items():
        class_names = sorted({row["label"] for row in rows})
        names = [row["filename"] for row in rows]
        if not own.is_dir():
            names = _imagenet_names(base, folder / f"{split}.csv", rows)
        repeated = len(names) - len(set(names))
        if repeated:
            raise BadRequest(f"{folder / f'{split}.csv'} names {repeated} images twice")
        labels = [class_names.index(row["label"]) for row in rows]
        parts[split] = listed_set("miniimagenet", split, base, names, labels, class_names)
    return parts


def _require_disjoint(folder: Path, lists: dict[str, list[dict[str, str]]]) -> None:
    owner: dict[str, str] = {}
    for split, rows in lists.items():
        for label in sorted({row["label"] for row in rows}):
            if label in owner:
                raise BadRequest(
                    f"class {label} is in both {owner[label]}.csv and {split}.csv of {folder}: this is another set of "
                    "the same name (timm/mini-imagenet has all classes in every split)"
                )
            owner[label] = split


def _imagenet_names(train: Path, file: Path, rows: list[dict[str, str]]) -> list[str]:
    """Paths below ImageNet's train folder for the rows of one list."""
    by_class: dict[str, list[str]] = {}
    names = []
    for number, row in enumerate(rows, 2):
        label, name = row["label"], row["filename"]
        if label not in by_class:
            images = list_images(train / label, train).names if (train / label).is_dir() else []
            by_class[label] = sorted(images, key=lambda path: int(re.findall(r"\d+", path)[-1]))
        match = _RAVI_NAME.fullmatch(name)
        if match is None:
            names.append(f"{label}/{name}")
            continue
        position = int(match[2])
        if match[1] != label or not 1 <= position <= len(by_class[label]):
            raise BadRequest(
                f"{file} line {number}: {name} is image {position} of {label}, which has {len(by_class[label])} in "
                f"{train}; ImageNet is incomplete there"
            )
        names.append(by_class[label][position - 1])
    return names


def tieredimagenet(imagenet: Path) -> dict[str, ImageSet]:
    """351 / 97 / 160 classes of ImageNet's training images; BadRequest where a class folder is missing."""
    return {
        split: class_folder_set("tieredimagenet", split, imagenet / "train", only=names)
        for split, names in class_list("tieredimagenet").items()
    }


def unlike_ravi(parts: Mapping[str, ImageSet]) -> str | None:
    """A warning where the classes of the lists are not Ravi and Larochelle's."""
    for split, names in class_list("miniimagenet").items():
        other = len(set(names) ^ set(parts[split].class_names))
        if other:
            return f"WARNING: the {split} list differs from Ravi and Larochelle's in {other} classes"
    return None
