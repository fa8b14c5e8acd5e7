"""Rank, world size, the process group, and values that are the same on every process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from schane_cli.errors import BadRequest, SchaneError

T = TypeVar("T")


@contextmanager
def process_group(device_name: str, *, resumable: bool = False) -> Iterator[None]:
    """Join the other processes of a torchrun launch while a command runs; nothing to do for a single process.

    `resumable` says that the command has a --resume to recommend.

    A process that waits ten minutes for another gives up, so that a dead one never leaves the others hanging.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    on_cuda = device_name.startswith("cuda") or (device_name == "auto" and torch.cuda.is_available())
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timedelta(minutes=10))
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise SchaneError(
            "another process of the run ended or stopped answering; what it printed says why. Start all processes again"
            + (" with --resume: what was saved last is complete" if resumable else "")
        ) from None
    finally:
        dist.destroy_process_group()


def _is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed since another process is gone."""
    lost = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out waiting")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in lost)


def same_everywhere(value: Any) -> Any:
    """The first process's value, on all of them."""
    if world_size() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared)
    return shared[0]


def on_first(action: Callable[[], T]) -> T:
    """What `action` returns on the first process, which alone runs it, on all of them.

    This is how a run folder is chosen, made, locked and written. A SchaneError that it raises is raised on every
    process, so that none waits for one that has given up.
    """
    if world_size() == 1:
        return action()
    result: list[Any] = [None, None]
    if rank() == 0:
        try:
            result[0] = action()
        except SchaneError as error:
            result[1] = (isinstance(error, BadRequest), str(error))
    value, failure = same_everywhere(result)
    if failure is not None:
        raise (BadRequest if failure[0] else SchaneError)(failure[1])
    return value


def rank() -> int:
    """This process's number among those of the run; 0 when alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes of the run; 1 when alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
