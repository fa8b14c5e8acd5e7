"""The galleries of thumbnails on the page of `schane embed`: neighbours, hardest negatives, mixed-up classes."""

from collections.abc import Sequence
from html import escape

import numpy as np

from schane_cli.commands.embed import Embedded, View
from schane_cli.metrics.separation import ClassPair, confused_pairs
from schane_cli.reports.html import paragraph, section
from schane_cli.reports.thumbnails import Sheet

N_NEIGHBOUR_ROWS = 10
N_HARD = 12
N_CLASS_PAIRS = 8
N_PER_CLASS_PAIR = 4


def examples(embedded: Embedded, thumbnails: Sheet) -> list[str]:
    """A section of each kind, by checkpoint where there are several."""
    kinds = (
        ("Hardest negatives", HARD_NOTE, hardest_negatives),
        ("Classes that the embedding mixes up", MIXED_NOTE, mixed_classes),
        ("Nearest neighbours", NEIGHBOUR_NOTE, nearest_neighbours),
    )
    found = []
    for heading, note, gallery in kinds:
        parts = [paragraph(note, "note")]
        for view in embedded.views:
            name = f"<h3>{escape(view.name)}</h3>" if len(embedded.views) > 1 else ""
            parts.append(name + gallery(embedded, view, thumbnails))
        found.append(section(heading, *parts))
    return found


HARD_NOTE = "The pairs of different classes that the embedding holds most alike."
MIXED_NOTE = (
    "By the share of both classes' ten nearest neighbours that belong to the other one, with their closest pairs."
)
NEIGHBOUR_NOTE = (
    "One image a class, drawn at random, and its nearest by cosine; a ring in the second colour is another class."
)


def thumb(index: int, thumbnails: Sheet, title: str, kind: str = "") -> str:
    """A thumbnail as HTML."""
    row, column = divmod(index, thumbnails.columns)
    return f'<span class="thumb {kind}" title="{escape(title)}" style="--x:{column};--y:{row}"></span>'


def hard_pairs(view: View, rows: Sequence[int] | np.ndarray, most: int) -> list[tuple[int, int]]:
    """Of the images `rows` and their hardest negatives the most similar pairs, each pair once."""
    pairs = view.analysis.pairs
    ordered = sorted((int(row) for row in rows), key=lambda row: -pairs.hardest_negative_cosine[row])
    found: dict[tuple[int, int], None] = {}
    for row in ordered:
        other = int(pairs.hardest_negative[row])
        found.setdefault((min(row, other), max(row, other)))
        if len(found) == most:
            break
    return list(found)


def _pair(embedded: Embedded, view: View, pair: tuple[int, int], thumbnails: Sheet) -> str:
    images = embedded.images
    both = (thumb(i, thumbnails, f"{images.ids[i]}: {images.class_names[images.labels[i]]}") for i in pair)
    return f'<span class="pair">{"".join(both)}</span>'


def hardest_negatives(embedded: Embedded, view: View, thumbnails: Sheet) -> str:
    """The N_HARD most similar pairs of different classes."""
    images, cells = embedded.images, []
    unit = view.vectors / np.linalg.norm(view.vectors, axis=1, keepdims=True)
    for a, b in hard_pairs(view, np.arange(len(images)), N_HARD):
        names = " and ".join(images.class_names[images.labels[i]] for i in (a, b))
        text = f"{names}, cosine {float(unit[a] @ unit[b]):.3f}"
        cells.append(
            f'<figure><div class="row">{_pair(embedded, view, (a, b), thumbnails)}</div>'
            f"<figcaption>{escape(text)}</figcaption></figure>"
        )
    return f'<div class="gallery">{"".join(cells)}</div>'


def mixed_classes(embedded: Embedded, view: View, thumbnails: Sheet) -> str:
    """The class pairs with the largest share of each other's neighbours."""
    pairs = confused_pairs(embedded.images.labels, view.analysis.pairs.neighbours, N_CLASS_PAIRS)
    if not pairs:
        return paragraph("None: every image's ten nearest neighbours are of its own class.")
    return f'<div class="gallery wide">{"".join(_mixed(embedded, view, pair, thumbnails) for pair in pairs)}</div>'


def _mixed(embedded: Embedded, view: View, pair: ClassPair, thumbnails: Sheet) -> str:
    images, hardest = embedded.images, view.analysis.pairs.hardest_negative
    labels = images.labels
    between = ((labels == pair.first) & (labels[hardest] == pair.second)) | (
        (labels == pair.second) & (labels[hardest] == pair.first)
    )
    closest = hard_pairs(view, np.flatnonzero(between), N_PER_CLASS_PAIR)
    names = " and ".join(images.class_names[label] for label in (pair.first, pair.second))
    shown = "".join(_pair(embedded, view, found, thumbnails) for found in closest)
    caption = f"{names}: {100 * pair.share:.1f} % of their nearest neighbours"
    return f'<figure><div class="row">{shown}</div><figcaption>{escape(caption)}</figcaption></figure>'


def nearest_neighbours(embedded: Embedded, view: View, thumbnails: Sheet) -> str:
    """One image of each of up to N_NEIGHBOUR_ROWS classes, the same for every checkpoint, with its neighbours."""
    images, pairs, cells = embedded.images, view.analysis.pairs, []
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
        cells.append(f'<figure><div class="row">{"".join(row)}</div><figcaption>{escape(name)}</figcaption></figure>')
    return f'<div class="gallery wide">{"".join(cells)}</div>'
