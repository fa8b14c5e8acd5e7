"""A signal ends a run that waits for a batch, at once and with its state saved."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from schane_cli.distributed import process_group
from schane_cli.errors import SchaneError
from schane_cli.training import interruption
from schane_cli.training.interruption import StopSignal
from tests.processes import start_ranks


def slow_batches() -> Iterator[int]:
    yield 1
    time.sleep(30)
    yield 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_batch(number: int) -> None:
    stop = StopSignal(torch.device("cpu"))
    started = time.monotonic()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    with stop.caught():
        timer.start()
        batches = list(stop.until_it_comes(slow_batches()))
    assert batches == [1]
    assert stop.number == stop.agreed == number
    assert time.monotonic() - started < 10


def test_a_signal_during_a_step_waits_for_its_end_and_a_second_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_PATIENCE_SECONDS", 0.0)
    stop = StopSignal(torch.device("cpu"))
    with stop.caught():
        signal.raise_signal(signal.SIGTERM)
        assert list(stop.until_it_comes(slow_batches())) == []
        with pytest.raises(SchaneError, match="ended at once by a second SIGTERM"):
            signal.raise_signal(signal.SIGTERM)


def _wait(process: int, folder: Path) -> None:
    """Rank 1 waits for a batch that is minutes late, rank 0 has its own and waits for rank 1."""
    stop = StopSignal(torch.device("cpu"))
    with process_group("cpu"), stop.caught():
        taken = []
        for batch in stop.until_it_comes(slow_batches() if process == 1 else range(10)):
            taken.append(batch)
            (folder / f"waiting-{process}").write_text(str(os.getpid()))
        (folder / f"stopped-{process}").write_text(json.dumps([stop.agreed, len(taken)]))


@pytest.mark.slow
def test_a_signal_ends_two_processes_one_of_which_waits_for_a_batch_and_the_other_for_it(tmp_path: Path) -> None:
    processes = start_ranks(_wait, 2, tmp_path, join=False)
    files = [tmp_path / f"waiting-{process}" for process in range(2)]
    until = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.3)  # until both wait
    started = time.monotonic()
    for file in files:
        os.kill(int(file.read_text()), signal.SIGTERM)
    while not processes.join(timeout=1):
        assert time.monotonic() - started < 20
    assert time.monotonic() - started < 20
    for process in range(2):
        assert json.loads((tmp_path / f"stopped-{process}").read_text()) == [signal.SIGTERM, 1]
