"""The outputs of a checkpoint as a table of images: embeddings.parquet, and the vectors alone as .npy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from schane_cli.checks import require_direction, require_finite
from schane_cli.errors import BadRequest, nearest, refusing
from schane_cli.features.store import FeatureStore
from schane_cli.images.imageset import Files, ImageSet, Names
from schane_cli.metrics.resampling import Floats, Ints


def check_vectors(vectors: Floats, ids: Sequence[str], what: str) -> None:
    """Raises BadRequest, naming the images, for rows of `vectors` (n, d) that are not finite or wholly zero."""
    with refusing():
        require_finite(vectors, what, ids)
        require_direction(vectors, what, ids)


def predictions(logits: Floats) -> tuple[Ints, Floats]:
    """The predicted class (n,) of `logits` (n, C), and its probability (n,)."""
    confidence, prediction = torch.from_numpy(logits).softmax(1).max(1)
    return prediction.numpy(), confidence.numpy()


def write_table(
    path: Path, images: ImageSet, store: FeatureStore, layer: str, advance: Callable[[int], None] = lambda rows: None
) -> None:
    """One row per image (id, path, label, class_name, prediction, confidence, vector); pandas.read_parquet reads it.

    `path` is null for images that are not files; `vector` is the layer's output, float32. Written block by block;
    `advance` is called with the rows of each.

    Raises:
        BadRequest: vectors that are not finite, or zero (which images).
    """
    names = np.array(images.class_names, dtype=object)
    writer: parquet.ParquetWriter | None = None
    try:
        for rows, vectors, logits in store.blocks(layer):
            ids = list(images.ids[rows])
            check_vectors(vectors, ids, f"the {layer}")
            prediction, confidence = predictions(logits)
            table = pa.table(
                {
                    "id": pa.array(ids),
                    "path": pa.array(_paths(images, rows, ids), pa.string()),
                    "label": images.labels[rows],
                    "class_name": pa.array(names[images.labels[rows]]),
                    "prediction": pa.array(names[prediction]),
                    "confidence": confidence,
                    "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
                }
            )
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
            advance(len(ids))
    finally:
        if writer is not None:
            writer.close()


def _paths(images: ImageSet, rows: slice, ids: Sequence[str]) -> list[str | None]:
    """The files of images `rows`, also of those that were decoded up front; None for images that are not files."""
    if isinstance(images.images, Files):
        return [str(file) for file in images.images[rows]]
    folder = Path(images.dataset.removeprefix("folder:")).expanduser()
    if not images.dataset.startswith("folder:"):
        return [None] * len(ids)
    return [str(folder / name) if (folder / name).is_file() else None for name in ids]


def write_npy(path: Path, store: FeatureStore, layer: str) -> None:
    """The layer's output of all images as one array (n, d), in the order of the table; written block by block."""
    whole: Floats | None = None
    for rows, vectors, _ in store.blocks(layer):
        if whole is None:
            whole = np.lib.format.open_memmap(path, "w+", vectors.dtype, (store.n_images, vectors.shape[1]))
        whole[rows] = vectors


NO_PICTURE = np.full((4, 4, 3), 200, np.uint8)


@dataclass(frozen=True)
class EmbeddedTable:
    """n labelled vectors (n, d); prediction (n,), into the classes, and confidence (n,) where the table has them."""

    path: Path
    images: ImageSet
    vectors: Floats
    prediction: Ints
    confidence: Floats


def read_embeddings(path: Path) -> EmbeddedTable:
    """Read a parquet of `id`, `vector` and `class_name` (or `label`), as embeddings.parquet has them.

    `prediction` and `confidence` are optional: without them an image counts as predicted as its label. A `path` that is
    a file there gives the thumbnail. Parquet is read as data and runs nothing.

    Raises:
        BadRequest: not a parquet, a missing column, labels that are missing, vectors of different lengths, not
            finite or zero (which images).
    """
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise BadRequest(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None
    label_column = "class_name" if "class_name" in table.column_names else "label"
    for name in ("id", "vector", label_column):
        if name not in table.column_names:
            raise BadRequest(
                f"{path} has no column {name!r}{nearest(name, table.column_names)}; a table of embeddings has id, "
                "vector and class_name (or label), as `schane embed` writes it"
            )
    ids = [str(one) for one in table["id"].to_pylist()]
    names = table[label_column].to_pylist()
    unnamed = [one for one, name in zip(ids, names, strict=True) if name is None]
    if unnamed:
        raise BadRequest(f"{path}: {len(unnamed)} images have no {label_column} ({', '.join(unnamed[:3])})")
    vectors = _vectors(path, table["vector"], ids)
    class_names = tuple(sorted({str(name) for name in names}))
    index = {name: number for number, name in enumerate(class_names)}
    labels = np.array([index[str(name)] for name in names])
    images = ImageSet(f"table {path.stem}", "table", _pictures(table), labels, class_names, Names(ids))
    return EmbeddedTable(path, images, vectors, *_predictions(path, table, index, labels))


def _vectors(path: Path, column: pa.ChunkedArray, ids: Sequence[str]) -> Floats:
    rows = column.to_pylist()
    if not rows:
        raise BadRequest(f"{path} has no rows")
    lengths = {len(row) if isinstance(row, list) else None for row in rows}
    if len(lengths) > 1 or None in lengths or 0 in lengths:
        shown = sorted("none" if length is None else str(length) for length in lengths)
        raise BadRequest(f"{path}: the vectors are not of one length, they have {', '.join(shown[:5])} numbers")
    try:
        vectors = np.array(rows, dtype=np.float32)
    except (TypeError, ValueError):
        raise BadRequest(f"{path}: the column vector holds something other than numbers") from None
    check_vectors(vectors, ids, f"{path}: the vector")
    return vectors


def _predictions(path: Path, table: pa.Table, index: dict[str, int], labels: Ints) -> tuple[Ints, Floats]:
    """Predicted classes and their confidence; the label with confidence 1 where the table has none."""
    if "prediction" not in table.column_names:
        return labels, np.ones(len(labels), np.float32)
    given = [str(name) for name in table["prediction"].to_pylist()]
    strange = next((name for name in given if name not in index), None)
    if strange is not None:
        raise BadRequest(f"{path}: the prediction {strange!r} is not one of the {len(index)} classes of its labels")
    prediction = np.array([index[name] for name in given])
    has = "confidence" in table.column_names
    confidence: Any = table["confidence"].to_numpy() if has else np.ones(len(given))
    return prediction, confidence.astype(np.float32)


def _pictures(table: pa.Table) -> Any:
    """The files that the table names, if all are there; else a grey square for each image."""
    paths = [Path(one) if one else None for one in table["path"].to_pylist()] if "path" in table.column_names else []
    if paths and all(one is not None and one.is_file() for one in paths):
        return Files(Path("/"), Names(str(one.absolute()).lstrip("/") for one in paths if one is not None))
    return np.tile(NO_PICTURE, (len(table), 1, 1, 1))
