"""CIFAR-100 from every usual layout, always as the same images in the same order, and its few-shot sets."""

from collections import defaultdict
from hashlib import sha1
from pathlib import Path

import numpy as np

from schane_cli.datasets.dataset import DATASETS, class_list, require_ready
from schane_cli.datasets.folders import class_folder_set
from schane_cli.errors import BadRequest
from schane_cli.images.decode import decode
from schane_cli.images.imageset import ImageSet, Names
from schane_cli.images.memory import in_memory_if_small
from schane_cli.images.threads import in_threads

_MISSPELT = {"cra": "crab"}  # Hugging Face's class 26
_SPLITS = ("train", "test")


def cifar100(folder: Path) -> dict[str, ImageSet]:
    """Train and test from torchvision's archive, Hugging Face's parquet files, or class folders under train/ and test/.

    Images are ordered and named by class and content, so that every layout gives the same splits and the same run.

    Raises:
        BadRequest: a checksum that does not match, a missing column, a class folder that is not one of the hundred.
    """
    if (folder / "cifar-100-python").is_dir():
        parts = {split: _from_archive(folder, split) for split in _SPLITS}
    elif (folder / "train").is_dir():
        parts = {split: _from_folders(folder, split) for split in _SPLITS}
    else:
        parts = {split: _from_parquet(folder, split) for split in _SPLITS}
    return {split: _canonical(pixels, labels, split) for split, (pixels, labels) in parts.items()}


def _canonical(pixels: np.ndarray, labels: np.ndarray, split: str) -> ImageSet:
    names = class_list("cifar100")["all"]
    present = np.unique(labels)
    seen: dict[str, int] = defaultdict(int)
    ids = []
    for image, label in zip(pixels, labels, strict=True):
        name = f"{split}/{names[label]}/{sha1(image.tobytes(), usedforsecurity=False).hexdigest()[:16]}"
        seen[name] += 1
        ids.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    order = np.argsort(np.array(ids), kind="stable")
    images = np.ascontiguousarray(pixels[order])
    position = np.searchsorted(present, labels[order])
    return ImageSet("cifar100", split, images, position, tuple(names[i] for i in present), Names(ids[i] for i in order))


def _from_archive(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Through torchvision, which verifies the md5 of each file before it unpickles it."""
    from torchvision.datasets import CIFAR100

    try:
        source = CIFAR100(str(folder), train=split == "train", download=False)
    except RuntimeError:
        raise BadRequest(
            f"{folder / 'cifar-100-python'} is incomplete or altered (checksum); remove it and run "
            "`schane data prepare cifar100` again"
        ) from None
    return source.data, np.array(source.targets, dtype=np.int64)


def _from_folders(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    part, _ = in_memory_if_small(class_folder_set("cifar100", split, folder / split, below=folder))
    index = {name: label for label, name in enumerate(class_list("cifar100")["all"])}
    class_names = [_MISSPELT.get(name, name) for name in part.class_names]
    unknown = [name for name in class_names if name not in index]
    if unknown:
        raise BadRequest(f"{folder / split} has a class {unknown[0]!r} that CIFAR-100 does not have")
    if not isinstance(part.images, np.ndarray) or part.images.shape[1:] != (32, 32, 3):
        raise BadRequest(f"{folder / split} holds images that are not 32 x 32; CIFAR-100's are")
    return part.images, np.array([index[name] for name in class_names])[part.labels]


def _from_parquet(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Columns img {bytes, path} and fine_label; parquet is read as data and runs nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.rglob(f"{split}-*.parquet"))
    try:
        table = pa.concat_tables([pq.read_table(file, columns=["img", "fine_label"]) for file in files])
        encoded = [row["bytes"] for row in table.column("img").to_pylist()]
        labels = np.array(table.column("fine_label").to_pylist(), dtype=np.int64)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadRequest(f"{files[0]} is not CIFAR-100's parquet with columns img and fine_label: {reason}") from None
    if len(labels) and not (labels.min() >= 0 and labels.max() < 100):
        raise BadRequest(f"{files[0]} has a fine_label outside 0 to 99")
    where = [f"{files[0]} row {row}" for row in range(len(encoded))]
    pixels = list(in_threads(lambda row: decode(encoded[row], where[row]), range(len(encoded))))
    if {image.shape for image in pixels} != {(32, 32, 3)}:
        raise BadRequest(f"{files[0]} holds images that are not 32 x 32; CIFAR-100's are")
    return np.stack(pixels), labels


def fewshot_parts(folder: Path, name: str) -> dict[str, ImageSet]:
    """Classes of CIFAR-FS or FC100 by name, over train and test of CIFAR-100 merged: 600 images per class.

    Raises:
        BadRequest: a class of the list is missing from CIFAR-100 in `folder`.
    """
    parts = cifar100(folder)
    whole = parts["train"].joined(parts["test"], "all")
    parts = {}
    for split, names in class_list(name).items():
        missing = sorted(set(names) - set(whole.class_names))
        if missing:
            raise BadRequest(f"class {missing[0]!r}, which {name} needs, is missing from CIFAR-100 in {folder}")
        part = whole.of_classes(names)
        parts[split] = ImageSet(name, split, part.images, part.labels, part.class_names, part.ids)
    return parts


def cifar_folder(root: Path) -> Path:
    """`<root>/cifar100`, or the root itself where torchvision has put its archive straight into it."""
    place = root.expanduser()
    if (place / "cifar-100-python").is_dir():
        return place
    dataset = DATASETS["cifar100"]
    require_ready(dataset, root)
    return dataset.folder(root)
