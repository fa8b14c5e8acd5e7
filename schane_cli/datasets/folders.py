"""Image files into image sets: class folders, lists of files, and CSV files of path and label."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from schane_cli.errors import BadRequest
from schane_cli.images.imageset import IMAGE_SUFFIXES, Files, ImageSet, Names, decode_if_small

SPLIT_NAMES = ("train", "val", "test")


def listed_set(
    dataset: str, split: str, folder: Path, names: Sequence[str], labels: Iterable[int], class_names: Sequence[str]
) -> ImageSet:
    """The files `names` below `folder`, all of which must be there; BadRequest names one that is not."""
    require_files(folder, names)
    files = Files(folder, Names(names))
    values = np.fromiter(labels, dtype=np.int64, count=len(names))
    return ImageSet(dataset, split, decode_if_small(files), values, tuple(class_names), files.names)


def require_files(folder: Path, names: Sequence[str]) -> None:
    """Every listed file exists. Folders are listed once each, since asking for a million files takes minutes."""
    present: dict[str, set[str]] = {}
    lacking = []
    for name in names:
        parent, _, file = name.rpartition("/")
        if parent not in present:
            place = folder / parent
            present[parent] = set(os.listdir(place)) if place.is_dir() else set()
        if file not in present[parent]:
            lacking.append(name)
    if lacking:
        raise BadRequest(
            f"{folder / lacking[0]} is missing, as are {len(lacking) - 1} more of {len(names)} listed files"
        )


def class_folder_set(
    dataset: str, split: str, folder: Path, *, below: Path | None = None, only: Sequence[str] | None = None
) -> ImageSet:
    """One class a sub-folder of `folder`, in alphabetical order; files are found at any depth.

    `below` is the folder that the images' ids are relative to (default `folder`); `only` restricts the classes.

    Raises:
        BadRequest: fewer than two class folders, one without images or not there, an unreadable image.
    """
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if only is not None:
        lacking = sorted(set(only) - set(classes))
        if lacking:
            raise BadRequest(f"class folder {folder / lacking[0]} is missing, as are {len(lacking) - 1} more")
        classes = list(only)
    if len(classes) < 2:
        raise BadRequest(f"{folder} needs at least two class folders, found {len(classes)}")
    base = below or folder
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = images_below(folder / name, base)
        if not found:
            raise BadRequest(f"class folder {folder / name} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        names += found
        labels += [label] * len(found)
    files = Files(base, Names(names))
    return ImageSet(dataset, split, decode_if_small(files), np.array(labels), tuple(classes), files.names)


def images_below(folder: Path, base: Path) -> list[str]:
    """Paths, relative to `base`, of the image files in `folder` and below, in alphabetical order."""
    found: list[str] = []
    for place, _, files in os.walk(folder):
        prefix = os.path.relpath(place, base).replace(os.sep, "/")
        found += [f"{prefix}/{file}" for file in files if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES]
    return sorted(name for name in found if not name.rpartition("/")[2].startswith("."))


def folder_parts(dataset: str, folder: Path) -> dict[str, ImageSet]:
    """Class folders under train/ [val/] [test/], or class folders alone (`all`)."""
    if not folder.is_dir():
        raise BadRequest(f"dataset folder {folder} does not exist")
    present = [name for name in SPLIT_NAMES if (folder / name).is_dir()]
    if "train" not in present:
        if present:
            raise BadRequest(f"{folder} has {' and '.join(present)} but no train folder")
        return {"all": class_folder_set(dataset, "all", folder)}
    parts = {name: class_folder_set(dataset, name, folder / name, below=folder) for name in present}
    for name, part in parts.items():
        if part.class_names != parts["train"].class_names:
            other = sorted(set(part.class_names) ^ set(parts["train"].class_names))[:3]
            raise BadRequest(f"{folder / name} and {folder / 'train'} differ in their classes: {', '.join(other)}")
    return parts


def csv_parts(dataset: str, file: Path) -> dict[str, ImageSet]:
    """Images listed in a CSV of path,label[,split] with a header; paths are relative to the file's folder.

    Raises:
        BadRequest: no such file, a column that lacks, a row of another length, an image named twice, an unknown
            split, a class of val or test that train lacks, a file that is missing.
    """
    rows = read_csv(file, ("path", "label"))
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 2):
        row["path"] = os.path.normpath(row["path"]).replace(os.sep, "/")
        if row["path"] in seen:
            raise BadRequest(f"{file} line {number} names {row['path']} again; line {seen[row['path']]} did")
        if row.get("split", "train") not in SPLIT_NAMES:
            raise BadRequest(f"{file} line {number}: unknown split {row['split']!r}; allowed: train, val, test")
        seen[row["path"]] = number
    class_names = sorted({row["label"] for row in rows})
    if len(class_names) < 2:
        raise BadRequest(f"{file} needs at least two labels, found {len(class_names)}")
    label_of = {name: label for label, name in enumerate(class_names)}
    splits = SPLIT_NAMES if "split" in rows[0] else ("all",)
    parts = {}
    for split in splits:
        chosen = [row for row in rows if row.get("split", "all") == split]
        if chosen:
            labels = [label_of[row["label"]] for row in chosen]
            parts[split] = listed_set(dataset, split, file.parent, [r["path"] for r in chosen], labels, class_names)
    _require_trained_classes(file, parts, class_names)
    return parts


def _require_trained_classes(file: Path, parts: dict[str, ImageSet], class_names: list[str]) -> None:
    if "all" in parts:
        return
    if "train" not in parts:
        raise BadRequest(f"{file} lists no image of split train")
    lacking = set(range(len(class_names))) - set(parts["train"].labels.tolist())
    if lacking:
        raise BadRequest(f"{file}: class {class_names[min(lacking)]!r} has no image in train")


def read_csv(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV with a header that names at least `columns`; BadRequest with file and line otherwise."""
    try:
        with file.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle, skipinitialspace=True)
            rows, header = list(reader), list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadRequest(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    lacking = [name for name in columns if name not in header]
    if lacking:
        raise BadRequest(f"{file} has no column {lacking[0]!r}; its first line must be {','.join(columns)}")
    if not rows:
        raise BadRequest(f"{file} lists no images")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise BadRequest(f"{file} line {number} has not the {len(header)} fields of the header")
    return rows


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
