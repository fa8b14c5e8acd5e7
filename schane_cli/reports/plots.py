"""Pictures for paper and page, drawn by matplotlib without a display; each function returns a figure to save.

Every picture says how many images (or pairs, episodes, seeds) it shows, and the units of its axes. Names of classes and
checkpoints come from outside: they are drawn as they are, without mathematics, and shortened where they are long.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from PIL import Image

from schane_cli.metrics.registry import METRICS, PLAIN_SHARE, metric
from schane_cli.terminal import visible

# Letters that are missing from DejaVu come from the first of these that is installed.
FALLBACK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Arial Unicode MS",
)
STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans", *sorted({*FALLBACK_FONTS} & {*get_font_names()}, key=FALLBACK_FONTS.index)],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "savefig.dpi": 150,
    "text.parse_math": False,  # a class may be called $x^
}
DARK_PAPER, DARK_INK = (17, 24, 39), (229, 231, 235)  # the colours of the page on a dark screen
NEGLIGIBLE = 1e-5  # of the largest singular value: about where the rounding of 32-bit embeddings begins
BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#9ca3af"
# Ten colours that can be distinguished on white and on dark paper, neighbours far apart in hue and lightness.
CLASS_COLORS = (
    "#2f7de1", "#e8710a", "#2a9d58", "#d63f3f", "#8b5cf6", "#a16a43", "#e04f9f", "#7d8590", "#a8a117", "#16a5b8",
)  # fmt: skip


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as its suffix says (png, pdf, svg).

    A run folder that was removed meanwhile is not made again, which would leave a folder of pictures alone.
    """
    path.parent.mkdir(exist_ok=True)
    with _boxes_for_unknown_letters():
        figure.savefig(path, bbox_inches="tight")
    return path


def on_dark_paper(path: Path) -> bytes:
    """A saved picture as the bytes of a PNG for dark screens: each colour's lightness is turned over, its hue stays.

    In HSL that adds 1 - max - min to every channel. To draw the figure again would take ten times as long.
    """
    light = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
    turned = light + 1 - light.max(-1, keepdims=True) - light.min(-1, keepdims=True)
    dark = np.array(DARK_PAPER) + turned * np.subtract(DARK_INK, DARK_PAPER)
    buffer = BytesIO()
    Image.fromarray(dark.round().astype(np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@contextmanager
def _boxes_for_unknown_letters() -> Iterator[None]:
    """A letter that no installed font has is drawn as a box, and matplotlib does not warn of each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def short(name: str, most: int = 24) -> str:
    """A name on one line, its middle left out where it has more than `most` characters."""
    name = visible(name, newline=True)
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def training_curves(steps: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss terms by epoch beside val accuracy by epoch, the chosen epoch marked."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        at = [step["epoch"] for step in steps]
        if any(step["contrastive"] for step in steps):
            left.plot(at, [step["contrastive"] for step in steps], color=BLUE, label="contrastive")
        left.plot(at, [step["cross_entropy"] for step in steps], color=ORANGE, label="cross-entropy")
        left.set(
            title=f"training loss at {len(steps)} steps",
            xlabel="epoch",
            ylabel=f"mean over the batch, {METRICS['nll'].unit}",
        )
        left.legend()
        val, numbers = metric("val_accuracy"), [epoch["epoch"] for epoch in epochs]
        accuracies = [epoch["val_accuracy"] for epoch in epochs]
        right.plot(numbers, [val.scale * accuracy for accuracy in accuracies], color=BLUE, marker="o", markersize=3)
        chosen = max((epoch["epoch"] for epoch in epochs if epoch["best"]), default=None)
        if chosen is not None:
            best = accuracies[numbers.index(chosen)]
            right.plot(
                [chosen], [val.scale * best], "o", color=ORANGE, label=f"chosen: epoch {chosen}, {val.text(best)}"
            )
            right.legend(loc="lower right")
        title = f"{val.label}, n = {epochs[0]['val_n']}" if epochs else val.label
        right.set(title=title, xlabel="epoch", ylabel=val.heading)
    return figure


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Row-normalised confusion; counts are written into the cells up to 20 classes."""
    names = [short(name) for name in names]
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        side = min(3 + 0.25 * len(names), 9)
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        axes = figure.subplots()
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        colors = mpl.colors.LinearSegmentedColormap.from_list("share", ["white", BLUE])
        image = axes.imshow(PLAIN_SHARE.scale * shares, cmap=colors, vmin=0, vmax=PLAIN_SHARE.scale)
        figure.colorbar(image, ax=axes, label=f"{PLAIN_SHARE.unit} of the label's images", shrink=0.8)
        axes.set(title=f"confusion, n = {counts.sum():,} images", xlabel="prediction", ylabel="label")
        if len(names) <= 20:
            axes.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0)
            axes.set_yticks(range(len(names)), names)
            for row, column in np.argwhere(counts > 0):
                # black reads well on the blue too, and light when the picture is turned over for dark screens
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color="black", fontsize=7)
    return figure


