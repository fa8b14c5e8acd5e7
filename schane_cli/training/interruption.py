"""SIGINT, SIGTERM and Slurm's SIGUSR1 end a run after the step under way, saved, with the line to go on with."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from schane_cli.distributed import world_size
from schane_cli.errors import SchaneError

_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Interrupted(SchaneError):  # noqa: N818 (reads as what it is)
    """The run was told to stop by a signal, and has saved its state."""

    def __init__(self, signal_number: int, command: str) -> None:
        self.exit_code, self.signal_number = 128 + signal_number, signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; saved. Go on with: schane {command}")

    def resumed_by(self, command: str) -> "Interrupted":
        """The same, with another line to go on with."""
        return Interrupted(self.signal_number, command)


class StopSignal:
    """Remembers a signal that came."""

    def __init__(self, device: torch.device) -> None:
        self.number, self._device = 0, device

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Within it a stop signal is remembered and does nothing else."""

        def remember(number: int, frame: FrameType | None) -> None:
            self.number = number

        before = {number: signal.signal(number, remember) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def came(self) -> bool:
        """Whether any process has been signalled; all agree, so that they save and stop at the same step."""
        if world_size() > 1:
            highest = torch.tensor(self.number, device=self._device)
            dist.all_reduce(highest, dist.ReduceOp.MAX)
            self.number = int(highest)
        return self.number > 0
