"""Small pictures of many images in one sheet, so that a page of ten thousand points carries them all."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from schane_cli.images.imageset import ImageSet

SHEET_BYTES = 2_000_000  # this leaves the page of a checkpoint with 10,000 images below 6 MB
QUALITIES = (80, 60, 40, 20)
SMALL = 24  # pixels; images this small are shown with hard edges, and kept exactly


@dataclass(frozen=True)
class Sheet:
    """A WebP of `columns` thumbnails a row, each `side` pixels; image i is at column i % columns, row i // columns."""

    webp: bytes
    side: int
    columns: int

    @property
    def edges(self) -> str:
        """CSS image-rendering: hard edges for images of few pixels."""
        return "pixelated" if self.side <= SMALL else "auto"


def sheet(images: ImageSet, advance: Callable[[], None] = lambda: None) -> Sheet:
    """A thumbnail of every image of the set, in order; `advance` is called after each.

    Images keep their aspect ratio, on transparent ground. The more images, the smaller the thumbnails (64 to 32
    pixels), and the coarser the compression until the sheet is below SHEET_BYTES.
    """
    n = len(images)
    first = images.read(0)
    side = min(64 if n <= 1500 else 48 if n <= 4000 else 32, max(first.shape[1:]))
    columns = int(np.ceil(np.sqrt(n)))
    canvas = Image.new("RGBA", (columns * side, -(-n // columns) * side))
    for index in range(n):
        image = Image.fromarray(images.read(index).permute(1, 2, 0).numpy())
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        row, column = divmod(index, columns)
        canvas.paste(image, (column * side + (side - size[0]) // 2, row * side + (side - size[1]) // 2))
        advance()
    return Sheet(_compressed(canvas, lossless=side <= SMALL), side, columns)


def read_sheet(path: Path, n: int) -> Sheet:
    """The sheet of n thumbnails whose picture was saved at `path`."""
    content, columns = path.read_bytes(), int(np.ceil(np.sqrt(n)))
    return Sheet(content, Image.open(io.BytesIO(content)).width // columns, columns)


def _compressed(canvas: Image.Image, lossless: bool) -> bytes:
    """The first of several encodings that is small enough, else the smallest."""
    attempts: list[dict[str, Any]] = [{"lossless": True}] if lossless else []
    for options in [*attempts, *({"quality": quality} for quality in QUALITIES)]:
        buffer = io.BytesIO()
        canvas.save(buffer, "webp", method=2, **options)
        if buffer.tell() <= SHEET_BYTES:
            break
    return buffer.getvalue()
