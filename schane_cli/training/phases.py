"""First frozen, then free (recipe key train.head_epochs): the heads alone first, then all weights.

LP-FT (Kumar et al. 2022, arXiv:2202.10054, section 3.4): a head that starts at zero sends a gradient through the
backbone that distorts pretrained features; a head that was fitted first does not. Each phase is a training of its own,
with its schedule and a fresh optimizer; step numbers, the best epoch and the run folder continue across both.
"""

from dataclasses import dataclass

from torch import nn

from schane_cli.models.backbone import classifier_modules
from schane_cli.models.model import SchaneModel
from schane_cli.recipe import TrainRecipe


@dataclass(frozen=True)
class Phase:
    """Steps `first_step` up to `end` of a run, which is `epochs` long."""

    first_step: int
    end: int
    epochs: int
    heads_alone: bool


def phases(settings: TrainRecipe, steps_per_epoch: int) -> list[Phase]:
    """The phases of a run, in order: one, or two with `train.head_epochs`."""
    free_from = settings.head_epochs * steps_per_epoch
    heads = Phase(0, free_from, settings.head_epochs, heads_alone=True)
    free = Phase(free_from, free_from + settings.epochs * steps_per_epoch, settings.epochs, heads_alone=False)
    return [heads, free] if settings.head_epochs else [free]


def phase_of_last(step: int, of: list[Phase]) -> Phase:
    """The phase of the last step of a run that has taken `step` steps; the first phase where it has taken none.

    A checkpoint between two phases holds the optimizer of the earlier one.
    """
    return next(phase for phase in of if step <= phase.end)


def body(model: SchaneModel) -> list[nn.Parameter]:
    """The trainable parameters of the backbone before its classifier: what is fixed while the heads train alone."""
    classifier = {id(parameter) for part in classifier_modules(model.backbone) for parameter in part.parameters()}
    return [
        parameter
        for parameter in model.backbone.parameters()
        if parameter.requires_grad and id(parameter) not in classifier
    ]
