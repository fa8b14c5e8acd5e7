"""Labelled images: decoded in memory where the set is small, as files where it is large."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import overload

import numpy as np
import torch

from schane_cli.images.decode import decode, printable, read_image

SAMPLE_BYTES = 2048
_STRIP = 64  # of an image that is longer than this many times its width only the middle is kept


class Names(Sequence[str]):
    """n strings in one array of bytes: a million of them take only their bytes, and worker processes share them."""

    def __init__(self, names: "Iterable[str] | np.ndarray") -> None:
        if not isinstance(names, np.ndarray):
            names = np.array([name.encode("utf-8", "surrogateescape") for name in names], dtype="S")
        self._bytes = names

    def __len__(self) -> int:
        return len(self._bytes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            return Names(self._bytes[index])
        return bytes(self._bytes[index]).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (bytes(name).decode("utf-8", "surrogateescape") for name in self._bytes)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return np.array(list(self), dtype=object)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, indices: np.ndarray) -> "Names":
        """The names at `indices`."""
        return Names(self._bytes[indices])

    def printable(self) -> "Names":
        """The same names, with bytes that are not UTF-8 written as \\xe9."""
        try:
            b"\n".join(self._bytes.tolist()).decode()
        except UnicodeDecodeError:
            return Names(printable(name) for name in self)
        return self

    def joined(self, other: "Names") -> "Names":
        """These names, then the other's."""
        return Names(np.concatenate([self._bytes, other._bytes]))


class Files(Sequence[Path]):
    """Image files below one folder, by name."""

    def __init__(self, folder: Path, names: Names) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> "Files": ...
    def __getitem__(self, index: int | slice) -> "Path | Files":
        if isinstance(index, slice):
            return Files(self.folder, self.names[index])
        return self.folder / self.names[index]

    def take(self, indices: np.ndarray) -> "Files":
        """The files at `indices`."""
        return Files(self.folder, self.names.take(indices))


class Stored(Sequence[bytes]):
    """Encoded images inside something larger (tar shards, Arrow tables): `fetch(i)` gives image i's bytes.

    `stamp` stands for the content in fingerprints.
    """

    def __init__(self, fetch: Callable[[int], bytes], indices: np.ndarray, stamp: str) -> None:
        self.fetch, self.indices, self.stamp = fetch, indices, stamp

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> "Stored": ...
    def __getitem__(self, index: int | slice) -> "bytes | Stored":
        if isinstance(index, slice):
            return Stored(self.fetch, self.indices[index], self.stamp)
        return self.fetch(int(self.indices[index]))

    def sample(self, index: int) -> bytes:
        """A few kilobytes that stand for image `index`: its length and bytes from its middle and its end."""
        own = getattr(self.fetch, "sample", None)
        return own(int(self.indices[index])) if own is not None else sample_of(self[index])

    def take(self, indices: np.ndarray) -> "Stored":
        """The images at `indices`."""
        return Stored(self.fetch, self.indices[indices], self.stamp)


def sample_of(data: bytes) -> bytes:
    """The length of `data`, and bytes from its middle and its end."""
    size = len(data)
    middle, tail = sample_places(size)
    return size.to_bytes(8, "big") + data[middle : middle + SAMPLE_BYTES] + data[tail:]


