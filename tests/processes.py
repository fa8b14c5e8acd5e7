"""Processes of tests, forked from a server that has imported torch, timm and schane: a start costs milliseconds.

The imports take six seconds of a processor, more than most of what such a process is started for. The server is the
standard library's; it starts no thread, so that forking it is safe. What only a fresh process can show is left to
test_a_stopped_worker_gives_its_trial_back_and_the_same_command_goes_on (`python -m schane_cli`, in tests/cli),
test_a_process_that_dies_ends_the_run_with_a_sentence_and_leaves_it_whole (torchrun, in tests/training) and
tests/test_package.py (the installed package).
"""

import contextlib
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from PIL import Image

from schane_cli.cli import main
from tests.jobs import blank_pictures, free_port

# What the end of a run needs is imported late, and pytest by the tests themselves.
PRELOADED = ["tests.processes", "schane_cli.reports.report", "torch.distributed.fsdp", "pyarrow.dataset", "pytest"]
Image.init()  # Pillow's readers of every format


def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with contextlib.chdir(Path(__file__).parents[1]):  # where `tests` is; the server is silent about what it misses
        forkserver.ensure_running()
    return context


def start(work: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """`work(*arguments)` in a process of its own."""
    process = _server().Process(target=_forked, args=(work, *arguments))
    process.start()
    return process


def start_command(arguments: Sequence[object], place: Path, said: Path) -> ForkServerProcess:
    """`schane` with these arguments in a process of its own, in the folder `place`; its words go to the file `said`.

    Its pictures are blank.
    """
    return start(_command, [str(argument) for argument in arguments], place, said)


def start_ranks(work: Callable[..., None], world: int, *arguments: object, join: bool = True) -> Any:
    """`work(rank, *arguments)` in each of `world` processes that are told of each other as torchrun does it.

    Raises the exception of the first that fails, here or when what is returned is joined.
    """
    _server()
    given = (world, free_port(), work, arguments)
    return torch.multiprocessing.start_processes(_rank, given, nprocs=world, join=join, start_method="forkserver")


@contextlib.contextmanager
def words_into(said: Path) -> Iterator[None]:
    """What this process writes to the terminal goes to a file, as after `> said 2>&1`; for processes of tests alone."""
    with said.open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        yield


def _forked(work: Callable[..., object], *arguments: object) -> None:
    """What was imported before the fork is left out of garbage collections, which would copy all of it."""
    gc.freeze()
    work(*arguments)


def _command(arguments: list[str], place: Path, said: Path) -> None:
    os.chdir(place)
    torch.set_num_threads(1)
    with words_into(said), blank_pictures():
        main(arguments)


def _rank(rank: int, world: int, port: str, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    number, count = str(rank), str(world)
    os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    _forked(work, rank, *arguments)
