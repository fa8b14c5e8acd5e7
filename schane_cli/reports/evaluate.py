"""The tables, pictures and page of `schane eval`."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from schane_cli.reports import plots
from schane_cli.reports.html import (
    accuracy_rows,
    html_table,
    page,
    paragraph,
    percent,
    picture,
    provenance,
    section,
)
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal, figures_table

COLUMNS = ("figure", "value (95 % interval)", "n")
SHOWN_CLASSES = 5  # of the hardest, on the terminal


def eval_report(run: Path, terminal: Terminal) -> None:
    """Pictures, page and tables of an evaluation; of several datasets one each, and a table over them."""
    summary = RunFolder(run).read_summary()
    if "datasets" in summary:
        _several(run, summary, terminal)
    else:
        _one(run, summary, terminal)


def _several(run: Path, summary: Mapping[str, Any], terminal: Terminal) -> None:
    for one in summary["datasets"]:
        _one(Path(one["run"]), one, Terminal(quiet=True))
    split = summary["split"]
    columns = ("dataset", "top-1 accuracy (95 % interval)", "ECE", "NLL", "images/s", "n")
    rows = [
        (
            one["dataset"],
            percent(one[f"{split}_accuracy"], one[f"{split}_accuracy_ci95"]),
            percent(one[f"{split}_ece"]),
            f"{one[f'{split}_nll']:.3f}",
            f"{one['images_per_second']:.0f}",
            str(one[f"{split}_n"]),
        )
        for one in summary["datasets"]
    ]
    title = f"{Path(summary['checkpoint']).parent.parent.name} on {len(rows)} datasets, {split}"
    parts = [
        section(one["dataset"], *(part for part in sections(Path(one["run"]), one))) for one in summary["datasets"]
    ]
    RunFolder(run).page.write_text(page(title, [section("Result", html_table(columns, rows)), *parts, provenance(run)]))
    terminal.table(figures_table(title, rows, columns))
    terminal.say(f"report: {RunFolder(run).page}")


def _one(run: Path, summary: Mapping[str, Any], terminal: Terminal) -> None:
    split = summary["split"]
    draw(run, summary)
    title = f"{summary['dataset']} {split}: {Path(summary['checkpoint']).parent.parent.name}"
    RunFolder(run).page.write_text(page(title, [*sections(run, summary), provenance(run)]))
    terminal.table(figures_table(f"{summary['dataset']} {split}", result_rows(summary), COLUMNS))
    per_class = pd.read_csv(RunFolder(run).per_class_table, dtype={"class": str}).sort_values("accuracy", kind="stable")
    terminal.table(figures_table("hardest classes", class_rows(per_class.head(SHOWN_CLASSES)), _CLASS_COLUMNS))
    if "corruptions" in summary:
        terminal.table(figures_table("accuracy on damaged images, %", *corruption_rows(summary)))
    if "ood" in summary:
        terminal.table(figures_table(ood_title(summary), ood_rows(summary), _OOD_COLUMNS))
    terminal.say(f"report: {RunFolder(run).page}")


def draw(run: Path, summary: Mapping[str, Any]) -> None:
    """figures/confusion.png, reliability.png, mistakes.png, corruptions.png."""
    split, figures = summary["split"], RunFolder(run).figures
    counts = pd.read_csv(RunFolder(run).confusion_table, index_col=0)
    plots.save(
        plots.confusion_matrix(counts.to_numpy(), [str(name) for name in counts.columns]), figures / "confusion.png"
    )
    panels = [(f"ECE {percent(summary[f'{split}_ece'])}", summary["reliability"])]
    if "temperature" in summary:
        told = f"temperature {summary['temperature']:.2f}: ECE {percent(summary[f'{split}_ece_scaled'])}"
        panels.append((told, summary["reliability_scaled"]))
    plots.save(plots.reliability(panels), figures / "reliability.png")
    plots.save(plots.mistakes(_captioned_mistakes(run)), figures / "mistakes.png")
    if "corruptions" in summary:
        names, accuracies = _by_corruption(summary)
        drawn = plots.corruption_map(accuracies, names, summary[f"{split}_accuracy"])
        plots.save(drawn, figures / "corruptions.png")


def _captioned_mistakes(run: Path) -> list[tuple[np.ndarray, str]]:
    """Pictures (H, W, 3) of mistakes.parquet, each captioned `label, taken for prediction, 99 %`."""
    rows = pd.read_parquet(RunFolder(run).mistakes_table).to_dict("records")
    return [
        (
            np.asarray(Image.open(BytesIO(row["picture"])).convert("RGB")),
            f"{row['label']}\ntaken for {row['prediction']}, {100 * row['confidence']:.0f} %",
        )
        for row in rows
    ]


def sections(run: Path, summary: Mapping[str, Any]) -> list[str]:
    """The page's sections for one dataset."""
    figures = RunFolder(run).figures
    per_class = pd.read_csv(RunFolder(run).per_class_table, dtype={"class": str})
    found = [
        section("Result", html_table(COLUMNS, result_rows(summary)), paragraph(throughput(summary), "note")),
        section(
            "Calibration", paragraph(temperature_note(summary)), picture(figures / "reliability.png", "reliability")
        ),
        section("Worst mistakes", paragraph(MISTAKES, "note"), picture(figures / "mistakes.png", "worst mistakes")),
        section("By class", html_table(_CLASS_COLUMNS, class_rows(per_class))),
        section("Confusion", picture(figures / "confusion.png", "confusion matrix")),
    ]
    if "corruptions" in summary:
        columns, rows = corruption_rows(summary)[::-1]
        drawn = picture(figures / "corruptions.png", "accuracy by corruption and severity")
        found.append(section("Damaged images", paragraph(CORRUPTED, "note"), drawn, html_table(columns, rows)))
    if "ood" in summary:
        told = paragraph(f"{ood_title(summary)}. {FOREIGN}", "note")
        found.append(section("Foreign images", told, html_table(_OOD_COLUMNS, ood_rows(summary))))
    return [*found, section("Splits", *(paragraph(note, "note") for note in summary["split_notes"]))]


