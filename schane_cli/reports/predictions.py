"""What a model gets right and wrong, from the tables of a run folder: confusion, per class, worst mistakes."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from schane_cli.metrics.registry import METRICS, PLAIN_SHARE
from schane_cli.reports import plots
from schane_cli.reports.pages import Picture, drawn, thumbnail
from schane_cli.run import RunFolder
from schane_cli.spreadsheets import read_csv

CLASS_COLUMNS = ("class", f"{METRICS['accuracy'].label} (95 % interval)", "n")
PAIR_COLUMNS = ("label", "taken for", "images", f"{PLAIN_SHARE.unit} of the label")
MOST_PAIRS = 12
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


@dataclass(frozen=True)
class Predictions:
    """The part of a page that confusion.csv, per_class.csv and mistakes.parquet make; a table is (columns, rows)."""

    confusion: Picture
    pairs: Table
    by_class: Table
    mistakes: list[Picture]


def predictions(run: Path) -> Predictions | None:
    """The predictions of a run folder, its pictures drawn into figures/; None where it has no tables of them."""
    tables = RunFolder(run).confusion_table, RunFolder(run).per_class_table, RunFolder(run).mistakes_table
    if not all(table.is_file() for table in tables):
        return None
    counts = read_csv(RunFolder(run).confusion_table, index_col=0, dtype={"label": str})
    names = [str(name) for name in counts.index]
    wrong = pd.read_parquet(RunFolder(run).mistakes_table).to_dict("records")
    plots.save(
        plots.mistakes([(_pixels(row["picture"]), _caption(row)) for row in wrong]),
        RunFolder(run).figures / "mistakes.png",
    )
    return Predictions(
        confusion=drawn(
            plots.confusion_matrix(counts.to_numpy(), names),
            RunFolder(run).figures / "confusion.png",
            "confusion matrix: labels by predictions",
        ),
        pairs=(PAIR_COLUMNS, pair_rows(counts.to_numpy(), names)),
        by_class=(CLASS_COLUMNS, class_rows(read_per_class(run))),
        mistakes=[thumbnail(row["picture"], str(row["id"]), caption=_caption(row)) for row in wrong],
    )


def read_per_class(run: Path) -> pd.DataFrame:
    """per_class.csv: class, n, accuracy and its interval, the hardest class first."""
    frame = read_csv(RunFolder(run).per_class_table, dtype={"class": str})
    return frame.sort_values("accuracy", kind="stable")


def class_rows(per_class: pd.DataFrame) -> list[tuple[str, ...]]:
    """(class, accuracy with its interval, n)."""
    return [
        (name, METRICS["accuracy"].text(accuracy, (low, high)), str(n))
        for name, n, accuracy, low, high in per_class.itertuples(index=False)
    ]


def pair_rows(counts: np.ndarray, names: list[str]) -> list[tuple[str, ...]]:
    """The most frequent mistakes of a confusion matrix (C, C): (label, prediction, images, % of the label's)."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        (names[i], names[j], str(wrong[i, j]), PLAIN_SHARE.number(wrong[i, j] / counts[i].sum()))
        for i, j in places
        if wrong[i, j]
    ]


def _pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(encoded)).convert("RGB"))


def _caption(row: Mapping[Any, Any]) -> str:
    return (
        f"{plots.short(str(row['label']))}\ntaken for {plots.short(str(row['prediction']))}\n"
        f"{METRICS['confidence'].text(row['confidence'])} confident"
    )
