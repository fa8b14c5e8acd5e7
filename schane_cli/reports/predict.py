"""The page and the final table of `schane predict`."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from schane_cli.metrics.registry import METRICS, PLAIN_SHARE, metric, summary_text
from schane_cli.reports.pages import Command, data_url, write_page
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal, figures_table

MOST_ROWS = 20
COLUMNS = ("class", "images", "share")


def predict_report(run: Path, terminal: Terminal) -> None:
    """What the images were taken for, how sure that is, and where the tables lie."""
    folder = RunFolder(run)
    summary = folder.read_summary()
    rows = class_rows(summary)
    terminal.table(figures_table("predictions", rows[:MOST_ROWS], COLUMNS))
    if len(rows) > MOST_ROWS:
        terminal.say(f"and {len(rows) - MOST_ROWS} classes more")
    for line in sentences(summary):
        terminal.say(line)
    page = write_page(
        run,
        "predict",
        title=f"{counted(summary['images'] - summary['unreadable'])} named",
        columns=COLUMNS,
        rows=rows,
        notes=[*sentences(summary), *summary["notes"]],
        groups=groups(pd.read_parquet(folder.shown_table)),
        next_steps=next_steps(summary),
    )
    terminal.say(f"table:  {folder.predictions_table}")
    terminal.say(f"page:   {page}")


@dataclass(frozen=True)
class Tile:
    """A thumbnail on the page: its address, its file, and its caption."""

    source: str
    path: str
    caption: str


def groups(rows: pd.DataFrame) -> list[tuple[str, list[Tile]]]:
    """(class, its tiles, the surest first), the most frequent class first."""
    shown = rows[rows.picture.map(len) > 0]
    order = shown.prediction.value_counts().index
    return [
        (
            name,
            [
                Tile(data_url(row["picture"], "webp"), row["path"], _caption(row))
                for row in shown[shown.prediction == name].to_dict("records")
            ],
        )
        for name in order
    ]


def _caption(row: Mapping[Hashable, Any]) -> str:
    """`93.12 %`, and for an unsure image what it looks most like."""
    unsure = row.get("most_likely", row["prediction"]) != row["prediction"]
    confidence = METRICS["confidence"].text(row["confidence"])
    return f"{row['most_likely']}? {confidence}" if unsure else confidence


def next_steps(summary: dict[str, Any]) -> list[Command]:
    """What to do with predictions."""
    if "support" in summary:
        learn = f"schane finetune --dataset folder:{summary['support']}"
        return [Command(learn, "train a backbone on the labelled photos, once there are ten or more of each class")]
    runs, sources = " ".join(summary["checkpoints"]), " ".join(summary["sources"])
    return [
        Command(
            f"schane predict {runs} {sources} --copy-to sorted/", "copies of the images in a folder for each class"
        ),
        Command(
            f"schane predict {runs} {sources} --min-confidence 0.9",
            f"unsure below a confidence of {METRICS['confidence'].text(0.9)}",
        ),
        Command(f"schane embed {runs} --images {sources}", "the same images as a map, with duplicates and outliers"),
    ]


def class_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(class, images, share of the readable ones), the most frequent first."""
    readable = summary["images"] - summary["unreadable"]
    return [(name, f"{count:,}", PLAIN_SHARE.text(count / readable)) for name, count in summary["classes"].items()]


def sentences(summary: dict[str, Any]) -> list[str]:
    """What a reader must know of the confidence, of what was unsure, and of what could not be read."""
    lines = []
    if summary["calibrated"]:
        judged = "support photos" if "support" in summary else "val images"
        lines.append(f"confidence: calibrated on {summary['temperature_val_n']} {judged}")
    else:
        lines.append(f"confidence: {summary['confidence_note']}")
    if "min_confidence" in summary:
        lines.append(_unsure(summary))
    if summary["unreadable"]:
        table = RunFolder(Path(summary["run"])).unreadable_table
        lines.append(f"unreadable: {counted(summary['unreadable'])}, listed in {table}")
    return lines


def counted(images: int) -> str:
    """`1 image`, `2,000 images`."""
    return f"{images:,} image{'' if images == 1 else 's'}"


def _unsure(summary: dict[str, Any]) -> str:
    least = summary["min_confidence"]
    text = f"unsure: {counted(summary['unsure'])} below confidence {least:g}"
    if "val_kept" not in summary:
        return text
    judged = "the support" if "support" in summary else "val"
    text += f"; of {judged}, {metric('val_kept').text(summary['val_kept'])} would be named"
    if "val_kept_accuracy" not in summary:
        return text
    accuracy = summary_text(summary, "val_kept_accuracy")
    return f"{text}, with accuracy {accuracy} of n = {summary['val_kept_n']}"