MISTAKES = "The wrong predictions of highest confidence: the label, and what it was taken for."
CORRUPTED = (
    "Kinds after Hendrycks and Dietterich (arXiv:1903.12261) with strengths of our own, after resizing to the model's "
    "input; not comparable with published mCE."
)
FOREIGN = (
    "MSP, maximum softmax probability (Hendrycks and Gimpel 2017), energy (Liu et al. 2020), distance to the k-th "
    "nearest training embedding (Sun et al. 2022). AUROC: higher is better; FPR95, the share of foreign images "
    "accepted where 95 % of its own are: lower is better."
)
_CLASS_COLUMNS = ("class", "accuracy (95 % interval)", "n")
_OOD_COLUMNS = ("foreign set", "score", "AUROC, %", "FPR95, %", "n in / out")


def result_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, value with its interval, n)."""
    split = summary["split"]
    n = str(summary[f"{split}_n"])
    rows = accuracy_rows(summary, split)
    rows.append((f"{split} Brier score", _number(summary, f"{split}_brier"), n))
    if "temperature" in summary:
        after = f"at temperature {summary['temperature']:.2f}"
        ece = percent(summary[f"{split}_ece_scaled"], summary[f"{split}_ece_scaled_ci95"])
        rows += [
            (f"{split} ECE {after}", ece, n),
            (f"{split} NLL {after}", _number(summary, f"{split}_nll_scaled"), n),
        ]
    if "corruption_accuracy" in summary:
        mean = percent(summary["corruption_accuracy"], summary["corruption_accuracy_ci95"])
        rows.append((f"mean over {len(summary['corruptions'])} damages", mean, str(summary["corruption_n"])))
    return rows


def _number(summary: Mapping[str, Any], name: str) -> str:
    low, high = summary[f"{name}_ci95"]
    return f"{summary[name]:.4f} ({low:.4f} to {high:.4f})"


def throughput(summary: Mapping[str, Any]) -> str:
    """How fast the images went through loader and model."""
    return f"{summary['images_per_second']:.0f} images/s through loader and model on {summary['device']}."


def temperature_note(summary: Mapping[str, Any]) -> str:
    """Where the temperature comes from, or why there is none."""
    if "temperature" in summary:
        return (
            f"Temperature {summary['temperature']:.3f} (Guo et al. 2017) makes the likelihood of the "
            f"{summary['temperature_val_n']} val images highest; accuracies do not change by it."
        )
    return "No temperature: it is fitted on val, and val is reported here or was trained on."


def class_rows(per_class: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(class, accuracy with its interval, n)."""
    return [
        (name, percent(accuracy, (low, high)), str(n))
        for name, n, accuracy, low, high in per_class.itertuples(index=False)
    ]


def _by_corruption(summary: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
    names = list(dict.fromkeys(row["corruption"] for row in summary["corruptions"]))
    return names, np.array([row["accuracy"] for row in summary["corruptions"]]).reshape(len(names), -1)


def corruption_rows(summary: Mapping[str, Any]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """(rows, columns): accuracy in percent a kind and severity; the columns say n."""
    names, accuracies = _by_corruption(summary)
    columns = (f"kind (n = {summary['corruption_n']})", *map(str, range(1, accuracies.shape[1] + 1)), "mean")
    rows = [
        (name.replace("_", " "), *(f"{100 * value:.1f}" for value in [*values, values.mean()]))
        for name, values in zip(names, accuracies, strict=True)
    ]
    return rows, columns


def ood_title(summary: Mapping[str, Any]) -> str:
    """What the table of foreign sets rests on."""
    return f"foreign images; kNN: k = {summary['ood_knn_k']} of {summary['ood_knn_bank_n']} training images"


def ood_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a foreign set and score."""
    return [
        (
            row["dataset"],
            row["score"],
            percent(row["auroc"], row["auroc_ci95"]).replace(" %", ""),
            percent(row["fpr95"], row["fpr95_ci95"]).replace(" %", ""),
            f"{row['n_in']} / {row['n_out']}",
        )
        for row in summary["ood"]
    ]
