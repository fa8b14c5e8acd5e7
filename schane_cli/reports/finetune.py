"""The pages of `schane finetune`: one run, several seeds."""

import math
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from schane_cli.metrics.registry import metric, summary_rows, summary_text
from schane_cli.reports import plots
from schane_cli.reports.pages import Command, Link, drawn, write_page
from schane_cli.reports.predictions import predictions
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal, figures_table

COLUMNS = ("metric", "value (95 % interval)", "n")
RESULTS = (
    "test_accuracy",
    "test_top5_accuracy",
    "test_balanced_accuracy",
    "test_macro_f1",
    "test_ece",
    "test_nll",
)


def finetune_report(run: Path, terminal: Terminal) -> None:
    """Curves, page and final table of a finished fine-tuning run; reads nothing but its folder."""
    summary = RunFolder(run).read_summary()
    rows = summary_rows(summary, RESULTS, str(summary["test_n"]))
    val = f"{metric('val_accuracy').label}, epoch {summary['best_epoch']}"
    rows.append((val, summary_text(summary, "val_accuracy"), str(summary["val_n"])))
    title = f"{summary['dataset']}, {summary['backbone']}, {summary['loss']}, seed {summary['seed']}"
    steps, epochs = RunFolder(run).read_events("step"), RunFolder(run).read_events("epoch")
    curves = drawn(
        plots.training_curves(steps, epochs),
        RunFolder(run).figures / "curves.png",
        "training loss by step and val accuracy by epoch",
    )
    page = write_page(
        run,
        "finetune",
        title=title,
        columns=COLUMNS,
        rows=rows,
        cost=cost(summary),
        predictions=predictions(run),
        curves=curves,
        split_notes=summary["split_notes"],
        next_steps=next_steps(run),
    )
    terminal.table(figures_table(title, rows, COLUMNS))
    terminal.say(cost(summary))
    terminal.say(f"report: {page}")
    terminal.say(f"next: {next_steps(run)[0].line}")


def cost(summary: Mapping[str, Any]) -> str:
    """What the run took."""
    names = ("total_seconds", "train_seconds", "images_per_second", "data_wait_percent")
    total, train, rate, waiting = (summary_text(summary, name) for name in names)
    return f"{total} in all, {train} of them training at {rate}, {waiting} of it waiting for data"


def next_steps(run: Path) -> list[Command]:
    """The commands that people run after a training, the first one first."""
    name, embedded = quote(str(run)), quote(str(RunFolder(run).embedded.path))
    return [
        Command(f"schane predict {name} FOLDER", "classify new images"),
        Command(f"schane eval {name} --corruptions", "calibration, and accuracy on corrupted images"),
        Command(f"schane embed {name} --out {embedded}", "look at the embedding of every test image"),
        Command(f"schane review {name}", "find likely label errors and near-duplicates"),
        Command(f"schane export {name}", "the backbone for timm or ONNX"),
    ]


def seeds_report(run: Path, terminal: Terminal) -> None:
    """Final table and page of a run over several seeds, and the page of each."""
    summary = RunFolder(run).read_summary()
    folders = [run / Path(folder).name for folder in summary["runs"]]
    for folder in folders:
        RunFolder(folder).tidy()
        finetune_report(folder, Terminal(quiet=True))
    n_seeds, n = len(summary["seeds"]), summary["test_n"]
    accuracy = metric("test_accuracy")
    rows: list[tuple[Any, str, str]] = [
        (Link(f"seed {seed}", f"{folder.name}/report.html"), accuracy.text(value), str(n))
        for seed, value, folder in zip(summary["seeds"], summary["test_accuracy_by_seed"], folders, strict=True)
    ]
    rows.append(("mean over seeds", summary_text(summary, "test_accuracy"), f"{n_seeds} seeds"))
    title = f"{summary['dataset']}, {summary['backbone']}, {summary['loss']}, {n_seeds} seeds"
    values = [accuracy.scale * value for value in summary["test_accuracy_by_seed"]]
    interval = [accuracy.scale * bound for bound in summary["test_accuracy_ci95"] or (math.nan, math.nan)]
    panel = {
        "title": f"{n_seeds} seeds, n = {n:,} test images",
        "label": accuracy.heading,
        "points": [(summary["loss"], accuracy.scale * summary["test_accuracy"], interval, values)],
    }
    columns = (accuracy.label, "value (95 % interval)", "n")
    page = write_page(
        run,
        "seeds",
        title=title,
        columns=columns,
        rows=rows,
        note="The interval of the mean is Student's t over seeds.",
        picture=drawn(
            plots.group_intervals([panel]), RunFolder(run).figures / "seeds.png", "test accuracy of each seed"
        ),
    )
    shown = [(row[0].text if isinstance(row[0], Link) else row[0], *row[1:]) for row in rows]
    terminal.table(figures_table(title, shown, columns))
    terminal.say(f"report: {page}")
