"""Decoded images kept in memory that loader processes share with the main one: filled by whoever reads one first."""

import mmap
import multiprocessing
from typing import Any

import numpy as np

_LOCK_SECONDS = 1.0  # a process that was killed may hold the lock for ever


class PixelMemory:
    """Room for the pixels of `count` images, uint8 (H, W, 3) each of its own size, `capacity_bytes` in all.

    The operating system gives memory as it is filled. Processes forked from this one fill and read the same memory; in
    one that was started anew (spawn, forkserver) nothing is kept.
    """

    def __init__(self, count: int, capacity_bytes: int) -> None:
        self._lock = multiprocessing.Lock()
        self._pixels = _zeros(capacity_bytes, np.uint8)
        self._ends = _zeros(1, np.int64)  # where the next image goes
        self._starts = _zeros(count, np.int64)  # 0: not here yet, else the place of the image, counted from 1
        self._sizes = _zeros(2 * count, np.int32).reshape(count, 2)

    def get(self, row: int) -> np.ndarray | None:
        """The pixels of image `row`, not to be written to; None where they are not here."""
        start = int(self._starts[row]) - 1 if row < len(self._starts) else -1
        if start < 0:
            return None
        height, width = self._sizes[row].tolist()
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3)

    def keep(self, row: int, image: np.ndarray) -> None:
        """Keep the pixels of image `row`, if there is room."""
        start = self._room(image.size) if row < len(self._starts) else None
        if start is None:
            return
        self._pixels[start : start + image.size] = image.reshape(-1)
        self._sizes[row] = image.shape[:2]
        self._starts[row] = start + 1  # last: from here on others read it

    def _room(self, size: int) -> int | None:
        if not self._lock.acquire(timeout=_LOCK_SECONDS):
            return None
        try:
            start = int(self._ends[0])
            if start + size > len(self._pixels):
                return None
            self._ends[0] = start + size
            return start
        finally:
            self._lock.release()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(0, 0)  # type: ignore[misc]


def _zeros(count: int, kind: Any) -> np.ndarray:
    """An array that forked processes share."""
    size = count * np.dtype(kind).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=kind, count=count) if size else np.zeros(0, kind)
