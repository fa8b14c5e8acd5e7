"""Images inside larger files: Hugging Face datasets through timm's reader, WebDataset shards by an index."""

import contextlib
import os
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from schane_cli.errors import BadRequest, SchaneError
from schane_cli.images.imageset import IMAGE_SUFFIXES, ImageSet, Names, Stored

_SPLIT_NAMES = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}
_COLUMNS = (("image", "label"), ("img", "label"), ("img", "fine_label"), ("image", "labels"), ("image", "fine_label"))


class HuggingFaceImages:
    """Bytes of image i of a timm reader over a Hugging Face dataset."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __call__(self, index: int) -> bytes:
        file, _ = self.reader[index]
        with file:
            return file.read()


def huggingface_parts(dataset: str, root: Path) -> dict[str, ImageSet]:
    """`hfds/NAME` (a name on the hub, or a local folder of parquet or image files) by its own splits.

    Raises:
        BadRequest: the `datasets` package is not installed, no train split, no pair of image and label columns.
        SchaneError: the dataset cannot be fetched.
    """
    if find_spec("datasets") is None:
        raise BadRequest(f"{dataset} needs Hugging Face's package: pip install datasets")
    parts = {}
    for split, names in _SPLIT_NAMES.items():
        reader = next(filter(None, (_reader(dataset, name, root) for name in names)), None)
        if reader is not None:
            parts[split] = _from_reader(dataset, split, reader)
    if "train" not in parts:
        raise BadRequest(f"{dataset} has no split called train")
    return parts


def _reader(dataset: str, split: str, root: Path) -> Any:
    """timm's reader of one split, or None where the dataset has no such split."""
    from datasets import load_dataset
    from timm.data.readers import create_reader

    name = dataset.partition("/")[2]
    cache = str(root.expanduser() / "huggingface")
    try:
        features = load_dataset(name, split=split, cache_dir=cache).features
        columns = next(((image, label) for image, label in _COLUMNS if image in features and label in features), None)
        if columns is None:
            raise BadRequest(f"{dataset} has columns {', '.join(features)}; an image and a label column are needed")
        return create_reader(dataset, root=cache, split=split, input_key=columns[0], target_key=columns[1])
    except ValueError as error:
        if "split" in str(error).lower():
            return None
        raise SchaneError(f"{dataset} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    except OSError as error:
        raise SchaneError(
            f"{dataset} is not here and cannot be fetched: {' '.join(str(error).split())[:200]}"
        ) from None


def _from_reader(dataset: str, split: str, reader: Any) -> ImageSet:
    labels = np.array(list(reader.iter_targets()), dtype=np.int64)
    names = {index: name for name, index in reader.class_to_idx.items()}
    class_names = tuple(names.get(i, str(i)) for i in range(max(len(names), int(labels.max()) + 1)))
    stamp = getattr(reader.dataset, "_fingerprint", "")
    images = Stored(HuggingFaceImages(reader), np.arange(len(labels)), f"{split} {stamp}")
    return ImageSet(dataset, split, images, labels, class_names, Names(f"{split}/{i:07d}" for i in range(len(labels))))


class TarImages:
    """Bytes of image i of some tar shards, read at its offset; each process opens the shards for itself."""

    def __init__(self, shards: list[Path], places: np.ndarray) -> None:
        self.shards, self.places = shards, places  # (n, 3): shard, offset, size
        self._open: dict[tuple[int, int], Any] = {}

    def __call__(self, index: int) -> bytes:
        shard, offset, size = (int(value) for value in self.places[index])
        key = (os.getpid(), shard)  # a file position shared with a forked parent would be moved under its feet
        if key not in self._open:
            self._open[key] = self.shards[shard].open("rb")
        handle = self._open[key]
        handle.seek(offset)
        return handle.read(size)

    def __del__(self) -> None:
        for handle in self._open.values():
            handle.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "places": self.places, "_open": {}}


def webdataset_parts(dataset: str, folder: Path) -> dict[str, ImageSet]:
    """`wds/FOLDER`: WebDataset shards (tar of KEY.jpg and KEY.cls) whose path below the folder says train, val or test.

    Class names come from classes.txt in the folder, a line each, where there is one.

    Raises:
        BadRequest: no shards, a shard that is cut short, an image without label or a label without image.
    """
    shards = sorted(folder.rglob("*.tar")) if folder.is_dir() else []
    if not shards:
        raise BadRequest(f"{folder} holds no .tar shards")
    by_split: dict[str, list[Path]] = {}
    for shard in shards:
        place = shard.relative_to(folder).as_posix()
        split = next((split for split, names in _SPLIT_NAMES.items() if any(n in place for n in names)), "all")
        by_split.setdefault(split, []).append(shard)
    if "train" not in by_split and set(by_split) != {"all"}:
        raise BadRequest(f"{folder} has shards of {', '.join(sorted(by_split))} but none whose path says train")
    listed = folder / "classes.txt"
    names = tuple(listed.read_text(encoding="utf-8").split("\n")) if listed.is_file() else ()
    names = tuple(name.strip() for name in names if name.strip())
    indexed = {split: _index(files) for split, files in by_split.items() if split in {*_SPLIT_NAMES, "all"}}
    count = max(int(labels.max()) + 1 for _, labels, _ in indexed.values())
    names = names + tuple(str(i) for i in range(len(names), count))
    parts = {}
    for split, (places, labels, keys) in indexed.items():
        files = by_split[split]
        stamp = " ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
        images = Stored(TarImages(files, places), np.arange(len(labels)), stamp)
        parts[split] = ImageSet(dataset, split, images, labels, names, Names(keys))
    return parts


def _index(shards: list[Path]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Where each image lies (n, 3), its label (n,), and its key, from one pass over the shards' headers."""
    places, labels, keys = [], [], []
    for number, shard in enumerate(shards):
        images, classes = _read_headers(shard)
        for key in images.keys() ^ classes.keys():
            raise BadRequest(f"{shard}: {key} has {'no .cls label' if key in images else 'a .cls label but no image'}")
        for key, (offset, size) in images.items():
            places.append((number, offset, size))
            labels.append(classes[key])
            keys.append(f"{shard.name}/{key}")
    if not labels:
        raise BadRequest(f"{shards[0]} holds no images")
    return np.array(places, dtype=np.int64), np.array(labels, dtype=np.int64), keys


def _read_headers(shard: Path) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    images: dict[str, tuple[int, int]] = {}
    classes: dict[str, int] = {}
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, suffix = os.path.splitext(member.name)
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                if suffix.lower() in IMAGE_SUFFIXES:
                    images[key] = (member.offset_data, member.size)
                elif suffix == ".cls":
                    content = tar.extractfile(member)
                    with contextlib.closing(content) if content else contextlib.nullcontext():
                        classes[key] = int(content.read()) if content else -1
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise BadRequest(f"shard {shard} cannot be read: {error}") from None
    return images, classes
