"""What each image holds, as a number: equal numbers are equal images, whatever their names."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from schane_cli.errors import BadRequest
from schane_cli.images.decode import read_file
from schane_cli.images.imageset import SAMPLE_BYTES, Files, ImageSet, Stored, sample_places
from schane_cli.images.threads import in_threads

_ADVANCE = 512  # images at a time, since a bar takes as long to move as an image to look at
Advance = Callable[[int], None]  # called with how many more images are done


def with_content(parts: dict[str, ImageSet], advance: Advance) -> dict[str, ImageSet]:
    """The same image sets with `content` filled in: uint64 (n,), equal for equal images in any of them.

    Decoded images are compared by their pixels. Encoded ones by their bytes: length and a sample from the middle and
    the end of each first, then the whole of those that agree in it. A file that cannot be read has a number made from
    its name.
    """
    first = {split: _first_look(part, advance) for split, part in parts.items()}
    numbers, counts = np.unique(np.concatenate(list(first.values())), return_counts=True)
    repeated = numbers[counts > 1]
    return {
        split: replace(part, content=_second_look(part, first[split], np.isin(first[split], repeated)))
        for split, part in parts.items()
    }


def unread_count(parts: dict[str, ImageSet]) -> int:
    """The number of images that are not in memory."""
    return sum(len(part) for part in parts.values() if isinstance(part.images, Files | Stored))


def _first_look(part: ImageSet, advance: Advance) -> np.ndarray:
    look = _look_at_sample if isinstance(part.images, Files | Stored) else _look_at_pixels
    numbers = np.empty(len(part), dtype=np.uint64)
    for index, number in enumerate(in_threads(lambda index: look(part, index), range(len(part)))):
        numbers[index] = number
        if index % _ADVANCE == _ADVANCE - 1:
            advance(_ADVANCE)
    advance(len(part) % _ADVANCE)
    return numbers


def _second_look(part: ImageSet, numbers: np.ndarray, doubtful: np.ndarray) -> np.ndarray:
    """Numbers of whole files for images whose samples are shared."""
    if not isinstance(part.images, Files | Stored):
        return numbers
    numbers = numbers.copy()
    links: dict[tuple[int, int], np.uint64] = {}  # files of several names are read once
    for index in map(int, np.flatnonzero(doubtful)):
        try:
            if isinstance(part.images, Stored):
                numbers[index] = number_of(part.images[index])
            else:
                numbers[index] = _number_of_file(part.images.path(index), links)
        except (OSError, BadRequest):
            continue
    return numbers


def _number_of_file(file: str, links: dict[tuple[int, int], np.uint64]) -> np.uint64:
    """The number of a whole file; that of one with several names goes into `links`, and is taken from there."""
    state = os.stat(file)
    key = (state.st_dev, state.st_ino)
    if key in links:
        return links[key]
    number = number_of(read_file(Path(file)))
    if state.st_nlink > 1:
        links[key] = number
    return number


def number_of(*data: bytes) -> np.uint64:
    """64 bits of the BLAKE2 hash of some bytes."""
    digest = blake2b(digest_size=8)
    for piece in data:
        digest.update(piece)
    return np.uint64(int.from_bytes(digest.digest(), "big"))


def _look_at_pixels(part: ImageSet, index: int) -> np.uint64:
    image = part.images[index]
    if not isinstance(image, np.ndarray):
        return _look_at_sample(part, index)
    return number_of(repr(image.shape).encode(), np.ascontiguousarray(image).tobytes())


def _look_at_sample(part: ImageSet, index: int) -> np.uint64:
    try:
        if isinstance(part.images, Stored):
            return number_of(part.images.sample(index))
        assert isinstance(part.images, Files)
        return number_of(sample_of_file(part.images.path(index)))
    except (OSError, BadRequest):
        return number_of(b"unreadable", part.ids[index].encode("utf-8", "surrogateescape"))


def sample_of_file(path: str | Path) -> bytes:
    """As `imageset.sample_of`, reading no more of the file than that."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(number).st_size
        pieces = [size.to_bytes(8, "big")]
        for place in sample_places(size):
            os.lseek(number, place, os.SEEK_SET)
            pieces.append(os.read(number, SAMPLE_BYTES))
    finally:
        os.close(number)
    return b"".join(pieces)


def shared_between(parts: dict[str, ImageSet]) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Pairs of equal images in two sets: {("train", "test"): [(index in train, index in test), ...]}."""
    pairs: dict[tuple[str, str], list[tuple[int, int]]] = {}
    names = list(parts)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            shared = _pairs(content_of(parts[one]), content_of(parts[other]))
            if shared:
                pairs[one, other] = shared
    return pairs


def _pairs(one: np.ndarray, other: np.ndarray) -> list[tuple[int, int]]:
    hits = np.flatnonzero(np.isin(other, one))
    shared = np.flatnonzero(np.isin(one, other[hits]))
    numbers, first = np.unique(one[shared], return_index=True)
    places = shared[first[np.searchsorted(numbers, other[hits])]] if len(hits) else hits
    return list(zip(places.tolist(), hits.tolist(), strict=True))


def content_of(part: ImageSet) -> np.ndarray:
    """The content numbers of a set, uint64 (n,); ValueError where `with_content` has not filled them in."""
    if part.content is None:
        raise ValueError(f"{part.split} of {part.dataset} has no content numbers; call with_content first")
    return part.content


def without_shared(train: ImageSet, others: Sequence[ImageSet]) -> ImageSet:
    """`train` without the images that are also in any of the others."""
    held = np.concatenate([content_of(other) for other in others])
    return train.subset(np.flatnonzero(~np.isin(content_of(train), held)), train.split)
