"""The page of `schane embed`, its pictures for papers, and its table on the terminal."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from schane_cli.commands.embed import Embedded, View
from schane_cli.commands.embed_again import read_embedded
from schane_cli.metrics.embedding import PairedDifference
from schane_cli.metrics.intervals import Estimate
from schane_cli.metrics.registry import Metric, metric
from schane_cli.reports import plots
from schane_cli.reports.embed_examples import examples
from schane_cli.reports.embed_page import Charts, charts, page_data
from schane_cli.reports.pages import Picture, data_url, write_page
from schane_cli.reports.thumbnails import Sheet, read_sheet, sheet
from schane_cli.terminal import Task, Terminal, figures_table

# The metrics that the terminal shows; the page has them all.
MAIN_METRICS = (
    "kNN accuracy, k=10",
    "linear-probe accuracy",
    "mAP@R",
    "AUC of positive over negative cosines",
    "average cosine, within class",
    "average cosine of negative pairs",
    "alignment, within class",
    "uniformity",
    "silhouette",
    "NMI of k-means",
    "NC1",
    "effective rank",
    "IsoScore",
    "isotropy",
    "isotropy, within class",
)
PLOTLY = Path(__file__).parent / "plotly"
DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "none": "no direction"}


def embed_report(embedded: Embedded, terminal: Terminal) -> None:
    """Draw the pictures, write report.html, and show the main metrics."""
    with terminal.task("thumbnails", len(embedded.images), "img") as task:
        thumbnails = sheet(embedded.images, task.advance)
    embedded.run.thumbnails.write_bytes(thumbnails.webp)
    _write(embedded, thumbnails, terminal)


def embed_report_again(run: Path, terminal: Terminal) -> None:
    """The same from the run folder alone."""
    embedded = read_embedded(run, terminal)
    file = embedded.run.thumbnails
    thumbnails = read_sheet(file, len(embedded.images)) if file.is_file() else sheet(embedded.images)
    _write(embedded, thumbnails, terminal)


def _write(embedded: Embedded, thumbnails: Sheet, terminal: Terminal) -> None:
    chart_data = charts(embedded)
    suffixes = ("png", *embedded.options.figure_formats)
    with terminal.task("drawing", 5 * len(suffixes), "figure") as task:
        for suffix in suffixes:
            draw(embedded, chart_data, suffix, task)
    page = write_embed_page(embedded, chart_data, thumbnails)
    for table in tables(embedded):
        terminal.table(table)
    if embedded.differences:
        terminal.say("better: significant at 5 % after Holm's adjustment for the number of metrics compared")
    terminal.say(f"report: {page}")


def draw(embedded: Embedded, chart_data: Charts, suffix: str, task: Task) -> None:
    """Write the figures/*.<suffix>: t-SNE, PCA, cosine histograms, class similarity and spectrum."""
    images, views = embedded.images, embedded.views
    names = [view.name for view in views]
    ordered = [images.class_names[label] for label in chart_data.order]
    drawn = {
        "tsne": lambda: plots.embedding_scatter(
            [(view.name, view.tsne) for view in views], images.labels, images.class_names, ("t-SNE 1", "t-SNE 2")
        ),
        "pca": lambda: plots.embedding_scatter(
            [(view.name, view.pca.points) for view in views], images.labels, images.class_names, ("PCA 1", "PCA 2")
        ),
        "cosines": lambda: plots.cosine_histograms(
            [(name, *pair) for name, pair in zip(names, chart_data.histograms, strict=True)], chart_data.centres
        ),
        "similarity": lambda: plots.similarity_heatmap(list(zip(names, chart_data.similarities, strict=True)), ordered),
        "spectrum": lambda: plots.spectrum(list(zip(names, chart_data.spectra, strict=True))),
    }
    for name, figure in drawn.items():
        plots.save(figure(), embedded.run.figures / f"{name}.{suffix}")
        task.advance()


def write_embed_page(embedded: Embedded, chart_data: Charts, thumbnails: Sheet) -> Path:
    """Fill the page from what has been measured and drawn."""
    names = [view.name for view in embedded.views]
    return write_page(
        embedded.run.path,
        "embed",
        title=title(embedded),
        lead=lead(embedded),
        names=names,
        sheet={"source": data_url(thumbnails.webp, "webp"), "columns": thumbnails.columns, "edges": thumbnails.edges},
        still=Picture(data_url((embedded.run.figures / "tsne.png").read_bytes(), "png"), "t-SNE"),
        picture_note=picture_note(embedded),
        differences=[_differences(embedded, i) for i in range(len(embedded.differences))],
        metrics=_metrics_table(embedded),
        charts=_chart_places(names, len(embedded.images)),
        charts_note=CHARTS_NOTE,
        examples=examples(embedded, thumbnails),
        checkpoints=(CHECKPOINT_COLUMNS, [_checkpoint_row(view) for view in embedded.views]),
        data=page_data(embedded, chart_data, thumbnails),
        plotly=b64encode((PLOTLY / "plotly.min.js.gz").read_bytes()).decode(),
    )


CHECKPOINT_COLUMNS = ("name", "checkpoint", "epoch", "backbone", "loss", "seed", "dimensions")
METRICS_NOTE = (
    "Intervals are 95 %, over images. Open a metric for its definition, source, choices, and how its interval is made "
    "or why it has none. A click on a column's head sorts."
)
CHARTS_NOTE = (
    "Pairs of images by their cosine, as shares of all pairs of a kind. Classes against classes by the mean cosine of "
    "two images, similar classes together (average-linkage clustering). Singular values of the embeddings as they are."
)


def title(embedded: Embedded) -> str:
    """Data, layer and checkpoints in one line."""
    names = " and ".join(view.name for view in embedded.views)
    return f"Embeddings of {embedded.summary['dataset']} {embedded.options.split} by {names}"


def lead(embedded: Embedded) -> str:
    """What is on the page, and the metric that most people look for first."""
    options, images = embedded.options, embedded.images
    parts = []
    for view in embedded.views:
        metrics = view.analysis.metrics
        key = next(key for key in ("kNN accuracy, k=10", "kNN accuracy, k=1") if key in metrics)
        parts.append(f"{view.name}: {key} {metric(key).text(metrics[key].value, metrics[key].ci95)}")
    shown = f"{len(images):,} images of {embedded.summary['n_classes']} classes"
    of = f", drawn from {embedded.n_images:,}" if embedded.n_images > len(images) else ""
    return f"{shown}{of}; layer: {options.layer}, {embedded.views[0].vectors.shape[1]} dimensions. {'; '.join(parts)}."


def picture_note(embedded: Embedded) -> str:
    """How the points were placed."""
    return (
        f"t-SNE with perplexity {embedded.summary['tsne_perplexity']:g} and seed {embedded.summary['seed']}, "
        "started from PCA, on exact Euclidean neighbours in all dimensions (openTSNE, one thread); distances between "
        "far groups mean nothing. A cross is a misclassified image. Neighbours are by cosine."
    )


def _chart_places(names: Sequence[str], n: int) -> list[dict[str, str]]:
    """Places for cosine histograms, heat maps and spectrum, those of a kind beside one another."""
    places = []
    for kind, css, heading in (
        ("histogram", "chart", "cosines of pairs"),
        ("heatmap", "heatmap", "classes against classes"),
    ):
        for i, name in enumerate(names):
            suffix = f", {name}" if len(names) > 1 else ""
            places.append({"heading": f"{heading}{suffix}, n = {n:,} images", "place": f"{kind}-{i}", "kind": css})
    return [*places, {"heading": f"spectrum, n = {n:,} images", "place": "spectrum", "kind": "chart"}]


def _checkpoint_row(view: View) -> tuple[Any, ...]:
    known = (view.origin.get(key, "") for key in ("path", "epoch", "backbone", "loss", "seed"))
    return view.name, *known, view.vectors.shape[1]


def _metrics_table(embedded: Embedded) -> dict[str, Any]:
    """One row per metric, one column per checkpoint; the definition folds out of the name."""
    rows = []
    for name, first in embedded.views[0].analysis.metrics.items():
        known = metric(name)
        estimates = (view.analysis.metrics[name] for view in embedded.views)
        cells = [known.text(estimate.value, estimate.ci95) for estimate in estimates]
        rows.append(
            {
                "name": known.label,
                "meaning": (
                    known.definition,
                    f"Choices: {known.choices}.",
                    f"Source: {known.source}.",
                    f"Interval: {known.interval}." if known.interval else f"No interval: {known.no_interval}.",
                ),
                "cells": [*cells, str(first.n), DIRECTIONS[known.direction]],
            }
        )
    columns = ["metric", *(f"{view.name} (95 % interval)" for view in embedded.views), "n", "direction"]
    return {"columns": columns, "rows": rows, "note": METRICS_NOTE}


def _differences(embedded: Embedded, number: int) -> dict[str, Any]:
    """The table of what changed from the first checkpoint to view `number` + 1."""
    first, second = embedded.views[0].name, embedded.views[number + 1].name
    rows = []
    for name, d in embedded.differences[number].items():
        known = metric(name)
        p = "" if d.p_holm is None else f"{d.p_holm:.2g}"
        values = (known.text(d.first), known.text(d.second), known.change_text(d.difference))
        rows.append((known.label, *values, known.change_interval(d.ci95), p, sentence(known, d, second)))
    columns = ("metric", first, second, "difference", "paired 95 % interval", "p", "what changed")
    return {"heading": f"From {first} to {second}", "columns": columns, "rows": rows}


def sentence(known: Metric, d: PairedDifference, second: str) -> str:
    """One sentence: what the difference shows, and what it does not."""
    moved = "Higher" if d.difference > 0 else "Lower"
    if d.p_holm is None:
        return "No interval, so no verdict."
    if d.p_holm >= 0.05:
        return "These images cannot distinguish the difference from zero."
    if known.direction == "none":
        return f"{moved} under {second}; no direction of this metric is better."
    return f"{moved} under {second}, which is {'better' if d.better == 'second' else 'worse'}."


def tables(embedded: Embedded) -> list[Table]:
    """The main metrics for the terminal: one table, or one of the differences for each further checkpoint."""
    first = embedded.views[0]
    if not embedded.differences:
        metrics = first.analysis.metrics
        rows = [_metric_row(name, metrics[name]) for name in MAIN_METRICS if name in metrics]
        heading = f"{first.name}, {embedded.options.layer}, n = {len(embedded.images)}"
        return [figures_table(heading, rows, ("metric", "value", "95 % interval", "better"))]
    return [
        _difference_table(first.name, view.name, differences, len(embedded.images))
        for view, differences in zip(embedded.views[1:], embedded.differences, strict=True)
    ]


def _metric_row(name: str, estimate: Estimate) -> tuple[str, ...]:
    known = metric(name)
    return known.label, known.text(estimate.value), known.interval_text(estimate.ci95), known.direction


def _difference_table(first: str, second: str, differences: dict[str, PairedDifference], n: int) -> Table:
    names = {"first": first, "second": second, "neither": "-"}
    rows = [_difference_row(name, differences[name], names) for name in MAIN_METRICS if name in differences]
    return figures_table(
        f"{second} against {first}, n = {n}", rows, ("metric", first, second, "difference, 95 %", "better")
    )


def _difference_row(name: str, d: PairedDifference, names: dict[str, str]) -> tuple[str, ...]:
    known = metric(name)
    return known.label, known.text(d.first), known.text(d.second), known.change_interval(d.ci95), names[d.better]
