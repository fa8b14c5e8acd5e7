"""Watch a run from outside: functions that are called after every step and every epoch of any training.

from schane_cli.training.hooks import Progress, on_step

def show(progress: Progress) -> None:
    print(progress.step, progress.figures["loss"])

with on_step(show):
    schane_cli.finetune(recipe, out=None, terminal=Terminal())
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from schane_cli.models.model import SchaneModel
from schane_cli.recipe import Recipe


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    `step` of `total_steps` and `epoch` of the recipe's epochs are done. `figures`: after a step its loss, parts of the
    loss and gradient norm, as in metrics.jsonl's `step` lines; after an epoch its `val_accuracy` and `val_nll`. `model`
    is the one being trained: a hook that changes it changes the run.
    """

    recipe: Recipe
    step: int
    total_steps: int
    epoch: int
    figures: Mapping[str, float]
    model: SchaneModel


Hook = Callable[[Progress], None]
_after_step: list[Hook] = []
_after_epoch: list[Hook] = []


@contextmanager
def on_step(hook: Hook) -> Iterator[None]:
    """Call `hook` after every optimiser step, on every process. What it raises ends the run; a signal stops it."""
    with _registered(_after_step, hook):
        yield


@contextmanager
def on_epoch(hook: Hook) -> Iterator[None]:
    """Call `hook` after every epoch's validation, before its checkpoint, on every process."""
    with _registered(_after_epoch, hook):
        yield


@contextmanager
def _registered(hooks: list[Hook], hook: Hook) -> Iterator[None]:
    hooks.append(hook)
    try:
        yield
    finally:
        hooks.remove(hook)


def step_done(progress: Progress) -> None:
    """Call every hook of `on_step`."""
    for hook in tuple(_after_step):
        hook(progress)


def epoch_done(progress: Progress) -> None:
    """Call every hook of `on_epoch`."""
    for hook in tuple(_after_epoch):
        hook(progress)
