"""The page and the final table of `schane predict`."""

from pathlib import Path
from typing import Any

from schane_cli.reports.html import percent
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal, figures_table

MOST_ROWS = 20


def predict_report(run: Path, terminal: Terminal) -> None:
    """What the images were taken for, how sure that is, and where the tables lie."""
    folder = RunFolder(run)
    summary = folder.read_summary()
    rows = class_rows(summary)
    terminal.table(figures_table("predictions", rows[:MOST_ROWS], ("class", "images", "share")))
    if len(rows) > MOST_ROWS:
        terminal.say(f"and {len(rows) - MOST_ROWS} classes more")
    for line in sentences(summary):
        terminal.say(line)
    terminal.say(f"table:  {folder.predictions_table}")


def class_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(class, images, share of the readable ones), the most frequent first."""
    readable = summary["images"] - summary["unreadable"]
    return [(name, f"{count:,}", f"{100 * count / readable:.1f} %") for name, count in summary["classes"].items()]


def sentences(summary: dict[str, Any]) -> list[str]:
    """What a reader must know of the confidence, of what was unsure, and of what could not be read."""
    lines = []
    if summary["calibrated"]:
        lines.append(f"confidence: calibrated on {summary['temperature_val_n']} val images")
    else:
        lines.append(f"confidence: {summary['confidence_note']}")
    if "min_confidence" in summary:
        lines.append(_unsure(summary))
    if summary["unreadable"]:
        table = RunFolder(Path(summary["run"])).unreadable_table
        lines.append(f"unreadable: {summary['unreadable']:,} images, listed in {table}")
    return lines


def _unsure(summary: dict[str, Any]) -> str:
    least = summary["min_confidence"]
    text = f"unsure: {summary['unsure']:,} images below confidence {least:g}"
    if "val_kept" not in summary:
        return text
    text += f"; of val, {percent(summary['val_kept'])} would be named"
    if "val_kept_accuracy" not in summary:
        return text
    accuracy = percent(summary["val_kept_accuracy"], summary["val_kept_accuracy_ci95"])
    return f"{text}, with accuracy {accuracy} of n = {summary['val_kept_n']}"
