"""The tables, pictures and pages of `schane eval`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from schane_cli.metrics.registry import METRICS, summary_rows, summary_text
from schane_cli.reports import plots
from schane_cli.reports.pages import Link, drawn, write_page
from schane_cli.reports.predictions import CLASS_COLUMNS, class_rows, predictions, read_per_class
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal, figures_table

COLUMNS = ("metric", "value (95 % interval)", "n")
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
        _one(run / Path(one["run"]).name, one, Terminal(quiet=True))
    split = summary["split"]
    accuracy, ece, nll, rate = (METRICS[name] for name in ("accuracy", "ece", "nll", "images_per_second"))
    columns = ("dataset", f"{accuracy.label} (95 % interval)", ece.heading, nll.heading, rate.unit, "n")
    rows = [
        (
            one["dataset"],
            summary_text(one, f"{split}_accuracy"),
            ece.number(one[f"{split}_ece"]),
            nll.number(one[f"{split}_nll"]),
            rate.number(one["images_per_second"]),
            str(one[f"{split}_n"]),
        )
        for one in summary["datasets"]
    ]
    title = f"{_checkpoint_name(summary)} on {len(rows)} datasets, {split}"
    pages = (f"{Path(one['run']).name}/report.html" for one in summary["datasets"])
    linked = [(Link(row[0], href), *row[1:]) for row, href in zip(rows, pages, strict=True)]
    page = write_page(run, "datasets", title=title, columns=columns, rows=linked)
    terminal.table(figures_table(title, rows, columns))
    terminal.say(f"report: {page}")


def _one(run: Path, summary: Mapping[str, Any], terminal: Terminal) -> None:
    split = summary["split"]
    page = write_page(
        run,
        "eval",
        title=f"{summary['dataset']} {split}: {_checkpoint_name(summary)}",
        columns=COLUMNS,
        rows=result_rows(summary),
        throughput=throughput(summary),
        temperature=temperature_note(summary),
        reliability=drawn(
            plots.reliability(_reliability_panels(summary)),
            RunFolder(run).figures / "reliability.png",
            "reliability diagram: accuracy against confidence",
        ),
        predictions=predictions(run),
        corruptions=_corruptions(run, summary),
        ood=(_OOD_COLUMNS, ood_rows(summary)) if "ood" in summary else None,
        ood_note=f"{ood_title(summary)}. {OUT_OF_DISTRIBUTION}" if "ood" in summary else "",
        split_notes=summary["split_notes"],
    )
    terminal.table(figures_table(f"{summary['dataset']} {split}", result_rows(summary), COLUMNS))
    terminal.table(figures_table("hardest classes", class_rows(read_per_class(run).head(SHOWN_CLASSES)), CLASS_COLUMNS))
    if "corruptions" in summary:
        terminal.table(figures_table(METRICS["corruption_accuracy"].heading, *corruption_rows(summary)))
    if "ood" in summary:
        terminal.table(figures_table(ood_title(summary), ood_rows(summary), _OOD_COLUMNS))
    terminal.say(f"report: {page}")


def _checkpoint_name(summary: Mapping[str, Any]) -> str:
    return Path(summary["checkpoint"]).parent.parent.name


def _reliability_panels(summary: Mapping[str, Any]) -> list[tuple[str, Any]]:
    split = summary["split"]
    ece = METRICS["ece"]
    panels = [(f"{ece.label} {ece.text(summary[f'{split}_ece'])}", summary["reliability"])]
    if "temperature" in summary:
        heading = f"temperature {summary['temperature']:.2f}: {ece.text(summary[f'{split}_ece_scaled'])}"
        panels.append((heading, summary["reliability_scaled"]))
    return panels


def _corruptions(run: Path, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Picture and table of the corruptions, where the evaluation has them."""
    if "corruptions" not in summary:
        return None
    names, accuracies = by_corruption(summary)
    clean, n = summary[f"{summary['split']}_accuracy"], summary["corruption_n"]
    rows, columns = corruption_rows(summary)
    return {
        "picture": drawn(
            plots.corruption_map(accuracies, names, clean, n),
            RunFolder(run).figures / "corruptions.png",
            "accuracy by corruption and severity",
        ),
        "columns": columns,
        "rows": rows,
        "note": CORRUPTED,
    }


CORRUPTED = (
    "Kinds after Hendrycks and Dietterich (arXiv:1903.12261) with severities of our own, applied after resizing to the "
    "model's input; not comparable with published mCE."
)
OUT_OF_DISTRIBUTION = (
    "MSP, maximum softmax probability (Hendrycks and Gimpel 2017), energy (Liu et al. 2020), distance to the k-th "
    "nearest training embedding (Sun et al. 2022). AUROC: higher is better. FPR95, the share of out-of-distribution "
    "images accepted where 95 % of the in-distribution images are: lower is better."
)
_OOD_COLUMNS = ("out-of-distribution set", "score", METRICS["auroc"].heading, METRICS["fpr95"].heading, "n in / out")


RESULTS = (
    "accuracy", "top5_accuracy", "balanced_accuracy", "macro_f1", "ece", "ece_debiased", "ece_calibrated", "nll",
    "brier", "ece_scaled", "ece_debiased_scaled", "nll_scaled",
)  # fmt: skip


def result_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(metric, value with its interval, n)."""
    split = summary["split"]
    rows = summary_rows(summary, (f"{split}_{name}" for name in RESULTS), str(summary[f"{split}_n"]))
    return [*rows, *summary_rows(summary, ["corruption_accuracy"], str(summary.get("corruption_n")))]


def throughput(summary: Mapping[str, Any]) -> str:
    """How fast the images went through loader and model."""
    return f"{summary_text(summary, 'images_per_second')} through loader and model on {summary['device']}."


def temperature_note(summary: Mapping[str, Any]) -> str:
    """Where the temperature comes from, or why there is none."""
    if "temperature" in summary:
        return (
            f"Temperature {summary['temperature']:.3f} (Guo et al. 2017) makes the likelihood of the "
            f"{summary['temperature_val_n']} val images highest; it does not change accuracies."
        )
    return "No temperature: it would be fitted on val, and val is what this page reports or was trained on."


def by_corruption(summary: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
    """The corruptions' names (K,), and the accuracy of each at every severity (K, S)."""
    names = list(dict.fromkeys(row["corruption"] for row in summary["corruptions"]))
    return names, np.array([row["accuracy"] for row in summary["corruptions"]]).reshape(len(names), -1)


def corruption_rows(summary: Mapping[str, Any]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """(rows, columns): accuracy in percent per corruption and severity; the columns say n."""
    names, accuracies = by_corruption(summary)
    columns = (f"corruption (n = {summary['corruption_n']})", *map(str, range(1, accuracies.shape[1] + 1)), "mean")
    rows = [
        (name.replace("_", " "), *(METRICS["accuracy"].number(value) for value in [*values, values.mean()]))
        for name, values in zip(names, accuracies, strict=True)
    ]
    return rows, columns


def ood_title(summary: Mapping[str, Any]) -> str:
    """What the table of out-of-distribution sets rests on."""
    return f"out-of-distribution images; kNN: k = {summary['ood_knn_k']} of {summary['ood_knn_bank_n']} training images"


def ood_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row per out-of-distribution set and score."""
    return [
        (
            row["dataset"],
            row["score"],
            METRICS["auroc"].bare_text(row["auroc"], row["auroc_ci95"]),
            METRICS["fpr95"].bare_text(row["fpr95"], row["fpr95_ci95"]),
            f"{row['n_in']} / {row['n_out']}",
        )
        for row in summary["ood"]
    ]
