"""The galleries of thumbnails on the page of `schane embed`: neighbours, hardest negatives, mixed-up classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from schane_cli.commands.embed import Embedded, View
from schane_cli.metrics.registry import PLAIN_SHARE
from schane_cli.metrics.separation import ClassPair, confused_pairs
from schane_cli.reports.thumbnails import Sheet

N_NEIGHBOUR_ROWS = 10
N_HARD = 12
N_CLASS_PAIRS = 8
N_PER_CLASS_PAIR = 4
HARD_NOTE = "The pairs of different classes that the embedding finds most similar."
MIXED_NOTE = (
    "By the share of both classes' ten nearest neighbours that belong to the other one, with their closest pairs."
)
NEIGHBOUR_NOTE = (
    "One image per class, drawn at random, and its nearest by cosine; a ring in the second colour is another class."
)


@dataclass(frozen=True)
class Thumb:
    """A thumbnail by its place in the sheet; `kind` is its ring: query, same (class), other or none."""

    column: int
    row: int
    title: str
    kind: str = ""


@dataclass(frozen=True)
class Tile:
    """Thumbnails with one caption; those of a group are close together."""

    groups: list[list[Thumb]]
    caption: str


def examples(embedded: Embedded, thumbnails: Sheet) -> list[dict[str, Any]]:
    """The galleries, each with its heading, note, and one list of tiles per checkpoint."""
    kinds = (
        ("Hardest negatives", HARD_NOTE, "", hardest_negatives),
        ("Classes that the embedding mixes up", MIXED_NOTE, "wide", mixed_classes),
        ("Nearest neighbours", NEIGHBOUR_NOTE, "wide", nearest_neighbours),
    )
    return [
        {
            "heading": heading,
            "note": note,
            "kind": kind,
            "views": [(view.name, gallery(embedded, view, thumbnails)) for view in embedded.views],
        }
        for heading, note, kind, gallery in kinds
    ]


def thumb(index: int, thumbnails: Sheet, title: str, kind: str = "") -> Thumb:
    """The thumbnail of image `index`."""
    row, column = divmod(index, thumbnails.columns)
    return Thumb(column, row, title, kind)


def hard_pairs(view: View, rows: Sequence[int] | np.ndarray, most: int) -> list[tuple[int, int]]:
    """Of the images `rows` and their hardest negatives the most similar pairs, each pair once."""
    pairs = view.analysis.pairs
    ordered = sorted((int(row) for row in rows), key=lambda row: -pairs.hardest_negative_cosine[row])
    unique: dict[tuple[int, int], None] = {}
    for row in ordered:
        other = int(pairs.hardest_negative[row])
        unique.setdefault((min(row, other), max(row, other)))
        if len(unique) == most:
            break
    return list(unique)


def _pair(embedded: Embedded, pair: tuple[int, int], thumbnails: Sheet) -> list[Thumb]:
    images = embedded.images
    return [thumb(i, thumbnails, f"{images.ids[i]}: {images.class_names[images.labels[i]]}") for i in pair]


def hardest_negatives(embedded: Embedded, view: View, thumbnails: Sheet) -> list[Tile]:
    """The N_HARD most similar pairs of different classes."""
    images, tiles = embedded.images, []
    unit = view.vectors / np.linalg.norm(view.vectors, axis=1, keepdims=True)
    for a, b in hard_pairs(view, np.arange(len(images)), N_HARD):
        names = " and ".join(images.class_names[images.labels[i]] for i in (a, b))
        tiles.append(Tile([_pair(embedded, (a, b), thumbnails)], f"{names}, cosine {float(unit[a] @ unit[b]):.3f}"))
    return tiles


def mixed_classes(embedded: Embedded, view: View, thumbnails: Sheet) -> list[Tile]:
    """The class pairs with the largest share of each other's neighbours; none where the embedding mixes none up."""
    pairs = confused_pairs(embedded.images.labels, view.analysis.pairs.neighbours, N_CLASS_PAIRS)
    return [_mixed(embedded, view, pair, thumbnails) for pair in pairs]


def _mixed(embedded: Embedded, view: View, pair: ClassPair, thumbnails: Sheet) -> Tile:
    images, hardest = embedded.images, view.analysis.pairs.hardest_negative
    labels = images.labels
    between = ((labels == pair.first) & (labels[hardest] == pair.second)) | (
        (labels == pair.second) & (labels[hardest] == pair.first)
    )
    closest = hard_pairs(view, np.flatnonzero(between), N_PER_CLASS_PAIR)
    names = " and ".join(images.class_names[label] for label in (pair.first, pair.second))
    groups = [_pair(embedded, both, thumbnails) for both in closest]
    return Tile(groups, f"{names}: {PLAIN_SHARE.text(pair.share)} of their nearest neighbours")


def nearest_neighbours(embedded: Embedded, view: View, thumbnails: Sheet) -> list[Tile]:
    """One image of each of up to N_NEIGHBOUR_ROWS classes, the same for every checkpoint, with its neighbours."""
    images, pairs, tiles = embedded.images, view.analysis.pairs, []
    rng = np.random.default_rng(embedded.summary["seed"])
    there = np.unique(images.labels)
    for label in np.sort(rng.choice(there, min(len(there), N_NEIGHBOUR_ROWS), replace=False)):
        query = int(rng.choice(np.flatnonzero(images.labels == label)))
        name = images.class_names[label]
        row = [thumb(query, thumbnails, f"{images.ids[query]}: {name}", "query")]
        for other, cosine in zip(pairs.neighbours[query, :8], pairs.neighbour_cosines[query, :8], strict=True):
            same = "same" if images.labels[other] == label else "other"
            title = f"{images.class_names[images.labels[other]]}, cosine {cosine:.3f}"
            row.append(thumb(int(other), thumbnails, title, same))
        tiles.append(Tile([row], name))
    return tiles