def sample_places(size: int) -> tuple[int, int]:
    """Where the two pieces of a sample of `size` bytes begin."""
    return max(size // 2 - SAMPLE_BYTES // 2, 0), max(size - SAMPLE_BYTES, 0)


Images = np.ndarray | Files | Stored | list[np.ndarray] | list[Path]


@dataclass(frozen=True)
class ImageSet:
    """One split: n labelled images, in memory or as files.

    `images[i]` is either a uint8 array (H, W, 3) or the path of an image file (`images` is one array (n, H, W, 3)
    where all are of one size); `labels` is int64 (n,) into `class_names`; `ids[i]` names the image for reports, by
    its path below the dataset's folder or as `digits/0012`. `content` is uint64 (n,), a hash of each image's content
    (see `content.with_content`), or None where it has not been computed.
    """

    dataset: str
    split: str
    images: Images
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: Sequence[str]
    content: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> torch.Tensor:
        """Image `index` as uint8 (3, H, W); of a strip more than 64 times as long as it is wide, the middle."""
        image = self.images[index]
        if isinstance(image, Path):
            image = read_image(image)
        elif isinstance(image, bytes):
            image = decode(image, f"{self.ids[index]} of {self.dataset}")
        height, width = image.shape[:2]
        if max(height, width) > _STRIP * min(height, width):
            image = _middle_of_strip(image)
        return torch.from_numpy(image).permute(2, 0, 1)

    def subset(self, indices: np.ndarray, split: str) -> "ImageSet":
        """The images at `indices`, under the name `split`."""
        indices = np.asarray(indices, dtype=np.int64)
        ids = self.ids.take(indices) if isinstance(self.ids, Names) else tuple(self.ids[i] for i in indices)
        content = None if self.content is None else self.content[indices]
        images = _take(self.images, indices)
        return replace(self, split=split, images=images, labels=self.labels[indices], ids=ids, content=content)

    def renamed(self, split: str) -> "ImageSet":
        """The same images under another split's name."""
        return replace(self, split=split)

    def relabelled(self, labels: np.ndarray) -> "ImageSet":
        """The same images with other labels, int64 (n,) into the same class names."""
        return replace(self, labels=labels)

    def only_classes(self, classes: Sequence[int], split: str) -> "ImageSet":
        """The images of `classes`, relabelled 0..len(classes)-1 in that order."""
        new_label = np.full(len(self.class_names), -1)
        new_label[list(classes)] = np.arange(len(classes))
        kept = self.subset(np.flatnonzero(new_label[self.labels] >= 0), split)
        return replace(kept, labels=new_label[kept.labels], class_names=tuple(self.class_names[c] for c in classes))

    def of_classes(self, names: Sequence[str]) -> "ImageSet":
        """The images of the classes `names`, relabelled in that order; ValueError for an unknown name."""
        names = tuple(names)
        if names == self.class_names:
            return self
        return self.only_classes([self.class_names.index(name) for name in names], self.split)

    def joined(self, other: "ImageSet", split: str) -> "ImageSet":
        """These images, then the other's, which must be of the same classes."""
        if self.class_names != other.class_names:
            raise ValueError(f"{self.split} and {other.split} of {self.dataset} differ in their classes")
        labels = np.concatenate([self.labels, other.labels])
        ids = Names([*self.ids, *other.ids])
        known = self.content is not None and other.content is not None
        content = np.concatenate([self.content, other.content]) if known else None
        images = _join(self.images, other.images)
        return replace(self, split=split, images=images, labels=labels, ids=ids, content=content)

    def identity(self) -> str:
        """sha256 over dataset, class names, ids and labels: the same images on any machine."""
        digest = sha256(repr((self.dataset, self.class_names)).encode())
        digest.update("\0".join(self.ids).encode() + np.asarray(self.labels, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """sha256 over ids, labels, class names and pixels (or file sizes and times): what a cache is keyed by."""
        digest = sha256(repr((self.dataset, self.class_names)).encode())
        digest.update("\0".join(self.ids).encode())
        digest.update(self.labels.tobytes())
        if isinstance(self.images, Stored):
            digest.update(self.images.stamp.encode())
            return digest.hexdigest()
        for image in self.images:
            if isinstance(image, Path):
                stat = image.stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
            else:
                digest.update(np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()


def _take(images: Images, indices: np.ndarray) -> Images:
    if isinstance(images, np.ndarray):
        return images[indices]
    if isinstance(images, Files | Stored):
        return images.take(indices)
    return [images[i] for i in indices]


def _join(first: Images, second: Images) -> Images:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray) and first.shape[1:] == second.shape[1:]:
        return np.concatenate([first, second])
    if isinstance(first, Files) and isinstance(second, Files) and first.folder == second.folder:
        return Files(first.folder, first.names.joined(second.names))
    if isinstance(first, Stored) and isinstance(second, Stored) and first.fetch is second.fetch:
        return Stored(first.fetch, np.concatenate([first.indices, second.indices]), first.stamp)
    return [*first, *second]


def _middle_of_strip(image: np.ndarray) -> np.ndarray:
    """The middle of an image, `_STRIP` times as long as wide: scaled up by its short side it would fill the memory."""
    height, width = image.shape[:2]
    length = _STRIP * min(height, width)
    top, left = max(height - length, 0) // 2, max(width - length, 0) // 2
    return np.ascontiguousarray(image[top : top + length, left : left + length])


def stack_if_even(decoded: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """One array (n, H, W, 3) where all images are of one size, else the list as it is."""
    even = len({image.shape for image in decoded}) == 1
    return np.stack(decoded) if even else decoded
