"""The table, the picture and the page of a few-shot run."""

from pathlib import Path
from typing import Any

from schane_cli.metrics.registry import METRICS
from schane_cli.reports import plots
from schane_cli.reports.pages import drawn, write_page
from schane_cli.run import RunFolder
from schane_cli.spreadsheets import read_csv
from schane_cli.terminal import Terminal, figures_table

EPISODES, DISJOINT = METRICS["fewshot_accuracy"], METRICS["disjoint_accuracy"]
COLUMNS = ("shots", "classifier", EPISODES.heading, DISJOINT.heading, "n")


def fewshot_report(run: Path, terminal: Terminal) -> None:
    """Write figures/shots.png and report.html of a finished run folder, and print its table."""
    summary = RunFolder(run).read_summary()
    rows = [_row(result, len(summary["checkpoints"]) > 1) for result in summary["results"]]
    title = f"{summary['dataset']}: {summary['ways']}-way few-shot on {len(summary['novel_classes'])} novel classes"
    shots = drawn(
        plots.accuracy_by_shots(summary["curve"], summary["ways"]),
        RunFolder(run).figures / "shots.png",
        "accuracy against the number of shots",
    )
    page = write_page(
        run,
        "fewshot",
        title=title,
        header=header(summary),
        comparisons=[pair["sentence"] for pair in summary["comparisons"]],
        columns=COLUMNS,
        rows=rows,
        legend=_legend(summary),
        shots=shots,
        classes=class_table(run),
        data_notes=summary["notes"],
    )
    for line in header(summary):
        terminal.say(line)
    terminal.table(figures_table(title, rows, COLUMNS))
    terminal.say(_legend(summary))
    for pair in summary["comparisons"]:
        terminal.say(pair["sentence"])
    terminal.say(f"report: {page}")


def header(summary: dict[str, Any]) -> list[str]:
    """What was scored: the images and their classes, and what the backbone may have seen of them."""
    classes = summary["novel_classes"]
    first = ", ".join(classes[:4]) + (", ..." if len(classes) > 4 else "")
    lines = [f"scored    {summary['novel_n']} images of {len(classes)} test classes ({first})"]
    if summary["dirichlet"]:
        lines.append(f"          queries imbalanced by Dirichlet({summary['dirichlet']:g})")
    return [*lines, *summary["seen"]]


def class_table(run: Path) -> tuple[list[str], list[list[str]]]:
    """Accuracy of each novel class, the lowest mean first, one column per result: (columns, rows)."""
    frame = read_csv(RunFolder(run).per_class_table, dtype={"class": str, "checkpoint": str})
    keys = [key for key in ("checkpoint", "classifier", "shots") if key == "shots" or frame[key].nunique() > 1]
    wide = frame.pivot_table(index="class", columns=keys, values="accuracy", sort=False)
    wide = wide.loc[wide.mean(axis=1).sort_values().index]
    queries = frame.groupby("class")["n"].max()
    titles = [", ".join(f"{part}-shot" if key == "shots" else str(part) for key, part in zip(keys, column, strict=True))
              for column in wide.columns.to_frame().itertuples(index=False)]  # fmt: skip
    rows = [[name, *(EPISODES.number(value) for value in wide.loc[name]), str(queries[name])] for name in wide.index]
    return [f"class, {EPISODES.unit}", *titles, "queries"], rows


def _row(result: dict[str, Any], several: bool) -> tuple[str, ...]:
    name = result["classifier"] + (" (transductive)" if result["transductive"] else "")
    if several:
        name = f"{result['checkpoint']} {name}"
    n = f"{result['accuracy_episodes']}, {result['disjoint_episodes']} disjoint"
    return (str(result["shots"]), name, *_accuracies(result), n)


def _accuracies(result: dict[str, Any]) -> tuple[str, str]:
    return (
        EPISODES.plus_minus(result["accuracy"], result["accuracy_ci95"]),
        DISJOINT.plus_minus(result["disjoint"], result["disjoint_ci95"]),
    )


def _legend(summary: dict[str, Any]) -> str:
    legend = (
        f"± is a 95 % t-interval over the n episodes ({summary['queries']} queries per class). Over disjoint episodes "
        "it also accounts for the finite test set (arXiv 2409.02850)."
    )
    deviations = {result["classifier"]: result.get("deviation") for result in summary["results"]}
    return " ".join([legend, *(f"{name} differs from its paper: {text}." for name, text in deviations.items() if text)])
