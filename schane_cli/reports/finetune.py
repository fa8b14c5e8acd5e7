"""The pages of `schane finetune`: one run, several seeds."""

from pathlib import Path
from typing import Any

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


def _events(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return RunFolder(run).read_events("step"), RunFolder(run).read_events("epoch")


def finetune_report(run: Path, terminal: Terminal) -> None:
    """Curves, page and final table of a finished fine-tuning run."""
    summary = RunFolder(run).read_summary()
    curves = plots.save(plots.training_curves(*_events(run)), RunFolder(run).figures / "curves.png")
    rows = accuracy_rows(summary, "test")
    rows.append(
        (f"val accuracy, epoch {summary['best_epoch']}", percent(summary["val_accuracy"]), str(summary["val_n"]))
    )
    cost = (
        f"{summary['total_seconds']:.0f} s in all, {summary['train_seconds']:.0f} s of them training at "
        f"{summary['images_per_second']:.0f} images/s, {summary['data_wait_percent']:.0f} % waiting for data"
    )
    title = f"{summary['dataset']}, {summary['backbone']}, {summary['loss']}, seed {summary['seed']}"
    columns = ("figure", "value (95 % interval)", "n")
    content = page(
        title,
        [
            section("Result", html_table(columns, rows), paragraph(cost, "note")),
            section("Training", picture(curves, "loss parts and val accuracy by epoch")),
            section("Splits", *(paragraph(note, "note") for note in summary["split_notes"])),
            provenance(run),
        ],
    )
    RunFolder(run).page.write_text(content)
    terminal.table(figures_table(title, rows, columns))
    terminal.say(cost)
    terminal.say(f"report: {RunFolder(run).page}")


def seeds_report(run: Path, terminal: Terminal) -> None:
    """Final table and page of a run over several seeds."""
    summary = RunFolder(run).read_summary()
    for folder in summary["runs"]:
        finetune_report(Path(folder), Terminal(quiet=True))
    n_seeds = len(summary["seeds"])
    by_seed = zip(summary["seeds"], summary["test_accuracy_by_seed"], summary["runs"], strict=True)
    rows = [(f"seed {seed}", percent(accuracy), str(summary["test_n"])) for seed, accuracy, _ in by_seed]
    rows.append(
        ("mean over seeds", percent(summary["test_accuracy"], summary["test_accuracy_ci95"]), f"{n_seeds} seeds")
    )
    columns = ("test accuracy", "value (95 % interval)", "n")
    title = f"{summary['dataset']}, {summary['backbone']}, {summary['loss']}, {n_seeds} seeds"
    note = "The interval of the mean is Student's t over seeds."
    RunFolder(run).page.write_text(
        page(title, [section("Result", html_table(columns, rows), paragraph(note, "note")), provenance(run)])
    )
    terminal.table(figures_table(title, rows, columns))
    terminal.say(f"report: {RunFolder(run).page}")
