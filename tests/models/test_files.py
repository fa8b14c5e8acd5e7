"""Checkpoint files: whole or absent, and nothing in them is ever run."""

import errno
import os
import pickle  # noqa: TID251 (to build the hostile file)
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from schane_cli.datasets.load import load_splits
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.features.store import feature_store, fill
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.models.files import read_checkpoint, read_last, read_tensors, save_whole
from schane_cli.preflight import find_checkpoint
from schane_cli.run import RunFolder
from tests.jobs import run_tiny


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
    with pytest.raises(BadRequest, match="holds no trained model yet"):
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
    with pytest.raises(SchaneError, match="No space left on device.*the one before it is intact"):
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("files") / "run"
    run_tiny(out, train__epochs=1)
    return RunFolder(out).last


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, type(one)) and len(one) == len(other) and all(map(_same, one, other))
    return one == other


def test_a_flipped_byte_is_refused_or_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    whole, before = checkpoint.read_bytes(), read_checkpoint(checkpoint)
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(place) % 8
        path = tmp_path / "last.pt"
        path.write_bytes(damaged)
        try:
            content = read_checkpoint(path)
        except BadRequest:
            refused += 1
        else:  # the padding between two entries
            assert _same(content, before), place
    assert refused > 40


def test_any_truncation_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    for share in (0.0, 0.001, 0.1, 0.5, 0.9, 0.999, 0.99999):
        path = tmp_path / "last.pt"
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(BadRequest, match=r"last\.pt"):
            read_checkpoint(path)


WRONG = {
    "state_dict": [], "projection": None, "recipe": "text", "class_names": {"a": 1}, "input": 3, "progress": [1],
    "architecture": 5, "training": 1, "images": "x",
}  # fmt: skip
WRONG_TRAINING = {
    "optimizer": 1, "ema": 3, "objective": None, "random": {}, "world_size": "1", "step": True, "best": [],
    "seconds": "0", "images_done": 0.5, "metrics_bytes": None,
}  # fmt: skip


def test_a_key_that_is_missing_unknown_or_of_another_type_is_named(checkpoint: Path, tmp_path: Path) -> None:
    content, path = torch.load(checkpoint, weights_only=True), tmp_path / "last.pt"

    def refused(changed: dict, key: str) -> None:
        save_whole(changed, path)
        with pytest.raises(BadRequest) as caught:
            read_last(path)
        assert key in str(caught.value), (key, str(caught.value))

    for key, value in WRONG.items():
        refused({**content, key: value}, key)
    for key, value in WRONG_TRAINING.items():
        refused({**content, "training": {**content["training"], key: value}}, key)
        refused({**content, "training": {k: v for k, v in content["training"].items() if k != key}}, key)
    for key in content.keys() - {"images"}:  # which 0.1.0 did not write
        refused({k: v for k, v in content.items() if k != key}, "mark" if key == "format" else key)
    refused({**content, "surprise": 1}, "surprise")
    refused({**content, "class_names": ["a", "a"]}, "class_names")
    refused({**content, "class_names": []}, "class_names")
    refused({**content, "state_dict": {"x": 1}}, "state_dict 'x'")
    refused({**content, "progress": {}}, "epoch")


def test_tensors_that_do_not_fit_name_the_file(checkpoint: Path, tmp_path: Path) -> None:
    content, path = torch.load(checkpoint, weights_only=True), tmp_path / "best.pt"
    first = next(iter(content["state_dict"]))
    fewer = {key: value for key, value in content["state_dict"].items() if key != first}
    for state in (fewer, {**content["state_dict"], "more": torch.zeros(1)}, {**fewer, first: torch.zeros(7)}):
        save_whole({**content, "state_dict": state}, path)
        with pytest.raises(BadRequest, match=r"best\.pt"):
            load_checkpoint(path)
    save_whole({**content, "recipe": {"model": {"backbone": 3}}}, path)
    with pytest.raises(BadRequest, match=r"best\.pt, recipe: model\.backbone"):
        load_checkpoint(path)


def test_a_training_state_that_does_not_fit_is_refused_before_the_first_step(checkpoint: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(checkpoint.parent.parent, run.path)
    run.summary_file.unlink()
    content = torch.load(checkpoint, weights_only=True)
    for key, value in {"optimizer": {"state": {}}, "random": [{}], "objective": {"more": 1}, "ema": {}}.items():
        save_whole({**content, "training": {**content["training"], key: value}}, run.last)
        with pytest.raises(BadRequest, match="its training state does not fit"):
            run_tiny(run.path, resume=True, train__epochs=1)


def test_a_newer_format_is_refused_and_the_first_one_is_read(checkpoint: Path, tmp_path: Path) -> None:
    content, path = torch.load(checkpoint, weights_only=True), tmp_path / "last.pt"
    save_whole({**content, "format": "schane-checkpoint-3"}, path)
    with pytest.raises(BadRequest, match="has checkpoint format 3 and this schane reads formats up to 2; upgrade"):
        read_checkpoint(path)
    save_whole({**content, "format": "schane-checkpoint-1"}, path)
    assert read_checkpoint(path)["format"] == "schane-checkpoint-1"


def test_a_damaged_cache_file_is_made_anew(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_checkpoint(checkpoint)
    images = load_splits(loaded.recipe.data).test
    cpu = torch.device("cpu")
    store = feature_store(loaded, images, device=cpu, amp="off")
    fill(store, loaded, images, device=cpu, batch_size=64, workers=0, amp="off")
    before = store.read(0, "logits")
    assert store.missing() == []
    content = bytearray(store.file(0).read_bytes())
    content[-100] ^= 1
    store.file(0).write_bytes(content)
    assert store.missing() == [0]
    fill(store, loaded, images, device=cpu, batch_size=64, workers=0, amp="off")
    np.testing.assert_array_equal(store.read(0, "logits"), before)
