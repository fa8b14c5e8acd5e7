"""Checkpoint files: whole or absent, and nothing in them is ever run."""

import errno
import os
import pickle  # noqa: TID251 (to build the hostile file)
from pathlib import Path

import pytest
import torch

from schane_cli.errors import BadRequest, SchaneError
from schane_cli.models.files import find_checkpoint, read_tensors, save_whole


class _Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    path, target = tmp_path / "hostile.pt", tmp_path / "owned"
    torch.save({"state_dict": _Hostile(target)}, path)
    with pytest.raises(BadRequest, match="is refused"):
        read_tensors(path)
    path.write_bytes(pickle.dumps(_Hostile(target)))  # the old, zip-less form
    with pytest.raises(BadRequest):
        read_tensors(path)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    for name in ("broken.pt", "broken.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(BadRequest, match="broken"):
            read_tensors(path)


def test_a_missing_file_or_an_unfinished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no checkpoint or run folder"):
        find_checkpoint(tmp_path / "nothing")
    with pytest.raises(BadRequest, match="no finished run"):
        find_checkpoint(tmp_path)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_whole({"a": torch.arange(10_000)}, path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadRequest, match=r"last\.pt"):
        read_tensors(path)


def test_a_full_disk_leaves_the_old_checkpoint_whole_and_says_so(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "last.pt"
    save_whole({"step": 1}, path)
    save = torch.save

    def full(content: dict, file) -> None:
        file.write(b"x" * 100)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SchaneError, match="No space left on device.*the one before it is whole"):
        save_whole({"step": 2}, path)
    monkeypatch.setattr(torch, "save", save)
    assert read_tensors(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    real_open = Path.open

    def on_full_disk(self: Path, mode: str = "r", **options):
        return real_open(Path("/dev/full"), mode, buffering=0) if "w" in mode else real_open(self, mode, **options)

    monkeypatch.setattr(Path, "open", on_full_disk)
    with pytest.raises(SchaneError, match="could not be written"):
        save_whole({"a": torch.zeros(100_000)}, tmp_path / "last.pt")
    assert list(tmp_path.iterdir()) == []
