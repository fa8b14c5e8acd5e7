"""Image files into image sets: class folders, and lists of files."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from schane_cli.datasets.listing import (
    holds_class_folders,
    holds_images,
    list_classes,
    present_files,
    skipped_note,
    visible_folders,
)
from schane_cli.datasets.parts import Parts
from schane_cli.datasets.split_names import SPLITS, choose_splits, looks_like_split, split_of
from schane_cli.errors import BadRequest
from schane_cli.images.decode import printable
from schane_cli.images.imageset import Files, ImageSet, Names


def listed_set(
    dataset: str, split: str, folder: Path, names: Sequence[str], labels: Iterable[int], class_names: Sequence[str]
) -> ImageSet:
    """The files `names` below `folder`, all of which must be there; BadRequest names one that is not."""
    values = np.fromiter(labels, dtype=np.int64, count=len(names))
    return file_set(dataset, split, folder, present_files(folder, names), values, class_names)


def file_set(
    dataset: str, split: str, base: Path, names: Sequence[str], labels: np.ndarray, class_names: Sequence[str]
) -> ImageSet:
    """Files below a base folder as an image set; nothing is read."""
    files = Files(base, names if isinstance(names, Names) else Names(names))
    shown = tuple(printable(name) for name in class_names)
    return ImageSet(dataset, split, files, labels, shown, files.names.printable())


def class_folder_set(
    dataset: str, split: str, folder: Path, *, below: Path | None = None, only: Sequence[str] | None = None
) -> ImageSet:
    """One class per sub-folder of `folder`, in alphabetical order; files are read from any depth below it.

    `below` is the folder that the images' ids are relative to (default `folder`); `only` restricts the classes.

    Raises:
        BadRequest: fewer than two class folders, or one without images or not there.
    """
    return _class_folders(dataset, split, folder, below=below, only=only)[0]


def _class_folders(
    dataset: str,
    split: str,
    folder: Path,
    *,
    below: Path | None = None,
    only: Sequence[str] | None = None,
    root: Path | None = None,
) -> tuple[ImageSet, "Counter[str]"]:
    """As `class_folder_set`, and what it skipped; a large listing is remembered below `root`."""
    classes = visible_folders(folder)
    if only is not None:
        missing = sorted(set(only) - set(classes))
        if missing:
            raise BadRequest(f"class folder {folder / missing[0]} is missing, as are {len(missing) - 1} more")
        classes = list(only)
    if len(classes) < 2:
        raise BadRequest(f"{folder} needs at least two class folders, found {len(classes)}")
    base = below or folder
    listing = list_classes(folder, classes, base, root)
    labels = np.repeat(np.arange(len(classes)), listing.counts)
    return file_set(dataset, split, base, listing.names, labels, classes), listing.skipped


def folder_parts(dataset: str, folder: Path, root: Path | None = None) -> Parts:
    """Class folders below a folder for each split, in any case and wording, or class folders only (`all`).

    A large listing is remembered below `root` until one of the folders changes.

    Raises:
        BadRequest: no such folder, splits that are ambiguous or have no class folders, classes that
            differ between splits.
    """
    if not folder.is_dir():
        what = "is a file; unpack it first if it is an archive" if folder.exists() else "does not exist"
        raise BadRequest(f"dataset folder {folder} {what}")
    inner = _unwrapped(folder)
    notes = [] if inner == folder else [f"reading {printable(str(inner))}, all that {folder} holds"]
    folder, names = inner, visible_folders(inner)
    split_like = [name for name in names if looks_like_split(name)]
    of_classes = [name for name in split_like if holds_class_folders(folder / name)]
    chosen, remarks = choose_splits(of_classes, str(folder))
    if "train" not in chosen:
        return _without_splits(dataset, folder, names, split_like, chosen, notes + remarks, root)
    flat, flat_remarks = choose_splits(
        [name for name in split_like if name not in of_classes and split_of(name) not in chosen], str(folder), chosen
    )
    others = sorted(set(names) - {*chosen.values(), *flat.values()} - set(of_classes))
    if others:
        shown = ", ".join(printable(name) for name in others[:5]) + (", …" if len(others) > 5 else "")
        remarks.append(
            f"folders beside {chosen['train']} that are not read, since they are not named like a split: {shown}"
        )
    return _split_parts(dataset, folder, chosen, flat, [*notes, *remarks, *flat_remarks], root)


def _unwrapped(folder: Path) -> Path:
    """The folder itself, or what lies in it where it holds one folder of folders and no picture."""
    while True:
        names = visible_folders(folder)
        if len(names) != 1 or holds_images(folder) or not holds_class_folders(folder / names[0]):
            return folder
        folder = folder / names[0]


def _without_splits(
    dataset: str,
    folder: Path,
    names: list[str],
    split_like: list[str],
    chosen: dict[str, str],
    notes: list[str],
    root: Path | None,
) -> Parts:
    """Class folders only; those named like a split are classes only beside others and where one split is meant."""
    if chosen:
        raise BadRequest(f"{folder} has {' and '.join(chosen.values())} but no train folder")
    if split_like and (len(split_like) > 1 or set(split_like) == set(names)):
        raise BadRequest(
            f"{folder} has folders {', '.join(map(repr, split_like))}, which look like splits, but no folder per "
            "class lies in them; put the images into a folder per class in each, or rename the folders if they are "
            "classes"
        )
    notes += [f"folder {name!r} looks like a split but holds images itself: read as a class" for name in split_like]
    whole, skipped = _class_folders(dataset, "all", folder, root=root)
    return Parts({"all": whole}, [*notes, *skipped_note(skipped, str(folder))])


def _split_parts(
    dataset: str,
    folder: Path,
    chosen: dict[str, str],
    flat: dict[str, str],
    notes: list[str],
    root: Path | None,
) -> Parts:
    """One image set per split folder; `flat` are split folders of images without class folders."""
    parts, skipped = Parts(), Counter[str]()
    for split in (split for split in SPLITS if split in chosen):
        place = _unwrapped_split(folder / chosen[split])
        if split != "train" and (unlabelled := _only_unlabelled(place, parts["train"].class_names)):
            flat[split] = unlabelled
            continue
        part, more = _class_folders(dataset, split, place, below=folder, root=root)
        skipped += more
        parts[split] = _with_classes_of(parts.get("train", part), part, folder / chosen["train"], place)
    parts.notes += [*notes, *skipped_note(skipped, str(folder))]
    for split, name in flat.items():
        parts.without_labels(split, f"images of folder {name!r} lie in no class folders")
    return parts


def _with_classes_of(train: ImageSet, part: ImageSet, train_folder: Path, folder: Path) -> ImageSet:
    """A split with the class names of train, which may be written otherwise there (accents, spaces at the end).

    Raises:
        BadRequest: other classes than in train; the first few are named.
    """
    if part.class_names == train.class_names:
        return part
    number_of = {_plain(name): number for number, name in enumerate(train.class_names)}
    own = [_plain(name) for name in part.class_names]
    if len(number_of) < len(train.class_names) or sorted(own) != sorted(number_of):
        other = sorted(set(part.class_names) ^ set(train.class_names))[:3]
        raise BadRequest(f"{folder} and {train_folder} differ in their classes: {', '.join(map(repr, other))}")
    labels = np.array([number_of[name] for name in own])[part.labels]
    return replace(part, labels=labels, class_names=train.class_names)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _unwrapped_split(folder: Path) -> Path:
    """Kaggle's `seg_train/seg_train`: a split folder that holds one folder, which holds the class folders."""
    names = visible_folders(folder)
    return folder / names[0] if len(names) == 1 and holds_class_folders(folder / names[0]) else folder


def _only_unlabelled(folder: Path, class_names: Sequence[str]) -> str | None:
    """The folder's name where all its images lie in one sub-folder that is not a class: Keras' test/unknown."""
    names = visible_folders(folder)
    return f"{folder.name}/{names[0]}" if len(names) == 1 and names[0] not in class_names else None


def read_table(file: Path, fields: int) -> list[list[str]]:
    """Lines of `fields` space-separated values (the last may hold spaces), comments left out; BadRequest otherwise."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        row = line.split(maxsplit=fields - 1)
        if len(row) != fields:
            raise BadRequest(f"{file} line {number} has {len(row)} fields, not {fields}: {line.strip()!r}")
        rows.append(row)
    repeated = [key for key, count in Counter(row[0] for row in rows).items() if count > 1]
    if repeated:
        raise BadRequest(f"{file} names {repeated[0]} {Counter(row[0] for row in rows)[repeated[0]]} times")
    return rows
