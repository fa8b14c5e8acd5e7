"""The page and the final table of `schane predict`."""

import shlex
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from schane_cli.commands.embed_unlabelled import FEWEST
from schane_cli.commands.fewshot_folder import expected_accuracy
from schane_cli.metrics.registry import METRICS, PLAIN_SHARE, metric, summary_text
from schane_cli.recipe import resolve_recipe
from schane_cli.reports.pages import Command, data_url, write_page
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal, figures_table

MOST_ROWS = 20
EACH_IMAGE = 10  # up to so many images have a row each; of more, the classes are counted
NO_BREAK_SPACE = "\u00a0"


def predict_report(run: Path, terminal: Terminal) -> None:
    """What the images were classified as, how sure that is, and where the tables lie."""
    folder = RunFolder(run)
    summary = folder.read_summary()
    few = _readable(summary) <= EACH_IMAGE
    columns = ("image", "prediction", "confidence") if few else ("class", "images", "share of images")
    rows = image_rows(pd.read_parquet(folder.full_predictions_table)) if few else class_rows(summary)
    terminal.table(figures_table("predictions", rows[:MOST_ROWS], columns))
    if len(rows) > MOST_ROWS:
        terminal.say(f"and {len(rows) - MOST_ROWS} classes more")
    for line in sentences(summary):
        terminal.say(line)
    shown = groups(pd.read_parquet(folder.shown_table))
    page = write_page(
        run,
        "predict",
        title=title(summary),
        expected=expected_accuracy(summary) if "support" in summary else "",
        columns=columns,
        rows=rows,
        notes=[*sentences(summary), *summary["notes"]],
        groups=shown,
        selection=selection(summary, sum(len(tiles) for _, tiles in shown)),
        next_steps=next_steps(summary, folder),
    )
    terminal.say(f"table:  {folder.predictions_table}")
    terminal.say(f"page:   {page}")


def title(summary: dict[str, Any]) -> str:
    """`24 images classified`, and by what where that is a few photos."""
    text = f"{counted(_readable(summary))} classified"
    if "support" not in summary:
        return text
    return f"{text} by {summary['support_n']:,} photos of {len(summary['classes_known'])} classes"


def selection(summary: dict[str, Any], shown: int) -> str:
    """Which of the images have a thumbnail on the page."""
    if shown == _readable(summary):
        return f"All {counted(shown)}." if shown > 1 else ""
    return "Of each class the surest and the least sure images; every image is in the table."


def _readable(summary: dict[str, Any]) -> int:
    return int(summary["images"] - summary["unreadable"])


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
    """`93.12 %`, which does not break over lines; for an unsure image what it looks most like, too."""
    unsure = row.get("most_likely", row["prediction"]) != row["prediction"]
    confidence = METRICS["confidence"].text(row["confidence"]).replace(" ", NO_BREAK_SPACE)
    return f"{row['most_likely']}? {confidence}" if unsure else confidence


def next_steps(summary: dict[str, Any], folder: RunFolder) -> list[Command]:
    """What to do with predictions, without the options that were just used."""
    if "support" in summary:
        learn = shlex.join(
            ["schane", "finetune", "--dataset", f"folder:{summary['support']}", *_backbone(summary, folder)]
        )
        return [Command(learn, "train a backbone on the labelled photos, once there are ten or more of each class")]
    runs, sources = shlex.join(summary["checkpoints"]), shlex.join(summary["sources"])
    steps = []
    if "copied_to" not in summary:
        purpose = "copies of the images in a folder for each class"
        steps.append(Command(f"schane predict {runs} {sources} --copy-to sorted/", purpose))
    if "min_confidence" not in summary:
        purpose = f"unsure below a confidence of {METRICS['confidence'].text(0.9)}"
        steps.append(Command(f"schane predict {runs} {sources} --min-confidence 0.9", purpose))
    if _readable(summary) < FEWEST:
        return steps
    images = shlex.join(part for source in summary["sources"] for part in ("--images", source))
    embed = f"schane embed {shlex.quote(summary['checkpoints'][0])} {images}"
    return [*steps, Command(embed, "the same images as a map, with duplicates and outliers")]


def _backbone(summary: dict[str, Any], folder: RunFolder) -> list[str]:
    """The options that choose the run's backbone, weights and image size, where a training would choose others."""
    used = folder.read_settings()
    if summary["checkpoints"]:
        used["model.weights"] = summary["checkpoints"][0]
    default = resolve_recipe(recipe=None, dataset="folder:", overrides={})[0].flat()
    options = {
        "model.backbone": ["--backbone", used["model.backbone"]],
        "model.weights": ["--init", used["model.weights"]],
        "data.image_size": ["--set", f"data.image_size={used['data.image_size']}"],
    }
    return [part for key, option in options.items() if used[key] != default[key] for part in option]


def class_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(class, images, share of the readable ones), the most frequent first."""
    readable = _readable(summary)
    return [(name, f"{count:,}", PLAIN_SHARE.text(count / readable)) for name, count in summary["classes"].items()]


def image_rows(predictions: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(file, prediction, confidence) of each image, in the order of the table."""
    confidence = METRICS["confidence"]
    return [
        (Path(row["path"]).name, _prediction(row), confidence.text(row["confidence"]))
        for row in predictions.to_dict("records")
    ]


def _prediction(row: Mapping[Hashable, Any]) -> str:
    """The class, and for an unsure image what it looks most like."""
    likeliest = row.get("most_likely", row["prediction"])
    return row["prediction"] if likeliest == row["prediction"] else f"{row['prediction']} ({likeliest}?)"


def sentences(summary: dict[str, Any]) -> list[str]:
    """What a reader must know: the confidence, what was unsure, where copies are, and what could not be read."""
    judged = "support photos" if "support" in summary else "val images"
    note = summary["confidence_note"]
    lines = [note or f"confidence: calibrated on {summary['temperature_val_n']} {judged}"]
    if "min_confidence" in summary:
        lines.append(_unsure(summary))
    if "copied_to" in summary:
        what = "links to" if summary["copies_are_links"] else "copies of"
        lines.append(f"sorted: {what} {counted(_readable(summary))} in {summary['copied_to']}, a folder for each class")
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
    text += f"; of {judged}, {metric('val_kept').text(summary['val_kept'])} would be classified"
    if "val_kept_accuracy" not in summary:
        return text
    accuracy = summary_text(summary, "val_kept_accuracy")
    return f"{text}, with accuracy {accuracy} of n = {summary['val_kept_n']}"
