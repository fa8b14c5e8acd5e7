"""SIGINT, SIGTERM and Slurm's SIGUSR1 end a run after the current step, saved; it prints how to resume.

A signal that comes while the run waits for a batch ends the wait: between two steps there is nothing to finish. A
second signal some seconds after the first ends the process at once.
"""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist

from schane_cli.distributed import world_size
from schane_cli.errors import SchaneError

Batch = TypeVar("Batch")
_PATIENCE_SECONDS = 5.0
_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Interrupted(SchaneError):  # noqa: N818 (reads as what it is)
    """The run was told to stop by a signal, and has saved its state."""

    def __init__(self, signal_number: int, command: str) -> None:
        self.exit_code, self.signal_number = 128 + signal_number, signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; saved. Resume with: schane {command}")

    def resumed_by(self, command: str) -> "Interrupted":
        """The same, with another command that resumes it."""
        return Interrupted(self.signal_number, command)


class _WaitEndedError(Exception):
    """A signal came while waiting for a batch."""


class StopSignal:
    """Remembers a signal that came."""

    def __init__(self, device: torch.device) -> None:
        self.number, self._device = 0, device
        self._waiting, self._first_came = False, 0.0

    @contextmanager
    def caught(self) -> Iterator[None]:
        """While inside, a stop signal is only remembered, unless it comes during a wait or is the second one.

        Raises:
            SchaneError: a second signal came, at least `_PATIENCE_SECONDS` after the first.
        """

        process = os.getpid()

        def remember(number: int, frame: FrameType | None) -> None:
            if os.getpid() != process:
                return  # a loader process, which inherits this and is ended by its parent
            first, now = self.number == 0, time.monotonic()
            self.number = number
            self._first_came = now if first else self._first_came
            if self._waiting and world_size() == 1:
                self._waiting = False
                raise _WaitEndedError
            if not first and now - self._first_came > _PATIENCE_SECONDS:
                raise SchaneError(
                    f"ended at once by a second {signal.Signals(number).name}; the last checkpoint is complete"
                )

        before = {number: signal.signal(number, remember) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def until_it_comes(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, up to the first that a signal comes while waiting for; several processes wait for theirs."""
        iterator = iter(batches)
        try:
            while not (self.number and world_size() == 1):
                self._waiting = True
                batch = next(iterator)
                self._waiting = False
                yield batch
        except (StopIteration, _WaitEndedError):
            return
        finally:
            self._waiting = False

    def came(self) -> bool:
        """Whether any process has received a signal; all agree, so that they save and stop at the same step."""
        if world_size() > 1:
            highest = torch.tensor(self.number, device=self._device)
            dist.all_reduce(highest, dist.ReduceOp.MAX)
            self.number = int(highest)
        return self.number > 0
