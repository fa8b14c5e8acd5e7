"""Labelled images: decoded in memory where the set is small, as files where it is large."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from schane_cli.errors import BadRequest

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
IN_MEMORY_BYTES = 2**30  # sets whose decoded images take less are decoded once, up front
_PEEK = 256  # image headers read to estimate what a set takes decoded
_DECODE_THREADS = 4


class Names(Sequence[str]):
    """n strings in one array of bytes: a million of them cost what they weigh, and worker processes share them."""

    def __init__(self, names: "Iterable[str] | np.ndarray") -> None:
        self._bytes = names if isinstance(names, np.ndarray) else np.array([name.encode() for name in names], dtype="S")

    def __len__(self) -> int:
        return len(self._bytes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            return Names(self._bytes[index])
        return bytes(self._bytes[index]).decode()

    def __iter__(self) -> Iterator[str]:
        return (bytes(name).decode() for name in self._bytes)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return np.array(list(self), dtype=object)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, indices: np.ndarray) -> "Names":
        """The names at `indices`."""
        return Names(self._bytes[indices])

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

    def take(self, indices: np.ndarray) -> "Stored":
        """The images at `indices`."""
        return Stored(self.fetch, self.indices[indices], self.stamp)


Images = np.ndarray | Files | Stored | list[np.ndarray] | list[Path]


@dataclass(frozen=True)
class ImageSet:
    """One split: n labelled images, in memory or as files.

    `images[i]` is either a uint8 array (H, W, 3) or the path of an image file (`images` is one array (n, H, W, 3)
    where all are of one size); `labels` is int64 (n,) into `class_names`; `ids[i]` names the image for reports, by
    its path below the dataset's folder or as `digits/0012`.
    """

    dataset: str
    split: str
    images: Images
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> torch.Tensor:
        """Image `index` as uint8 (3, H, W)."""
        image = self.images[index]
        if isinstance(image, Path):
            image = read_image(image)
        elif isinstance(image, bytes):
            image = decode(image, self.ids[index])
        return torch.from_numpy(image).permute(2, 0, 1)

    def subset(self, indices: np.ndarray, split: str) -> "ImageSet":
        """The images at `indices`, under the name `split`."""
        indices = np.asarray(indices, dtype=np.int64)
        ids = self.ids.take(indices) if isinstance(self.ids, Names) else tuple(self.ids[i] for i in indices)
        return replace(self, split=split, images=_take(self.images, indices), labels=self.labels[indices], ids=ids)

    def only_classes(self, classes: Sequence[int], split: str) -> "ImageSet":
        """The images of `classes`, relabelled 0..len(classes)-1 in that order."""
        new_label = np.full(len(self.class_names), -1)
        new_label[list(classes)] = np.arange(len(classes))
        kept = self.subset(np.flatnonzero(new_label[self.labels] >= 0), split)
        return replace(kept, labels=new_label[kept.labels], class_names=tuple(self.class_names[c] for c in classes))

    def joined(self, other: "ImageSet", split: str) -> "ImageSet":
        """These images, then the other's, which must be of the same classes."""
        if self.class_names != other.class_names:
            raise ValueError(f"{self.split} and {other.split} of {self.dataset} differ in their classes")
        labels = np.concatenate([self.labels, other.labels])
        ids = Names([*self.ids, *other.ids])
        return replace(self, split=split, images=_join(self.images, other.images), labels=labels, ids=ids)

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


def read_image(path: Path) -> np.ndarray:
    """The image file at `path` as uint8 RGB (H, W, 3), whatever its mode.

    Transparency is laid over white; 16-bit grey is scaled to 8 bits; of an animation the first frame counts.

    Raises:
        BadRequest: the file cannot be decoded, or its mode has no 8-bit meaning (32-bit float). The path is named.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"image {path} cannot be read: {_why(error)}") from None
    return decode(data, str(path))


def decode(data: bytes, where: str) -> np.ndarray:
    """An encoded image as uint8 RGB (H, W, 3), as `read_image`; `where` names it in errors."""
    if data.startswith(b"\xff\xd8"):
        decoded = _decode_rgb_jpeg(data)
        if decoded is not None:
            return decoded
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(_to_rgb(image, where))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadRequest(f"image {where} cannot be read: {_why(error)}") from None


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "cannot identify image file" if "identify" in str(error) else str(error)


def _decode_rgb_jpeg(data: bytes) -> np.ndarray | None:
    """A plain three-channel JPEG by torchvision, a third faster than PIL to the same pixels; None for all else."""
    try:
        decoded = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
    except (RuntimeError, ValueError):
        return None  # PIL reads it, or says what is wrong with it
    return decoded.permute(1, 2, 0).numpy() if len(decoded) == 3 else None


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode == "F":
        raise BadRequest(f"image {where} holds 32-bit floats, which have no fixed 8-bit meaning; convert it first")
    if image.mode.startswith("I"):  # 16-bit grey; PIL's own convert would clip at 255
        scaled = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))
    if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
    if image.mode in {"LA", "La", "RGBA", "RGBa"}:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def decode_if_small(files: Files) -> Images:
    """Decoded images where they fit in memory (which also finds every corrupt one before any work), else the files.

    Raises:
        BadRequest: an image that cannot be read.
    """
    if not _fits(files):
        return files
    decoded: list[np.ndarray] = []
    total_bytes = 0
    with ThreadPoolExecutor(_DECODE_THREADS) as pool:
        for start in range(0, len(files), 1024):
            chunk = list(pool.map(read_image, files[start : start + 1024]))
            total_bytes += sum(image.nbytes for image in chunk)
            if total_bytes > IN_MEMORY_BYTES:
                return files
            decoded += chunk
    return stack_if_even(decoded)


def _fits(files: Files) -> bool:
    """An estimate from some of the headers; what decoding then finds has the last word."""
    chosen = np.unique(np.linspace(0, len(files) - 1, min(_PEEK, len(files)), dtype=np.int64))
    sizes = []
    for index in chosen:
        path = files[int(index)]
        try:
            with Image.open(path) as image:
                sizes.append(image.width * image.height * 3)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadRequest(f"image {path} cannot be read: {_why(error)}") from None
    return bool(np.mean(sizes) * len(files) <= IN_MEMORY_BYTES)


def stack_if_even(decoded: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """One array (n, H, W, 3) where all images are of one size, else the list as it is."""
    even = len({image.shape for image in decoded}) == 1
    return np.stack(decoded) if even else decoded
