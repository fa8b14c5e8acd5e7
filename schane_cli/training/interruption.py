"""SIGINT, SIGTERM and Slurm's SIGUSR1 end a run after the current step, saved; it prints how to resume.

A signal that comes while the run waits for a batch ends the wait: between two steps there is nothing to finish. Under
several processes all agree before each step, so that they save and stop at the same one. A second signal some seconds
after the first ends the process at once.
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
_POLL_SECONDS = 0.0005
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
    """Remembers a signal: `number` is the one that came here, `agreed` the one that all processes stop for, or 0."""

    def __init__(self, device: torch.device) -> None:
        self.number = self.agreed = 0
        self._device = device
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
            if self._waiting:
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
        """The batches, up to the first before which a signal comes, here or on another process; it is in `agreed`."""
        iterator = iter(batches)
        while True:
            batch = self._next(iterator)
            self.agreed = self._highest()
            if self.agreed or batch is None:
                return
            yield batch

    def until_it_comes_here(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """As `until_it_comes`, where each process has batches of its own and stops by itself."""
        iterator = iter(batches)
        while (batch := self._next(iterator)) is not None:
            yield batch

    def _next(self, iterator: Iterator[Batch]) -> Batch | None:
        """The next batch; None after the last one, and where a signal came before it did."""
        try:
            self._waiting = True
            return None if self.number else next(iterator)
        except (StopIteration, _WaitEndedError):
            return None
        finally:
            self._waiting = False

    def _highest(self) -> int:
        """The highest signal number of all processes, once each has its batch or was told to stop.

        A process waits here for one whose batch is late: not inside the collective, which no signal would interrupt.
        """
        if world_size() == 1:
            return self.number
        highest = torch.tensor(self.number, device=self._device)
        work = dist.all_reduce(highest, dist.ReduceOp.MAX, async_op=True)
        while not work.is_completed():
            time.sleep(_POLL_SECONDS)
        work.wait()
        return int(highest)
