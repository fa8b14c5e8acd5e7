"""Loader processes and the limits they run into: shared memory, open files, memory."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from schane_cli.distributed import rank

_SHARED_MEMORY = Path("/dev/shm")
_PLENTY_BYTES = 2**32  # with this much free shared memory there is no need to count
_BATCHES_PER_WORKER = 2  # that a DataLoader lets each worker prepare ahead
_BATCHES_IN_USE = 2  # one being trained on, one on its way


def workers_that_fit(dataset: Any, item: Any, batch_size: int, workers: int) -> int:
    """`workers`, or fewer where the batches they prepare would not fit in shared memory; a line on stderr says so.

    `item` is one index of the dataset, whose size is taken for all.
    """
    if workers == 0 or not _SHARED_MEMORY.is_dir():
        return workers
    free_bytes = shutil.disk_usage(_SHARED_MEMORY).free
    if free_bytes >= _PLENTY_BYTES:
        return workers
    batch = dataset.__getitems__([item])
    parts = [one for part in batch for one in (part if isinstance(part, list) else [part])]
    batch_bytes = sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))
    batch_bytes *= batch_size
    fitting = max(0, (free_bytes // max(batch_bytes, 1) - _BATCHES_IN_USE) // _BATCHES_PER_WORKER)
    if fitting >= workers:
        return workers
    if rank() == 0:
        needed = batch_bytes * (_BATCHES_PER_WORKER * workers + _BATCHES_IN_USE)
        print(
            f"schane: {fitting} loader processes, not {workers}: {workers} need {needed / 2**20:.0f} MiB of shared "
            f"memory and {_SHARED_MEMORY} has {free_bytes / 2**20:.0f} free (in a container raise it: docker run "
            "--shm-size=8g)",
            file=sys.stderr,
        )
    return int(fitting)


def explain_worker_failure(error: RuntimeError | OSError) -> str | None:
    """What a failed loader process means for the user, in a sentence; None for an error of another kind."""
    text = str(error)
    if "Too many open files" in text:
        return (
            "too many open files: the loader processes pass their batches as files; raise the limit with `ulimit -n "
            "65536`, or use fewer of them (--set data.workers=2)"
        )
    if "us error" in text or "shared memory" in text or "No space left" in text:
        return (
            f"a loader process ran out of shared memory ({_SHARED_MEMORY}); in a container raise it (docker run "
            "--shm-size=8g), or load in the main process (--set data.workers=0)"
        )
    if "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text):
        name = f" ({match[1]})" if (match := re.search(r"killed by signal: (\w+)", text)) else ""
        return (
            f"a loader process died{name}, most likely because the machine ran out of memory; use fewer (--set "
            "data.workers=2) or a smaller batch"
        )
    return None
