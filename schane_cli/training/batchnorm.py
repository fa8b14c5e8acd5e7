"""Which statistics BatchNorm normalises by in training (recipe key train.batchnorm).

`running`: those of the batch, as usual; they also update the running ones, which are used for scoring. `frozen`: the
running ones that the weights came with, in training as in scoring; scale and shift are still trained. In a short
run the running statistics become those of the augmented images before the weights have followed
(results/benchmarks/start.md), and frozen ones make the gradient of a batch in chunks exact. With random
weights there are no statistics to keep.
"""

from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from schane_cli.features.extract import forward
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import train_transform, view_loader, worker_count
from schane_cli.images.preprocessing import InputSpec
from schane_cli.recipe import Recipe

MOST_IMAGES = 10_000  # that running statistics are computed from


def choice(recipe: Recipe) -> Literal["running", "frozen"]:
    """What train.batchnorm means for this recipe; `auto`: frozen for pretrained weights, running for random ones."""
    if recipe.train.batchnorm == "auto":
        return "running" if recipe.model.weights == "random" else "frozen"
    return recipe.train.batchnorm


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


@torch.no_grad()
def re_estimate(model: nn.Module, train: ImageSet, recipe: Recipe, spec: InputSpec, device: torch.device) -> None:
    """Compute the running statistics of every BatchNorm again, as plain means over batches of training views.

    Averaged weights need it (Izmailov et al. 2018, arXiv:1803.05407, section 3.2): the statistics of no single run are
    those of their mean. Up to 10,000 images, one view each, drawn by the recipe's seed; nothing else is in training
    mode, and weights do not change. Called by one process.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    chosen = np.random.default_rng(recipe.seed).permutation(len(train))[:MOST_IMAGES]
    batch_size = min(recipe.train.chunk_size or recipe.train.batch_size, len(chosen))
    whole_batches = chosen[: len(chosen) // batch_size * batch_size]
    loader = view_loader(
        train,
        train_transform(recipe.augment, spec.size),
        seed=recipe.seed,
        number=0,
        batch_size=batch_size,
        workers=worker_count(recipe.data, train),
        indices=whole_batches,
    )
    model.to(device).eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
        layer.train()
    try:
        for pixels, _, _ in loader:
            forward(model, pixels, spec, device, recipe.train.amp)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.eval()
