"""Loader processes and their limits: one sentence each, and what to do."""

import errno
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from schane_cli.errors import SchaneError
from schane_cli.images import loader, workers
from schane_cli.images.imageset import ImageSet, Names
from schane_cli.images.workers import explain_worker_failure, workers_that_fit
from schane_cli.recipe import AugmentRecipe

MIB = 2**20


class Items:
    """A dataset whose items take one MiB."""

    def __getitems__(self, items: list[int]) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(len(items), MIB, dtype=torch.uint8),)


@pytest.mark.parametrize(("free_mib", "expected"), [(64, 0), (100, 1), (200, 4), (5000, 4)])
def test_as_many_workers_as_shared_memory_holds(
    free_mib: int, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free_mib * MIB}))
    monkeypatch.setattr(workers, "_SHARED_MEMORY", Path("/"))
    assert workers_that_fit(Items(), 0, 20, 4) == expected
    said = capsys.readouterr().err
    assert ("--shm-size" in said) == (expected < 4)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"),
         "ulimit -n"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"),
         "--shm-size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), r"died \(Killed\)"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "data.workers=2"),
    ],
)  # fmt: skip
def test_each_failure_is_a_sentence_with_what_to_do(error: RuntimeError, message: str) -> None:
    explanation = explain_worker_failure(error)
    assert explanation is not None
    with pytest.raises(SchaneError, match=message):
        raise SchaneError(explanation)


def test_other_errors_are_left_alone() -> None:
    assert explain_worker_failure(RuntimeError("shape mismatch")) is None


class _Deadly(ImageSet):
    def read(self, index: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_worker_ends_the_run_with_one_sentence() -> None:
    names = Names(str(i) for i in range(16))
    images = _Deadly("x", "train", np.zeros((16, 8, 8, 3), np.uint8), np.zeros(16, np.int64), ("a", "b"), names)
    sampler = loader.StepSampler(images.labels, batch_size=4, epochs=1, seed=0)
    transform = loader.train_transform(AugmentRecipe(), 8)
    batches = loader.train_loader(images, sampler, transform, views=1, workers=1, pin_memory=False)
    with pytest.raises(SchaneError, match="a loader process died"):
        next(iter(batches))


def test_a_batch_that_does_not_fit_in_shared_memory_ends_the_run_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    names = Names(str(i) for i in range(16))
    images = ImageSet("x", "train", np.zeros((16, 8, 8, 3), np.uint8), np.zeros(16, np.int64), ("a", "b"), names)
    sampler = loader.StepSampler(images.labels, batch_size=4, epochs=1, seed=0)
    transform = loader.train_transform(AugmentRecipe(), 8)
    batches = loader.train_loader(images, sampler, transform, views=1, workers=1, pin_memory=False)
    with pytest.raises(SchaneError, match=r"ran out of shared memory .*--shm-size"):
        next(iter(batches))
