"""The page of `schane average`: what the mean reaches, and what went into it."""

from pathlib import Path

from schane_cli.metrics.registry import metric, summary_rows, summary_text
from schane_cli.reports.finetune import COLUMNS, RESULTS, next_steps
from schane_cli.reports.pages import write_page
from schane_cli.reports.predictions import predictions
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal, figures_table


def average_report(run: Path, terminal: Terminal) -> None:
    """Page and final table of an average of checkpoints; reads nothing but its folder."""
    summary = RunFolder(run).read_summary()
    accuracy = metric("val_accuracy")
    rows = summary_rows(summary, RESULTS, str(summary["test_n"]))
    rows.append((accuracy.label, summary_text(summary, "val_accuracy"), str(summary["val_n"])))
    ingredients = [
        (one["checkpoint"], accuracy.text(one["val_accuracy"]), "yes" if one["kept"] else "no")
        for one in summary["ingredients"]
    ]
    kept = sum(one["kept"] for one in summary["ingredients"])
    title = f"{summary['dataset']}, {summary['backbone']}: {summary['soup']} average of {kept} of {len(ingredients)}"
    page = write_page(
        run,
        "average",
        title=title,
        columns=COLUMNS,
        rows=rows,
        ingredient_columns=("checkpoint", f"{accuracy.label} (n = {summary['val_n']:,})", "in the average"),
        ingredients=ingredients,
        predictions=predictions(run),
        split_notes=summary["split_notes"],
        next_steps=next_steps(run),
    )
    terminal.table(figures_table(title, rows, COLUMNS))
    best = max(one["val_accuracy"] for one in summary["ingredients"])
    terminal.say(f"best single checkpoint on val: {accuracy.text(best)}")
    terminal.say(f"report: {page}")
    terminal.say(f"next: {next_steps(run)[0].line}")
