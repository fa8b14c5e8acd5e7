"""A small picture of one image of a set, for tables that pages are drawn from."""

import io
from pathlib import Path

from PIL import Image

from schane_cli.images.imageset import ImageSet

SMALL = 64  # pixels; pictures this small are kept exactly


def thumbnail_webp(images: ImageSet, index: int, side: int = 112) -> bytes:
    """Image `index`, made no larger than `side` pixels, as a WebP file.

    Of a JPEG file the decoder makes a reduced image, which takes a tenth of the time on a photograph.

    Raises:
        OSError, BadRequest: it can no longer be read.
    """
    source = images.images[index]
    if isinstance(source, Path) and source.suffix.lower() in {".jpg", ".jpeg"}:
        with Image.open(source) as file:
            file.draft("RGB", (2 * side, 2 * side))
            image = file.convert("RGB")
    else:
        image = Image.fromarray(images.read(index).permute(1, 2, 0).numpy())
    image.thumbnail((side, side), reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "webp", lossless=max(image.size) <= SMALL, quality=75, method=2)
    return buffer.getvalue()
