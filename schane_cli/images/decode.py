"""Encoded pictures into pixels: any picture format that Pillow reads, upright, 8 bits per channel, on white."""

import io
import os
import stat
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from schane_cli.errors import BadRequest

MAX_PIXELS = 2**28  # 268 million: above the largest phone camera; decoded, 0.8 GB
# Picture formats only: Pillow also opens EPS (by starting Ghostscript), PDF-like and scientific containers.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "QOI", "HEIF")
_HEIF_SUFFIXES = frozenset({".heic", ".heif", ".heics", ".heifs", ".hif"})
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE, _SAMPLE_FORMAT = 258, 262, 281, 339  # TIFF tags
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def read_image(path: Path) -> np.ndarray:
    """The image file at `path` as uint8 RGB (H, W, 3), whatever its mode.

    EXIF orientation is applied; transparency is laid over white; 12- and 16-bit grey is scaled to 8 bits; of an
    animation the first frame counts.

    Raises:
        BadRequest: the file cannot be decoded, declares more than MAX_PIXELS, or its mode has no 8-bit meaning
            (32-bit floats and integers). The path is named.
    """
    return decode(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """The bytes of a regular file; a pipe or a device is refused rather than waited for."""
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(number, "rb") as file:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise BadRequest(f"image {printable(str(path))} cannot be read: it is not a regular file")
            return file.read()
    except OSError as error:
        raise BadRequest(f"image {printable(str(path))} cannot be read: {_why(error)}") from None


def decode(data: bytes, where: str) -> np.ndarray:
    """An encoded image as uint8 RGB (H, W, 3), as `read_image`; `where` names it in errors."""
    try:
        if data.startswith(b"\xff\xd8"):
            decoded = _decode_rgb_jpeg(data)
            if decoded is not None:
                return decoded
        with _open(data) as image:
            return np.array(_upright_rgb(image))
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise BadRequest(f"image {printable(where)} cannot be read: {_why(error)}") from None


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """Width and height that an encoded image declares, in pixels."""
    try:
        with _open(data) as image:
            return image.size
    except Exception as error:
        raise BadRequest(f"image {printable(where)} cannot be read: {_why(error)}") from None


def printable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 are shown as \\xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@cache
def image_suffixes() -> frozenset[str]:
    """The file name endings that can be read here, lower case, with the dot; HEIC's with the extra `heif`."""
    formats = _formats()  # first: it registers HEIC's suffixes
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def suffix_hint(suffix: str) -> str:
    """What to install to read files of an ending that cannot be read now; empty where nothing would help."""
    return " (pip install 'schane[heif]' reads them)" if suffix in _HEIF_SUFFIXES else ""


def starts_as_image(data: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of a picture."""
    return (
        data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"qoif"))
        or (data.startswith(b"RIFF") and data[8:12] == b"WEBP")
        or (data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"))
        or (_is_heif(data) and "HEIF" in _formats())
    )


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


@cache
def _formats() -> tuple[str, ...]:
    """The names of the formats that this installation reads."""
    Image.init()
    if find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(data: bytes) -> Image.Image:
    """An image whose header has been read and whose size is within the limit."""
    if not data:
        raise ValueError("it is empty (0 bytes)")
    if _is_heif(data) and "HEIF" not in _formats():
        raise ValueError("it is HEIC, which takes the extra heif: pip install 'schane[heif]'")
    image = Image.open(io.BytesIO(data), formats=_formats())
    _require_size(*image.size)
    return image


def _require_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"it declares {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")


def _why(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it declares more pixels than the limit of {MAX_PIXELS:,}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())[:200]
    return "cannot identify image file" if "identify" in text else text or type(error).__name__


def _decode_rgb_jpeg(data: bytes) -> np.ndarray | None:
    """A plain three-channel JPEG by torchvision, a third faster than Pillow to the same pixels; None for all else."""
    size = _jpeg_size(data)
    if size is None:
        return None
    _require_size(*size)
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        decoded = decode_jpeg(encoded, mode=ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    except (RuntimeError, ValueError):
        return None  # Pillow reads it, or says why it cannot
    return decoded.permute(1, 2, 0).numpy() if len(decoded) == 3 else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from a JPEG's frame header; None where there is none."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(data[place + 5 : place + 7], "big")
            return int.from_bytes(data[place + 7 : place + 9], "big"), height
        if marker == 0xFF:  # a fill byte
            place += 1
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def _upright_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB, turned as its EXIF orientation says."""
    image.load()
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # unreadable metadata is ignored
        orientation = 1
    rgb = _to_rgb(image)
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("it holds 32-bit floats, which have no fixed 8-bit meaning; convert it first")
    if image.mode.startswith("I"):
        image = _from_deep_grey(image)
    if image.mode in {"PA", "LA", "La", "RGBA", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """12- and 16-bit grey as 8-bit grey, with alpha where one grey value means transparent."""
    tags: Any = getattr(image, "tag_v2", {})
    is_integer_tiff = bool(tags) and (image.mode == "I" or _first(tags.get(_SAMPLE_FORMAT), 1) != 1)
    if is_integer_tiff or (image.mode == "I" and image.format not in {None, "PNG", "PPM"}):
        raise ValueError("it holds signed or 32-bit integers, which have no fixed 8-bit meaning; convert it first")
    values = np.asarray(image).astype(np.int64)
    bits = _first(tags.get(_BITS_PER_SAMPLE), 16)
    highest = min(_first(tags.get(_MAX_SAMPLE_VALUE), 2**bits - 1), 2**bits - 1)  # 12 bits often lie in 16
    shift = max(highest, 1023).bit_length() - 8
    grey = np.clip(values >> shift, 0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    return Image.fromarray(grey)


def _first(value: Any, default: int) -> int:
    """A TIFF tag's value, or the first of its values."""
    if value is None:
        return default
    return int(value[0] if isinstance(value, tuple) else value)
