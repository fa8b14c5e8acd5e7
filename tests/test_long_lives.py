"""Processes that work for days: memory, open files and shared memory stay flat, and a clock that jumps does no harm."""

import gc
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from schane_cli.commands.evaluate import evaluate
from schane_cli.models.files import read_tensors
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal
from schane_cli.training.hooks import Progress, on_epoch
from tests.conftest import run_cli
from tests.jobs import TINY, run_tiny

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
MEBIBYTE = 2**20


@pytest.fixture(autouse=True)
def only_the_new_is_searched() -> Iterator[None]:
    """What was there before the test is left out of its garbage collections, which would take most of its time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def used() -> tuple[int, int]:
    """(resident bytes, open files) of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))


def require_flat(uses: list[tuple[int, int]], most_mebibytes: float) -> None:
    """A life ends with hardly more memory than the most its first half took, and with no more files.

    The most, not the middle: a file may be closed, or memory given back, at the moment of a look.
    """
    memory, files = np.array(uses).T
    first = slice(0, len(uses) // 2 + 1)
    grown = (memory[-1] - memory[first].max()) / MEBIBYTE
    assert grown < most_mebibytes, f"{grown:.1f} MiB more at the end than in the first half: {memory // MEBIBYTE}"
    assert files[-1] <= files[first].max(), files


@pytest.fixture
def shared_memory() -> Iterator[None]:
    """What is in shared memory when the test ends was there before."""
    place = Path("/dev/shm")
    before = {path.name for path in place.iterdir()} if place.is_dir() else set()
    yield
    left = {path.name for path in place.iterdir()} - before if place.is_dir() else set()
    assert not [name for name in left if name.startswith(("torch_", "psm_"))], left


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_thirty_epochs_take_the_memory_and_files_of_fifteen(tmp_path: Path, workers: int, shared_memory: None) -> None:
    if workers > (os.cpu_count() or 1):
        pytest.skip("more loader processes than cores")
    uses: list[tuple[int, int]] = []

    def look(progress: Progress) -> None:
        uses.append(used())

    with on_epoch(look):
        few = {"data__train_per_class": 5, "data__val_fraction": 0.03, "data__test_fraction": 0.03}
        run_tiny(tmp_path / "run", train__epochs=30, data__workers=workers, **few)
    assert len(uses) == 30
    require_flat(uses, 15)


@pytest.mark.long
def test_fifty_evaluations_take_the_memory_and_files_of_twenty_five(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_memory: None
) -> None:
    monkeypatch.chdir(tmp_path)
    run_tiny(tmp_path / "run", train__epochs=1)
    uses = []
    for number in range(50):
        evaluate(
            tmp_path / "run", overrides={"device": "cpu"}, split="val", out=tmp_path / f"e{number}",
            terminal=Terminal(quiet=True),
        )  # fmt: skip
        uses.append(used())
    require_flat(uses, 15)


@pytest.mark.parametrize("trials", [6, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_the_trials_of_a_study_take_the_memory_and_files_of_its_first_half(
    tmp_path: Path, trials: int, shared_memory: None
) -> None:
    pytest.importorskip("optuna")
    quick = {**TINY, "data.train_per_class": 5, "train.epochs": 1}
    space = {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    study = {"recipe": "digits", "set": quick, "search": space, "trials": trials, "heartbeat_seconds": 1}
    (tmp_path / "study.yaml").write_text(json.dumps(study))  # JSON is YAML
    uses: list[tuple[int, int]] = []

    def look(progress: Progress) -> None:
        uses.append(used())

    with on_epoch(look):
        assert run_cli("study", tmp_path / "study.yaml", "--out", tmp_path / "study") == 0
    assert len(uses) == trials
    require_flat(uses, 15)


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_a_day_changes_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    run_tiny(tmp_path / "steady", train__epochs=2)
    now, calls = time.time, 0

    def jumping() -> float:
        nonlocal calls
        calls += 1
        return now() + (jump if calls > 3 else 0.0)

    monkeypatch.setattr("schane_cli.run.time", SimpleNamespace(time=jumping, strftime=time.strftime))
    summary = run_tiny(tmp_path / "jumped", train__epochs=2)
    assert calls > 3
    steady, jumped = RunFolder(tmp_path / "steady"), RunFolder(tmp_path / "jumped")
    one, two = (read_tensors(run.best)["state_dict"] for run in (steady, jumped))
    assert all(two[key].equal(value) for key, value in one.items())
    assert 0 <= summary["train_seconds"] < 3600
    assert 0 <= summary["total_seconds"] < 3600
    assert [line["epoch"] for line in jumped.read_events("epoch")] == [1, 2]
