"""Pictures without labels: files, folders and patterns, and one that cannot be read among them."""

import os
from pathlib import Path

import pytest
import torch

from schane_cli.datasets.unlabelled import unlabelled
from schane_cli.errors import BadRequest
from tests.sources import write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.png", "deep/c.JPG", "@eaDir/hidden.png", ".cache/hidden.png"):
        write_image(tmp_path / "new" / name)
    (tmp_path / "new" / "notes.txt").write_text("a note")
    return tmp_path / "new"


def test_a_folder_is_read_at_any_depth_without_hidden_ones(folder: Path) -> None:
    images, notes = unlabelled([folder])
    assert list(images.ids) == [f"{folder}/{name}" for name in ("a.png", "b.jpg", "deep/c.JPG")]
    assert images.labels.tolist() == [-1, -1, -1]
    assert notes == [f"files of {folder} that are not read as pictures: 1 .txt"]
    assert images.read(0).shape == (3, 20, 24)


def test_files_and_patterns_name_each_file_once(folder: Path) -> None:
    images, _ = unlabelled([f"{folder}/b.jpg", f"{folder}/*.jpg", f"{folder}/**/*.JPG"])
    assert [os.path.basename(name) for name in images.ids] == ["b.jpg", "c.JPG"]


def test_one_that_cannot_be_read_stops_nothing(folder: Path) -> None:
    (folder / "b.jpg").write_bytes(b"")
    images, _ = unlabelled([folder])
    shapes = [images.read(index).shape for index in range(3)]
    assert shapes[1] == torch.Size([3, 8, 8])
    assert images.unreadable.tolist() == [False, True, False]
    assert "b.jpg cannot be read: it is empty (0 bytes)" in images.reason(1)


def test_what_names_nothing_is_said(folder: Path) -> None:
    for path, message in (
        (f"{folder}/none.jpg", "does not exist"),
        (f"{folder}/*.bmp", "nothing matches"),
        ("s3://bucket/a.jpg", "is an address"),
    ):
        with pytest.raises(BadRequest, match=message):
            unlabelled([path])
    (folder / "empty").mkdir()
    with pytest.raises(BadRequest, match="no pictures in"):
        unlabelled([folder / "empty"])
