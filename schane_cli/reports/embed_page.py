"""What the page of `schane embed` carries for its script: points, neighbours, predictions and charts, packed."""

from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import numpy as np

from schane_cli.commands.embed import Embedded, View
from schane_cli.metrics.neighbours import HISTOGRAM_BINS
from schane_cli.metrics.registry import METRICS, PLAIN_SHARE
from schane_cli.metrics.resampling import Floats, Ints
from schane_cli.metrics.separation import class_similarity, similarity_order
from schane_cli.reports import plots
from schane_cli.reports.thumbnails import Sheet

COSINE_STEPS = 100  # in which embed.js reads a neighbour's cosine, one byte each
SHOWN_NEIGHBOURS = 8
SHOWN_BINS = 100


@dataclass(frozen=True)
class Charts:
    """What pictures and page draw alike, one entry per checkpoint.

    `order`: classes that have images, like beside like by the first checkpoint; `similarities` (C, C) in that order;
    `centres` (100,) and `histograms` of shares (positive, negative); `spectra`: singular values over the largest.
    """

    order: Ints
    similarities: list[Floats]
    centres: Floats
    histograms: list[tuple[Floats, Floats]]
    spectra: list[Floats]


def charts(embedded: Embedded) -> Charts:
    """Histograms, class similarities and spectra of every checkpoint."""
    labels, n_classes = embedded.images.labels, len(embedded.images.class_names)
    similarities = [class_similarity(view.vectors, labels, n_classes) for view in embedded.views]
    there = np.flatnonzero(np.bincount(labels, minlength=n_classes))
    order = there[similarity_order(similarities[0][np.ix_(there, there)])]
    return Charts(
        order=order,
        similarities=[matrix[np.ix_(order, order)] for matrix in similarities],
        centres=np.linspace(-1, 1, SHOWN_BINS, endpoint=False) + 1 / SHOWN_BINS,
        histograms=[_histograms(view) for view in embedded.views],
        spectra=[view.analysis.singular_values / view.analysis.singular_values[0] for view in embedded.views],
    )


def _histograms(view: View) -> tuple[Floats, Floats]:
    pairs = view.analysis.pairs
    both = np.stack([pairs.positive_histogram, pairs.negative_histogram]).astype(np.float64)
    coarse = both.reshape(2, SHOWN_BINS, HISTOGRAM_BINS // SHOWN_BINS).sum(axis=2)
    positive, negative = coarse / np.maximum(coarse.sum(axis=1, keepdims=True), 1)
    return positive, negative


def page_data(embedded: Embedded, chart_data: Charts, thumbnails: Sheet) -> dict[str, Any]:
    """What embed.js reads as JSON; arrays travel as base64 of their little-endian bytes."""
    images = embedded.images
    first_bin = min(int(np.flatnonzero(np.add(*pair))[0]) for pair in chart_data.histograms)
    ranges = [(np.nanmin(matrix), np.nanmax(matrix)) for matrix in chart_data.similarities]
    names = images.class_names
    return {
        "ids": list(images.ids),
        "classes": [{"name": name, "color": plots.class_color(i, len(names))} for i, name in enumerate(names)],
        "labels": packed(images.labels, "<u2"),
        "columns": thumbnails.columns,
        "share_unit": PLAIN_SHARE.unit,
        "k": _neighbour_count(embedded.views[0]),
        "order": chart_data.order.tolist(),
        "cosine_range": [float(chart_data.centres[first_bin]) - 0.02, 1.0],
        "similarity_range": [float(min(low for low, _ in ranges)), float(max(high for _, high in ranges))],
        "views": [_view_data(view, chart_data, number) for number, view in enumerate(embedded.views)],
    }


def _neighbour_count(view: View) -> int:
    return min(SHOWN_NEIGHBOURS, view.analysis.pairs.neighbours.shape[1])


def _view_data(view: View, chart_data: Charts, number: int) -> dict[str, Any]:
    pairs, k = view.analysis.pairs, _neighbour_count(view)
    positive, negative = chart_data.histograms[number]
    spectrum = chart_data.spectra[number]
    return {
        "name": view.name,
        "prediction": packed(view.prediction, "<u2"),
        "confidence": packed(np.floor(METRICS["confidence"].scale * view.confidence), "u1"),
        "tsne": packed(view.tsne, "<f4"),
        "pca": packed(view.pca.points, "<f4"),
        "pca_share": [PLAIN_SHARE.number(share) for share in view.pca.variance_share],
        "neighbours": packed(pairs.neighbours[:, :k], "<u4" if len(view.vectors) > 65_536 else "<u2"),
        "cosines": packed(np.round(COSINE_STEPS * pairs.neighbour_cosines[:, :k]), "i1"),
        "histogram": {
            "centres": chart_data.centres.round(4).tolist(),
            "positive": (PLAIN_SHARE.scale * positive).round(4).tolist(),
            "negative": (PLAIN_SHARE.scale * negative).round(4).tolist(),
        },
        "similarity": packed(chart_data.similarities[number], "<f4"),
        "spectrum": [float(f"{value:.4g}") for value in spectrum[spectrum > plots.NEGLIGIBLE]],
    }


def packed(values: Floats | Ints, kind: str) -> str:
    """The array as base64 of its bytes in the given little-endian type."""
    return b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode()
