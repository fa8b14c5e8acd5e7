"""Pictures as they come: turned, deep, transparent, huge, disguised."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schane_cli.errors import BadRequest
from schane_cli.images import decode as decode_module
from schane_cli.images.decode import read_image
from schane_cli.images.imageset import Files, ImageSet, Names


def test_exif_orientation_is_applied_in_both_decoders(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(30 * 20 * 3, dtype=np.uint8).reshape(20, 30, 3))
    for name in ("turned.jpg", "turned.png"):
        exif = Image.Exif()
        exif[0x0112] = 6  # turned a quarter
        picture.save(tmp_path / name, exif=exif)
        assert read_image(tmp_path / name).shape == (30, 20, 3), name
    assert (read_image(tmp_path / "turned.png") == np.rot90(np.asarray(picture), -1)).all()


def test_transparency_lies_over_white_in_every_mode(tmp_path: Path) -> None:
    for mode, key, fill in (("RGB", (0, 0, 0), (0, 0, 0)), ("L", 0, 0), ("1", 0, 0), ("P", 0, 0)):
        Image.new(mode, (8, 8), fill).save(tmp_path / f"{mode}.png", transparency=key)
        assert (read_image(tmp_path / f"{mode}.png") == 255).all(), mode
    Image.fromarray(np.full((8, 8), 500, dtype=np.uint16)).save(tmp_path / "deep.png", transparency=500)
    assert (read_image(tmp_path / "deep.png") == 255).all()


def test_deep_grey_is_scaled_and_integers_of_no_scale_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 65535, dtype=np.uint16)).save(tmp_path / "16.tif")
    assert (read_image(tmp_path / "16.tif") == 255).all()
    Image.fromarray(np.full((8, 8), 4095, dtype=np.uint16)).save(tmp_path / "12.tif", tiffinfo={281: 4095})
    assert (read_image(tmp_path / "12.tif") == 255).all()
    for name, kind in (("32.tif", np.int32), ("float.tif", np.float32)):
        Image.fromarray(np.full((8, 8), 70000, dtype=kind)).save(tmp_path / name)
        with pytest.raises(BadRequest, match="no fixed 8-bit meaning"):
            read_image(tmp_path / name)


def test_only_picture_formats_are_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.eps")
    os.rename(tmp_path / "x.eps", tmp_path / "x.png")
    with pytest.raises(BadRequest, match="cannot identify image file"):
        read_image(tmp_path / "x.png")


def test_a_declared_size_over_the_limit_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("large.jpg", "large.png"):
        Image.new("RGB", (300, 200)).save(tmp_path / name)
        assert read_image(tmp_path / name).shape == (200, 300, 3)
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 50_000)
    for name in ("large.jpg", "large.png"):
        with pytest.raises(BadRequest, match="declares 300 x 200 pixels"):
            read_image(tmp_path / name)


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadRequest, match="not a regular file"):
        read_image(tmp_path / "pipe.png")


def test_of_a_strip_the_middle_is_kept(tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 1)).save(tmp_path / "strip.png")
    files = Files(tmp_path, Names(["strip.png"]))
    images = ImageSet("x", "all", files, np.zeros(1, dtype=np.int64), ("a",), files.names)
    assert images.read(0).shape == (3, 1, 64)


def test_damage_of_any_kind_is_one_sentence(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for suffix in (".png", ".jpg", ".webp", ".tif", ".gif", ".bmp"):
        path = tmp_path / f"x{suffix}"
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        whole = path.read_bytes()
        for trial in range(20):
            data = bytearray(whole)
            for place in generator.integers(0, min(len(data), 80), 4):
                data[place] = generator.integers(256)
            path.write_bytes(bytes(data[: generator.integers(1, len(data))]) if trial % 2 else bytes(data))
            with suppress(BadRequest):  # and nothing else
                assert read_image(path).shape[2] == 3


def test_heic_is_read_with_the_extra_heif(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif (extra heif) is not installed")
    heif.register_heif_opener()
    picture = Image.new("RGB", (64, 48), (200, 30, 30))
    picture.save(tmp_path / "phone.HEIC", format="HEIF")
    assert ".heic" in decode_module.image_suffixes()
    assert np.abs(read_image(tmp_path / "phone.HEIC").astype(int) - np.asarray(picture)).max() < 20


def test_heic_without_the_extra_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    monkeypatch.setattr(decode_module, "_formats", lambda: ("JPEG",))
    with pytest.raises(BadRequest, match=r"it is HEIC, .* pip install 'schane\[heif\]'"):
        read_image(tmp_path / "phone.heic")


def test_avif_and_jpegs_by_other_suffixes_are_read(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 48), (200, 30, 30))
    for suffix in (".avif", ".jfif", ".jpe", ".JPG", ".jp2", ".pbm"):
        if suffix.lower() in decode_module.image_suffixes():
            picture.save(tmp_path / f"x{suffix}")
            assert read_image(tmp_path / f"x{suffix}").shape == (48, 64, 3), suffix
    assert {".jfif", ".jpe", ".webp", ".tif"} <= decode_module.image_suffixes()
    assert not {".eps", ".pdf", ".svg", ".fits", ".hdf"} & decode_module.image_suffixes()
