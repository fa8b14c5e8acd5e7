"""Which statistics BatchNorm normalises by in training (recipe key train.batchnorm).

`running`: those of the batch, as everywhere; they also move the running ones, which score the model. `frozen`: the
running ones that the weights came with, in training as in scoring; scale and shift are trained all the same. In a short
run the running statistics become those of the augmented images before the weights have followed
(results/benchmarks/start.md), and frozen ones make the gradient of a batch in chunks exact. Random weights bring no
statistics that could be kept.
"""

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from schane_cli.recipe import Recipe


def choice(recipe: Recipe) -> Literal["running", "frozen"]:
    """What train.batchnorm comes to; `auto` is frozen for weights that were trained before, running for random ones."""
    if recipe.train.batchnorm == "auto":
        return "running" if recipe.model.weights == "random" else "frozen"
    return recipe.train.batchnorm


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())
