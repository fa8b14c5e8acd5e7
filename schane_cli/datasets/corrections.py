"""What a user corrects in a source: images to leave out, images to relabel."""

from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np

from schane_cli.datasets.parts import Parts
from schane_cli.datasets.tables import read_table_file
from schane_cli.errors import BadRequest, nearest
from schane_cli.images.imageset import Files, ImageSet
from schane_cli.recipe import DataRecipe


def corrected(parts: Parts, recipe: DataRecipe) -> Parts:
    """The parts without the images of `data.exclude`, and with the classes of `data.relabel`; notes say how many.

    An image is named by its id, as reports and `data check --write` show it, or by its path.

    Raises:
        BadRequest: a list that cannot be read, or a class that the source does not have.
    """
    if recipe.relabel is not None:
        parts = _relabelled(parts, recipe.relabel.expanduser())
    if recipe.exclude is not None:
        parts = _without(parts, recipe.exclude.expanduser())
    return parts


def _without(parts: Parts, file: Path) -> Parts:
    rows, _ = read_table_file(file, ("path",))
    excluded = {row["path"] for row in rows}
    kept = Parts(notes=parts.notes)
    matched: set[str] = set()
    for split, part in parts.items():
        places = _places(part, excluded)
        matched |= places.keys()
        left = np.setdiff1d(np.arange(len(part)), list(places.values()))
        kept[split] = part.subset(left, part.split) if places else part
    _require_match(matched, excluded, file, parts)
    kept.notes.append(f"{len(matched):,} images left out by {file}{_unmatched(excluded - matched)}")
    return kept


def _relabelled(parts: Parts, file: Path) -> Parts:
    rows, lines = read_table_file(file, ("path", "label"))
    class_of = {row["path"]: (row["label"], line) for row, line in zip(rows, lines, strict=True)}
    changed = Parts(notes=parts.notes)
    matched: set[str] = set()
    for split, part in parts.items():
        places = _places(part, class_of.keys())
        labels = part.labels.copy()
        for path, place in places.items():
            label, line = class_of[path]
            labels[place] = _class_number(part, label, f"{file} line {line}")
        matched |= places.keys()
        changed[split] = part.relabelled(labels)
    _require_match(matched, class_of.keys(), file, parts)
    changed.notes.append(
        f"{len(matched):,} images given another class by {file}{_unmatched(class_of.keys() - matched)}"
    )
    return changed


def _class_number(part: ImageSet, label: str, where: str) -> int:
    if label not in part.class_names:
        raise BadRequest(f"{where}: {label!r} is not a class of {part.dataset}{nearest(label, part.class_names)}")
    return part.class_names.index(label)


def _places(part: ImageSet, wanted: AbstractSet[str]) -> dict[str, int]:
    """Where the wanted images are in a set: by id, or by absolute path, or by path from the working folder."""
    places = {name: index for index, name in enumerate(part.ids) if name in wanted}
    if len(places) == len(wanted) or not isinstance(part.images, Files):
        return places
    folder = part.images.folder.resolve()
    below = {}
    for name in wanted - places.keys():
        path = Path(name).expanduser().resolve()
        if path.is_relative_to(folder):
            below[path.relative_to(folder).as_posix()] = name
    return places | {below[name]: index for index, name in enumerate(part.ids) if name in below}


def _require_match(matched: set[str], wanted: AbstractSet[str], file: Path, parts: Parts) -> None:
    """BadRequest for a list that names images, but none of this dataset."""
    if wanted and not matched:
        dataset = next(iter(parts.values())).dataset
        raise BadRequest(f"{file} names no image of {dataset} (its first is {min(wanted)}); it is of another dataset")


def _unmatched(names: set[str]) -> str:
    return f"; {len(names):,} of its paths name no image here, such as {min(names)}" if names else ""
