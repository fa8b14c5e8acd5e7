"""Labelled images: decoded in memory where the set is small, as files where it is large."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch

from schane_cli.images.decode import decode, printable, read_image
from schane_cli.images.pixels import PixelMemory

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

SAMPLE_BYTES = 2048
_NAMES_AT_ONCE = 8192
_STRIP = 64  # of an image that is longer than this many times its width only the middle is kept


class Names(Sequence[str]):
    """n strings in one array of bytes: a million of them take only their bytes, and worker processes share them."""

    def __init__(self, names: "Iterable[str] | np.ndarray") -> None:
        if not isinstance(names, np.ndarray):
            names = np.array([name.encode("utf-8", "surrogateescape") for name in names], dtype="S")
        self._bytes = names

    @property
    def packed(self) -> np.ndarray:
        """The names as bytes of one width, which `Names` takes back."""
        return self._bytes

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

    def blocks(self) -> Iterator[list[bytes]]:
        """All names as bytes, some thousands at a time."""
        for start in range(0, len(self._bytes), _NAMES_AT_ONCE):
            yield self._bytes[start : start + _NAMES_AT_ONCE].tolist()

    def take(self, indices: np.ndarray) -> "Names":
        """The names at `indices`."""
        return Names(self._bytes[indices])

    def printable(self) -> "Names":
        """The same names, with bytes that are not UTF-8 written as \\xe9."""
        try:
            for block in self.blocks():
                b"\n".join(block).decode()
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

    def path(self, index: int) -> str:
        """As `files[index]`, in a quarter of the time."""
        return os.path.join(self.folder, self.names[index])

    def states(self) -> Iterator[os.stat_result]:
        """What the file system says of each file."""
        folder = os.path.join(os.fsencode(self.folder), b"")
        return (os.stat(folder + name) for block in self.names.blocks() for name in block)

    def take(self, indices: np.ndarray) -> "Files":
        """The files at `indices`."""
        return Files(self.folder, self.names.take(indices))

    def joined(self, other: "Files") -> "Files":
        """These files, then the other's, which lie below the same folder."""
        return Files(self.folder, self.names.joined(other.names))


class KeptFiles(Files):
    """Image files whose pixels are kept in memory once they have been read; `rows[i]` is the place of file i in it."""

    def __init__(self, folder: Path, names: Names, memory: PixelMemory, rows: np.ndarray) -> None:
        super().__init__(folder, names)
        self.memory, self.rows = memory, rows

    def pixels(self, index: int) -> np.ndarray:
        """File `index` as uint8 (H, W, 3), not to be written to; read at the first call."""
        row = int(self.rows[index])
        kept = self.memory.get(row)
        if kept is None:
            kept = read_image(self[index])
            self.memory.keep(row, kept)
        return kept

    def take(self, indices: np.ndarray) -> "KeptFiles":
        return KeptFiles(self.folder, self.names.take(indices), self.memory, self.rows[indices])

    def joined(self, other: Files) -> Files:
        if not isinstance(other, KeptFiles) or other.memory is not self.memory:
            return super().joined(other)
        rows = np.concatenate([self.rows, other.rows])
        return KeptFiles(self.folder, self.names.joined(other.names), self.memory, rows)


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


class _InARow:
    """What fetches the images of two collections, numbered one after the other."""

    def __init__(self, first: Stored, second: Stored) -> None:
        self._first, self._second = first, second

    def __call__(self, index: int) -> bytes:
        stored, own = self._place(index)
        return stored[own]

    def sample(self, index: int) -> bytes:
        """As `Stored.sample`."""
        stored, own = self._place(index)
        return stored.sample(own)

    def _place(self, index: int) -> tuple[Stored, int]:
        count = len(self._first)
        return (self._first, index) if index < count else (self._second, index - count)


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
        images = self.images
        if isinstance(images, np.ndarray):
            return torch.from_numpy(images[index]).permute(2, 0, 1)
        image = images.pixels(index) if isinstance(images, KeptFiles) else images[index]
        if isinstance(image, Path):
            image = read_image(image)
        elif isinstance(image, bytes):
            image = decode(image, f"{self.ids[index]} of {self.dataset}")
        height, width = image.shape[:2]
        if height > _STRIP * width or width > _STRIP * height:
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
        ids = _names(self.ids).joined(_names(other.ids))
        known = self.content is not None and other.content is not None
        content = np.concatenate([self.content, other.content]) if known else None
        images = _join(self.images, other.images)
        return replace(self, split=split, images=images, labels=labels, ids=ids, content=content)

    def identity(self) -> str:
        """sha256 over dataset, class names, ids and labels: the same images on any machine."""
        digest = self._digest()
        digest.update(np.asarray(self.labels, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """sha256 over ids, labels, class names and pixels (or file sizes and times): what a cache is keyed by."""
        digest = self._digest()
        digest.update(self.labels.tobytes())
        if isinstance(self.images, Stored):
            digest.update(self.images.stamp.encode())
        elif isinstance(self.images, Files):
            for state in self.images.states():
                digest.update(b"%d %d" % (state.st_size, state.st_mtime_ns))
        else:
            for image in self.images:
                if isinstance(image, Path):
                    state = image.stat()
                    digest.update(b"%d %d" % (state.st_size, state.st_mtime_ns))
                else:
                    digest.update(np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()

    def _digest(self) -> "Hash":
        """sha256 that dataset, class names and ids have gone into."""
        digest = sha256(repr((self.dataset, self.class_names)).encode())
        for number, block in enumerate(_names(self.ids).blocks()):
            digest.update(b"\0" * (number > 0) + b"\0".join(block))
        return digest


def _names(ids: Sequence[str]) -> Names:
    return ids if isinstance(ids, Names) else Names(ids)


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
        return first.joined(second)
    if isinstance(first, Stored) and isinstance(second, Stored):
        if first.fetch is second.fetch:
            return Stored(first.fetch, np.concatenate([first.indices, second.indices]), first.stamp)
        both = len(first) + len(second)
        return Stored(_InARow(first, second), np.arange(both), f"{first.stamp} {second.stamp}")
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
