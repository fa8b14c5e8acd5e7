"""A signal ends a run that waits for a batch, at once and with its state saved."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from schane_cli.errors import SchaneError
from schane_cli.training import interruption
from schane_cli.training.interruption import StopSignal


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
    assert stop.number == number
    assert time.monotonic() - started < 10


def test_a_signal_during_a_step_waits_for_its_end_and_a_second_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_PATIENCE_SECONDS", 0.0)
    stop = StopSignal(torch.device("cpu"))
    with stop.caught():
        signal.raise_signal(signal.SIGTERM)
        assert stop.came()
        with pytest.raises(SchaneError, match="ended at once by a second SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