def reliability(panels: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> Figure:
    """Accuracy against confidence with 95 % intervals, and the images per bin; a panel is (title, bins)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
        grid = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1])
        for (title, bins), upper, lower in zip(panels, *grid, strict=True):
            _reliability(upper, lower, title, bins)
    return figure


def _reliability(upper: Any, lower: Any, title: str, bins: Sequence[Mapping[str, Any]]) -> None:
    accuracy, confidence = METRICS["accuracy"], METRICS["confidence"]
    whole = accuracy.scale
    full = [b for b in bins if b["n"]]
    centre = [confidence.scale * b["confidence"] for b in full]
    value = whole * np.array([b["accuracy"] for b in full])
    low, high = whole * np.array([b["accuracy_ci95"] for b in full]).T if full else (value, value)
    upper.plot([0, whole], [0, whole], "--", color=GREY, label="calibrated")
    # an interval may round to just inside its own value, and matplotlib refuses negative bars
    bars = np.maximum([value - low, high - value], 0)
    upper.errorbar(centre, value, yerr=bars, fmt="o", color=BLUE, markersize=4, capsize=2)
    upper.set(title=f"{title}, n = {sum(b['n'] for b in bins):,}", ylabel=accuracy.heading)
    upper.set(ylim=(-0.02 * whole, 1.02 * whole))
    upper.legend(loc="upper left")
    middles = [confidence.scale * (b["low"] + b["high"]) / 2 for b in bins]
    lower.bar(middles, [b["n"] for b in bins], 0.9 * confidence.scale / len(bins), color=GREY)
    lower.set(xlabel=confidence.heading, ylabel="images", yscale="log" if full else "linear")


def mistakes(wrong: Sequence[tuple[np.ndarray, str]], columns: int = 4) -> Figure:
    """Images (H, W, 3) with a caption each, in rows of four.

    All are in one pair of axes, a cell of 1 by 1.35 each: axes of their own take matplotlib five times as long.
    """
    lines = max(-(-len(wrong) // columns), 1)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(2.0 * columns, 2.7 * lines))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for number, (image, caption) in enumerate(wrong):
            row, column = divmod(number, columns)
            height, width = np.array(image.shape[:2]) / max(image.shape[:2]) * 0.45
            left, low = column + 0.5, 1.35 * (lines - row) - 0.85
            axes.imshow(
                image,
                extent=(left - width, left + width, low - height, low + height),
                interpolation="nearest" if max(image.shape) <= 64 else "antialiased",
            )
            axes.text(left, low + 0.47, caption, ha="center", va="bottom", fontsize=7.5)
        axes.set(xlim=(0, columns), ylim=(0, 1.35 * lines))
    return figure


def corruption_map(accuracies: np.ndarray, names: Sequence[str], clean: float, n: int) -> Figure:
    """Accuracy (kinds, severities) on n images as a heat map with its values in percent; the clean accuracy above."""
    metric = METRICS["accuracy"]
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(5, 0.6 + 0.3 * len(names)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(metric.scale * accuracies, cmap="viridis", vmin=0, vmax=metric.scale, aspect="auto")
        figure.colorbar(image, ax=axes, label=metric.heading)
        axes.set(title=f"by severity, n = {n:,}; clean images {metric.text(clean)}", xlabel="severity")
        axes.set_xticks(range(accuracies.shape[1]), [str(s + 1) for s in range(accuracies.shape[1])])
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        for (row, column), value in np.ndenumerate(accuracies):
            shade = "white" if value < 0.6 else "black"
            axes.text(column, row, f"{metric.scale * value:.0f}", ha="center", va="center", color=shade, fontsize=8)
    return figure


def embedding_scatter(
    panels: Sequence[tuple[str, np.ndarray]], labels: np.ndarray, names: Sequence[str], axes_names: tuple[str, str]
) -> Figure:
    """Points (n, 2) coloured by class, one panel (title, points) per checkpoint; a legend up to 20 classes."""
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(5 * len(panels) + 1, 4.5), layout="constrained")
        shared = len(labels) > 2000
        for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for label in np.unique(labels):
                own = points[labels == label]
                style = {"s": 3 if shared else 10, "linewidths": 0, "alpha": 0.8, "rasterized": shared}
                axes.scatter(*own.T, color=class_color(int(label), len(names)), label=short(names[label]), **style)
            axes.set(
                title=f"{short(title)}, n = {len(labels):,}",
                xlabel=axes_names[0],
                ylabel=axes_names[1],
                xticks=[],
                yticks=[],
            )
        if len(names) <= 20:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", markerscale=2, fontsize=8)
    return figure


def class_color(label: int, n_classes: int) -> str:
    """One colour per class as #rrggbb: a fixed list up to ten, then hues far apart for neighbours in order."""
    if n_classes <= len(CLASS_COLORS):
        return CLASS_COLORS[label]
    hue = (label * 0.618033988749895) % 1  # the golden ratio keeps consecutive hues apart
    red, green, blue = mpl.colors.hsv_to_rgb((hue, 0.75 - 0.25 * (label % 2), 0.62 + 0.14 * (label % 3)))
    return str(mpl.colors.to_hex((red, green, blue)))


def accuracy_by_shots(rows: Sequence[Mapping[str, Any]], ways: int) -> Figure:
    """Few-shot accuracy with its 95 % interval against the number of shots, one line per checkpoint and classifier."""
    metric = METRICS["fewshot_accuracy"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        names = dict.fromkeys((row["checkpoint"], row["classifier"]) for row in rows)
        several = len({checkpoint for checkpoint, _ in names}) > 1
        for checkpoint, classifier in names:
            name = f"{short(checkpoint)}, {classifier}" if several else classifier
            own = [row for row in rows if (row["checkpoint"], row["classifier"]) == (checkpoint, classifier)]
            value = metric.scale * np.array([row["accuracy"] for row in own])
            low, high = metric.scale * np.array([row["accuracy_ci95"] for row in own], dtype=float).T
            bars = np.maximum([value - low, high - value], 0)
            axes.errorbar(
                [row["shots"] for row in own], value, yerr=bars, marker="o", markersize=4, capsize=2, label=name
            )
        axes.axhline(metric.scale / ways, linestyle="--", color=GREY, label="chance")
        axes.set(
            title=f"{ways}-way {metric.label}, n = {rows[0]['accuracy_episodes']:,} episodes",
            xlabel="shots (labelled images per class)",
            ylabel=metric.heading,
            xscale="log",
        )
        shots = sorted({row["shots"] for row in rows})
        axes.set_xticks(shots, [str(number) for number in shots])
        axes.minorticks_off()
        axes.legend(loc="center right")
    return figure


def cosine_histograms(panels: Sequence[tuple[str, np.ndarray, np.ndarray]], centres: np.ndarray) -> Figure:
    """Shares of positive and of negative pairs by cosine, one panel (title, positive, negative) per checkpoint."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.5 * len(panels), 3), layout="constrained")
        width = centres[1] - centres[0]
        for axes, (title, positive, negative) in zip(
            figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True
        ):
            axes.bar(centres, PLAIN_SHARE.scale * negative, width, color=ORANGE, alpha=0.65, label="different class")
            axes.bar(centres, PLAIN_SHARE.scale * positive, width, color=BLUE, alpha=0.65, label="same class")
            filled = centres[(positive > 0) | (negative > 0)]
            axes.set(title=short(title, 40), xlabel="cosine", xlim=(filled.min() - width, 1))
            axes.set(ylabel=f"{PLAIN_SHARE.unit} of pairs")
            axes.legend()
    return figure


def similarity_heatmap(panels: Sequence[tuple[str, np.ndarray]], names: Sequence[str]) -> Figure:
    """Mean cosines of classes, one panel (title, matrix) per checkpoint, all on one scale; names up to 30 classes."""
    names = [short(name) for name in names]
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(4.5 * len(panels) + 1, 4), layout="constrained")
        low = min(float(np.nanmin(matrix)) for _, matrix in panels)
        high = max(float(np.nanmax(matrix)) for _, matrix in panels)
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, matrix) in zip(every, panels, strict=True):
            image = axes.imshow(matrix, cmap="viridis", vmin=low, vmax=high)
            axes.set(title=short(title, 40), xticks=[], yticks=[])
            if len(names) <= 30:
                axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
                axes.set_yticks(range(len(names)), names)
        figure.colorbar(image, ax=list(every), label="mean cosine", shrink=0.8)
    return figure


def spectrum(lines: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Singular values over the largest, on a log scale, one line (name, values) per checkpoint.

    Values that are zero but for rounding (of embeddings that span fewer dimensions than they have) are left out, and
    the legend says how many.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.5, 3), layout="constrained")
        axes = figure.subplots()
        for (name, values), style in zip(lines, cycle(("-", "--", ":", "-.")), strict=False):
            kept = values[values > NEGLIGIBLE]
            label = f"{short(name, 40)}, {len(kept)} of {len(values)} above {NEGLIGIBLE:g}"
            axes.plot(np.arange(1, len(kept) + 1), kept, style, label=label)
        axes.set(title="spectrum", xlabel="number of the singular value", ylabel="share of the largest", yscale="log")
        axes.legend()
    return figure


def group_intervals(panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Each group's runs as dots, its mean and 95 % interval as a bar; one panel per block, best group on top.

    A panel has `title` and `label` (of its axis, with the unit), and `points`: (group, mean, (low, high), values of the
    runs).
    """
    with mpl.rc_context(STYLE):
        tallest = max(len(panel["points"]) for panel in panels)
        columns = min(len(panels), 3)
        lines = -(-len(panels) // columns)
        longest = max(len(short(point[0], 40)) for panel in panels for point in panel["points"])
        width = 3.1 + 0.065 * longest
        figure = Figure(figsize=(width * columns, lines * (1.0 + 0.3 * tallest)), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False)
        for axis, panel in zip(axes.flat, panels, strict=False):
            for row, (_, mean, (low, high), values) in enumerate(panel["points"]):
                axis.plot(values, [row + 0.25] * len(values), "o", color=GREY, markersize=3)
                axis.errorbar(mean, row, xerr=[[mean - low], [high - mean]], fmt="o", color=BLUE, capsize=3)
            axis.set_yticks(range(len(panel["points"])), [short(point[0], 40) for point in panel["points"]])
            axis.set_ylim(len(panel["points"]) - 0.4, -0.6)  # whole rows, the first on top
            axis.set(title=panel["title"], xlabel=panel["label"])
        for axis in list(axes.flat)[len(panels) :]:
            axis.set_visible(False)
    return figure
