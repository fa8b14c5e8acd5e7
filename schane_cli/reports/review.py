"""The page and the final table of `schane review`: look through with the keyboard, take the choices away as CSV."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from schane_cli.reports.pages import Command, data_url, write_page
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal, figures_table

KINDS = {
    "label": (
        "Likely label errors",
        "More likely wrong than right, by classifiers that were fitted without the image; the likeliest first.",
    ),
    "duplicate": ("Near-duplicates", "Embedding and perceptual hash agree; the second of a pair can be left out."),
    "alike": ("Alike in two classes", "Each is the other's nearest image, and their labels differ."),
    "outlier": ("Outliers", "Far from all other images; each is shown with its label."),
}


@dataclass(frozen=True)
class Card:
    """One thing to decide: an image with its label and what is suggested, and its partner where it has one."""

    kind: str
    path: str
    split: str
    label: str
    suggested: str
    source: str
    other_path: str
    other_label: str
    other_source: str


def review_report(run: Path, terminal: Terminal) -> None:
    """Page, table and what to do next."""
    folder = RunFolder(run)
    summary = folder.read_summary()
    rows = [
        ("likely label errors", f"{summary['label_issues']:,}"),
        ("pairs of near-duplicates", f"{summary['duplicate_pairs']:,}"),
        ("  of them across splits", f"{summary['duplicates_across_splits']:,}"),
        ("  of them across classes", f"{summary['duplicates_across_classes']:,}"),
        ("look-alikes with different labels", f"{summary['alike_pairs']:,}"),
        ("outliers", f"{summary['outliers']:,}"),
    ]
    columns = ("to look at", f"of {summary['n_images']:,} images")
    title = f"Review of {summary['dataset']}, {summary['split']}"
    again = f"schane finetune --recipe {folder.recipe_file}"
    steps = [
        Command(
            f"{again} --set data.relabel={folder.relabel_table}",
            f"train again with the {summary['relabel_rows']:,} suggested labels that are more likely than not, or with "
            "your own choice",
        ),
        Command(
            f"{again} --set data.exclude={folder.exclude_table}", "train again without the second of near-duplicates"
        ),
    ]
    page = write_page(
        run,
        "review",
        title=title,
        columns=columns,
        rows=rows,
        notes=summary["split_notes"],
        groups=cards(pd.read_parquet(folder.shown_table)),
        next_steps=steps,
    )
    terminal.table(figures_table(title, rows, columns))
    terminal.say(f"tables: {folder.review_table}; duplicates.csv, relabel.csv and exclude.csv beside it")
    terminal.say(f"page:   {page}")
    terminal.say(f"next:   {steps[0].line}")


def cards(rows: pd.DataFrame) -> list[tuple[str, str, str, list[Card]]]:
    """(kind, heading, what it means, its cards) for each kind that was found."""
    groups = []
    for kind, (heading, meaning) in KINDS.items():
        chosen = [_card({str(k): v for k, v in row.items()}) for row in rows[rows.kind == kind].to_dict("records")]
        if chosen:
            groups.append((kind, heading, meaning, chosen))
    return groups


def _card(row: dict[str, Any]) -> Card:
    return Card(
        kind=row["kind"],
        path=row["path"],
        split=row["split"],
        label=row["label"],
        suggested=row["suggested"],
        source=data_url(row["picture"], "webp"),
        other_path=row["other_path"],
        other_label=row["other_label"],
        other_source=data_url(row["other_picture"], "webp") if row["other_picture"] else "",
    )
