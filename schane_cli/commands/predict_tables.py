"""The tables of `schane predict`: part files as the images go by, then one table, its CSV, and what the page shows."""

import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from schane_cli.errors import BadRequest, SchaneError
from schane_cli.features.stream import StreamedBatch
from schane_cli.images.imageset import Files, ImageSet
from schane_cli.images.threads import in_threads
from schane_cli.images.thumbnail import thumbnail_webp
from schane_cli.preflight import PredictOptions
from schane_cli.run import RunFolder, temporary
from schane_cli.spreadsheets import csv_text
from schane_cli.terminal import Terminal

UNSURE = "unsure"
SHOWN = 600  # thumbnails on the page, over all classes
FEWEST_SHOWN = 4  # of a class: so many of the surest and of the least sure, however many classes there are
Columns = dict[str, np.ndarray]  # what is said of some images, a row for each


def path_of(images: ImageSet, index: int) -> str:
    """The image's file as the user can open it from here, or its id inside a larger file."""
    return str(images.images[index]) if isinstance(images.images, Files) else images.ids[index]


def named(batch: StreamedBatch, probabilities: torch.Tensor, options: PredictOptions) -> Columns:
    """What is said of each image of a batch: `index`, `error`, and the `class` (n, k) and `confidence` (n, k) of the
    likeliest; `probability` (n, C) and `embedding` where asked for. An unreadable image has class -1.

    `probabilities` (m, C) are those of the m readable ones.
    """
    highest, broken = probabilities.topk(max(options.top_k, 1), dim=1), len(batch.unreadable)
    columns = {
        "index": np.array([*batch.indices, *(index for index, _ in batch.unreadable)], dtype=np.int64),
        "error": np.array([*[None] * len(batch.indices), *(reason for _, reason in batch.unreadable)], dtype=object),
        "class": _padded(highest.indices.numpy(), broken, -1),
        "confidence": _padded(highest.values.numpy(), broken, np.nan),
    }
    if options.top_k == 0:
        columns["probability"] = _padded(probabilities.numpy().astype(np.float32), broken, np.nan)
    if options.embedding:
        columns["embedding"] = np.empty(len(columns["index"]), dtype=object)
        if batch.indices:
            rows = torch.cat([part.embedding for part in batch.outputs], dim=1).numpy()
            columns["embedding"][: len(rows)] = list(rows)
    return columns


def _padded(values: np.ndarray, rows: int, fill: float) -> np.ndarray:
    """`values` with `rows` more rows of `fill`."""
    return np.concatenate([values, np.full((rows, *values.shape[1:]), fill, values.dtype)]) if rows else values


def joined(batches: Sequence[Columns]) -> Columns:
    """The rows of all batches, by index."""
    columns = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    order = columns["index"].argsort(kind="stable")
    return {key: column[order] for key, column in columns.items()}


def whole_parts(run: RunFolder) -> set[int]:
    """The first image of each part file whose bytes are those that were written; damaged ones are removed."""
    starts = set()
    for part in run.parts.glob("*.parquet"):
        start, _, checksum = part.stem.partition("-")
        if checksum == _checksum(part):
            starts.add(int(start))
        else:
            part.unlink()
    return starts


def write_part(run: RunFolder, start: int, table: pd.DataFrame) -> None:
    """The part file of the images from `start` on, its checksum in its name, whole or not at all.

    Raises:
        SchaneError: it cannot be written.
    """
    unfinished = temporary(run.parts / f"{start:09d}.parquet")
    try:
        table.to_parquet(unfinished, index=False)
        unfinished.replace(run.parts / f"{start:09d}-{_checksum(unfinished)}.parquet")
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise SchaneError(
            f"{error.filename or run.parts} cannot be written: {error.strerror or error}; the parts before it are whole"
        ) from None


def _checksum(file: Path) -> str:
    return f"{zlib.crc32(file.read_bytes()):08x}"


