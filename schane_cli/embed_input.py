"""A table of embeddings as `schane embed` takes it in place of checkpoints: its own, or any other of that form."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from schane_cli.bootstrap import Floats, Ints
from schane_cli.data import ImageSet
from schane_cli.embed_tables import check_vectors
from schane_cli.errors import BadRequest, nearest
from schane_cli.images import Files, Names

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

    `prediction` and `confidence` are optional: without them an image counts as taken for its label. A `path` that is
    a file there gives the thumbnail. Parquet is read as data and runs nothing.

    Raises:
        BadRequest: not a parquet, a column that lacks, labels that are missing, vectors of different lengths, not
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
    lacking = [one for one, name in zip(ids, names, strict=True) if name is None]
    if lacking:
        raise BadRequest(f"{path}: {len(lacking)} images have no {label_column} ({', '.join(lacking[:3])})")
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
    """Predicted classes and their confidence; the label at 1 where the table says nothing."""
    if "prediction" not in table.column_names:
        return labels, np.ones(len(labels), np.float32)
    given = [str(name) for name in table["prediction"].to_pylist()]
    strange = next((name for name in given if name not in index), None)
    if strange is not None:
        raise BadRequest(f"{path}: the prediction {strange!r} is none of the {len(index)} classes of its labels")
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
