"""Hugging Face datasets: names on the hub, folders of parquet or image files, what `save_to_disk` writes."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from schane_cli.datasets.addresses import is_address
from schane_cli.datasets.labels import MISSING, number_labels, require_trained, settle_missing
from schane_cli.datasets.parts import Parts
from schane_cli.datasets.split_names import choose_splits, looks_like_split
from schane_cli.errors import BadRequest, SchaneError, nearest, require_package
from schane_cli.images.decode import read_file
from schane_cli.images.imageset import ImageSet, Names, Stored
from schane_cli.recipe import DataRecipe

_IMAGE_COLUMNS = ("image", "img", "images", "picture", "photo")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category", "target")
_ROWS_AT_ONCE = 1000


class HuggingFaceImages:
    """Bytes of image i of one split."""

    def __init__(self, table: Any, column: str) -> None:
        self.table, self.column = table, column

    def __call__(self, index: int) -> bytes:
        image = self.table[index][self.column]
        if image is None:
            return b""
        return image["bytes"] or (read_file(Path(image["path"])) if image["path"] else b"")


def huggingface_parts(dataset: str, name: str, recipe: DataRecipe) -> Parts:
    """A dataset's own splits, by a name on the hub, a local folder or a local parquet file.

    Raises:
        BadRequest: the `datasets` package is not installed, no train split, no column of images or of labels, images
            or labels that are missing.
        SchaneError: the dataset cannot be fetched.
    """
    require_package(f"{dataset} needs Hugging Face's package datasets", "hf", "datasets")
    tables = _load(dataset, name, recipe.root)
    chosen, notes = choose_splits(tables, dataset)
    if "train" not in chosen:
        if len(tables) > 1 or chosen:
            raise BadRequest(f"{dataset} has no split called train, only {', '.join(tables)}")
        chosen = {"all": next(iter(tables))}
    others = sorted(set(tables) - set(chosen.values()) - {name for name in tables if looks_like_split(name)})
    notes += (
        [f"splits of {dataset} that are not read, since they are not named like a split: {', '.join(others)}"]
        if others
        else []
    )
    tables = {split: tables[own] for split, own in chosen.items()}
    image_column, label_column = _columns(dataset, next(iter(tables.values())).features, recipe)
    labels, names = _labels(tables, label_column)

    def where(split: str, row: int) -> str:
        return f"{split} row {row}"

    class_names, numbers = number_labels(labels, lambda split, row: f"{dataset} {where(split, row)}", names)
    parts = Parts(notes=notes)
    for split, table in tables.items():
        images = _images(dataset, split, table, image_column, required=recipe.broken == "stop")
        ids = Names(f"{split}/{row:07d}" for row in range(len(table)))
        parts[split] = ImageSet(dataset, split, images, numbers[split], class_names, ids)
    settle_missing(parts, where, dataset)
    require_trained(parts, dataset)
    return parts


def huggingface_images(dataset: str, name: str, recipe: DataRecipe) -> ImageSet:
    """The images of all splits of a dataset as one set without labels; a row without an image is an unreadable one.

    Raises:
        BadRequest: the `datasets` package is not installed, no column of images.
        SchaneError: the dataset cannot be fetched.
    """
    require_package(f"{dataset} needs Hugging Face's package datasets", "hf", "datasets")
    import datasets

    tables = _load(dataset, name, recipe.root)
    column = _image_column(dataset, next(iter(tables.values())).features, recipe)
    stored = [_images(dataset, split, table, column, required=False) for split, table in tables.items()]
    whole = datasets.concatenate_datasets([one.fetch.table for one in stored])  # type: ignore[attr-defined]
    ids = Names(f"{split}/{row:07d}" for split, table in tables.items() for row in range(len(table)))
    images = Stored(HuggingFaceImages(whole, column), np.arange(len(whole)), " ".join(one.stamp for one in stored))
    return ImageSet(dataset, "images", images, np.full(len(whole), MISSING), (), ids)


def _load(dataset: str, name: str, root: Path) -> dict[str, Any]:
    """The tables of a dataset by its own split names."""
    import datasets

    path = Path(name).expanduser()
    if is_address(name) and not name.endswith(".parquet"):
        raise BadRequest(f"{dataset}: hfds reads parquet files by their address; {name} does not end in .parquet")
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        else:
            files = name if is_address(name) else str(path) if path.is_file() else None
            where = {"path": "parquet", "data_files": files} if files else {"path": str(_local(path, name))}
            cache = root.expanduser() / "huggingface"
            builder = datasets.load_dataset_builder(**where, cache_dir=str(cache))
            _require_room(dataset, builder, cache)
            builder.download_and_prepare()
            loaded = builder.as_dataset()
    except BadRequest:
        raise
    except OSError as error:
        raise SchaneError(f"{dataset} is not here and cannot be fetched: {_reason(error)}") from None
    except Exception as error:  # the kinds of error of a dozen readers
        raise SchaneError(f"{dataset} cannot be loaded: {_reason(error)}") from None
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "all"): loaded}


def _require_room(dataset: str, builder: Any, cache: Path) -> None:
    """Refuse before the download what the disk cannot hold; the hub says how large most sets are.

    Images are read in random order, a hundred times over, so they have to lie here: a stream from the hub would fetch
    all of them in every epoch, in an order of its own.
    """
    if Path(builder.cache_dir).is_dir():
        return  # here already
    needed = sum(size or 0 for size in (builder.info.download_size, builder.info.dataset_size))
    place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise BadRequest(
            f"{dataset} takes {needed / 1e9:.1f} GB on disk and {place} has {free / 1e9:.1f} free; sets of the hub are "
            "not streamed, since every epoch reads all images in random order: pass --data-root on a larger disk, or "
            "put shards of it where they fit and read them by wds:ADDRESS"
        )


def _local(path: Path, name: str) -> Path | str:
    return path if path.is_dir() else name


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _columns(dataset: str, features: Any, recipe: DataRecipe) -> tuple[str, str]:
    """The columns of images and of labels: as the recipe says, else by their types and usual names."""
    import datasets

    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    label = _column(dataset, recipe.label_column, features, classes, _LABEL_COLUMNS, "label")
    return _image_column(dataset, features, recipe), label


def _image_column(dataset: str, features: Any, recipe: DataRecipe) -> str:
    import datasets

    pictures = [
        name
        for name, kind in features.items()
        if isinstance(kind, datasets.Image) or (isinstance(kind, dict) and {"bytes", "path"} == set(kind))
    ]
    return _column(dataset, recipe.image_column, features, pictures, _IMAGE_COLUMNS, "image")


def _column(
    dataset: str, asked: str | None, features: Any, typed: Sequence[str], usual: Sequence[str], what: str
) -> str:
    if asked is not None:
        if asked not in features:
            raise BadRequest(
                f"{dataset} has no column {asked!r}{nearest(asked, features)}; it has {', '.join(features)}"
            )
        return asked
    for name in usual:
        if name in typed or (what == "label" and name in features):
            return name
    if len(typed) == 1:
        return typed[0]
    raise BadRequest(
        f"{dataset} has columns {', '.join(features)}; say which holds the {what}s: --set data.{what}_column=…"
    )


def _labels(tables: dict[str, Any], column: str) -> tuple[dict[str, list[Any]], dict[str, Sequence[str]] | None]:
    """The labels of each split, and the names that its numbers stand for where the source says."""
    labels = {
        split: list(table.select_columns([column])[:][column]) if column in table.features else [None] * len(table)
        for split, table in tables.items()
    }
    names = {
        split: names for split, table in tables.items() if (names := getattr(table.features.get(column), "names", None))
    }
    if not names:
        return labels, None
    first = names.get("train", next(iter(names.values())))
    return labels, {split: names.get(split, first) for split in tables}


def _images(dataset: str, split: str, table: Any, column: str, *, required: bool) -> Stored:
    import datasets

    if column not in table.features:
        raise BadRequest(f"{dataset} {split} has no column {column!r}; it has {', '.join(table.features)}")
    try:
        table = table.cast_column(column, datasets.Image(decode=False)).select_columns([column])
    except Exception as error:  # an Arrow type that holds no picture
        raise BadRequest(f"column {column!r} of {dataset} does not hold images: {_reason(error)}") from None
    if required and (empty := _rows_without_image(table, column)):
        shown = ", ".join(f"{split} row {row}" for row in empty[:5])
        raise BadRequest(
            f"{dataset}: {len(empty):,} rows have no image: {shown}; --set data.broken=leave_out leaves them out"
        )
    stamp = f"{split} {getattr(table, '_fingerprint', '')}"
    return Stored(HuggingFaceImages(table, column), np.arange(len(table)), stamp)


def _rows_without_image(table: Any, column: str) -> list[int]:
    import pyarrow.compute as pc

    rows: list[int] = []
    for start in range(0, len(table), _ROWS_AT_ONCE):
        images = table.with_format("arrow")[start : start + _ROWS_AT_ONCE].column(column).combine_chunks()
        empty = pc.and_(pc.is_null(pc.struct_field(images, "bytes")), pc.is_null(pc.struct_field(images, "path")))
        rows += [start + int(row) for row in np.flatnonzero(empty.to_numpy(zero_copy_only=False))]
    return rows