def as_table(columns: Columns, images: ImageSet, class_names: Sequence[str], options: PredictOptions) -> pd.DataFrame:
    """The rows as users read them: index, path, error, prediction, confidence and whatever else was asked for."""
    names = np.array([*class_names, None], dtype=object)[columns["class"]]
    confidence, best = columns["confidence"], names[:, 0]
    table: dict[str, Any] = {
        "index": columns["index"],
        "path": [path_of(images, index) for index in columns["index"].tolist()],
        "error": columns["error"],
        "prediction": best,
        "confidence": confidence[:, 0].astype(np.float32),
    }
    if options.min_confidence is not None:
        table["most_likely"] = best
        table["prediction"] = np.where(confidence[:, 0] < options.min_confidence, UNSURE, best)
    for place in range(1, names.shape[1]):
        table[f"prediction_{place + 1}"] = names[:, place]
        table[f"confidence_{place + 1}"] = confidence[:, place].astype(np.float32)
    if "probability" in columns:
        table |= {f"probability {name}": columns["probability"][:, c] for c, name in enumerate(class_names)}
    if "embedding" in columns:
        table["embedding"] = columns["embedding"]
    return pd.DataFrame(table)


@dataclass
class Assembled:
    """What the assembly of the parts counted, and the rows for the page (most and least sure of each class)."""

    readable: int
    counts: dict[str, int]
    confidence_sum: float
    page: pd.DataFrame


def assemble(
    run: RunFolder, options: PredictOptions, class_names: Sequence[str], total: int, terminal: Terminal
) -> Assembled:
    """predictions.csv, predictions.parquet and unreadable.csv from the parts, one part in memory at a time."""
    counts: Counter[str] = Counter()
    confidence_sum, broken = 0.0, 0
    shown = ["index", "path", "prediction", "confidence", *(["most_likely"] if options.min_confidence else [])]
    page = pd.DataFrame(columns=shown)
    quota = max(FEWEST_SHOWN, SHOWN // (2 * (len(class_names) + 1)))
    writer: pq.ParquetWriter | None = None
    parts = sorted(run.parts.glob("*.parquet"))
    with terminal.task("writing the table", len(parts), "part") as task, ExitStack() as stack:
        table = stack.enter_context(run.predictions_table.open("w", newline="", encoding="utf-8"))
        errors = stack.enter_context(run.unreadable_table.open("w", newline="", encoding="utf-8"))
        for path in parts:
            frame = pd.read_parquet(path)
            unreadable = frame[frame.error.notna()]
            errors.write(csv_text(unreadable[["path", "error"]], index=False, header=errors.tell() == 0))
            broken += len(unreadable)
            good = frame[frame.error.isna()].drop(columns="error")
            task.advance()
            if good.empty:
                continue
            rows = pa.Table.from_pandas(good.drop(columns="index"), preserve_index=False)
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(run.full_predictions_table, rows.schema))
            cells = good.drop(columns=["index", "embedding"], errors="ignore")
            table.write(csv_text(cells, index=False, header=table.tell() == 0, float_format="%.6f"))
            writer.write_table(rows.cast(writer.schema))
            counts.update(good.prediction)
            confidence_sum += float(good.confidence.sum())
            page = _most_and_least(pd.concat([page, good[page.columns]] if len(page) else [good[page.columns]]), quota)
    if not broken:
        run.unreadable_table.unlink()
    return Assembled(total - broken, dict(counts.most_common()), confidence_sum, page)


def with_pictures(rows: pd.DataFrame, images: ImageSet, terminal: Terminal) -> pd.DataFrame:
    """The rows with a column `picture` of small WebP files; empty where an image cannot be read any more."""

    def picture(index: int) -> bytes:
        try:
            return thumbnail_webp(images, index)
        except (OSError, BadRequest):
            return b""

    pictures = []
    with terminal.task("thumbnails", len(rows), "img") as task:
        for one in in_threads(picture, rows["index"].astype(int).tolist()):
            pictures.append(one)
            task.advance()
    return rows.assign(picture=pictures)


def _most_and_least(rows: pd.DataFrame, quota: int) -> pd.DataFrame:
    """Of each predicted class the `quota` surest and the `quota` least sure images, surest first."""
    ordered = rows.sort_values("confidence", ascending=False, kind="stable")
    groups = ordered.groupby("prediction", sort=False)
    from_top, from_bottom = groups.cumcount(), groups.cumcount(ascending=False)
    return ordered[(from_top < quota) | (from_bottom < quota)]
