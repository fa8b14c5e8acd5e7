"""BatchNorm in training: which statistics it normalises by, and which it is scored with (recipe key train.batchnorm).

In a short run the running statistics become those of the augmented training images before the weights have followed,
and the model is scored on images without augmentation.
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from schane_cli.distributed import rank, world_size
from schane_cli.features.extract import autocast, normalise
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import eval_loader
from schane_cli.images.preprocessing import InputSpec, eval_transform
from schane_cli.models.model import SchaneModel
from schane_cli.recipe import Recipe

SLOW_MOMENTUM = 0.01
REESTIMATION_IMAGES = 4096  # enough for a channel's mean and variance to within a few percent of a standard deviation


def choice(recipe: Recipe) -> str:
    """What train.batchnorm comes to; `auto`: running."""
    return "running" if recipe.train.batchnorm == "auto" else recipe.train.batchnorm


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def apply_choice(model: SchaneModel, chosen: str) -> None:
    """Make the model train as `chosen` says, in place; `reestimated` acts before scoring instead (`reestimate`)."""
    model.batchnorm_frozen = chosen == "frozen"
    for module in model.modules():
        if isinstance(module, _BatchNorm) and chosen == "slow":
            module.momentum = SLOW_MOMENTUM


@torch.no_grad()
def reestimate(
    model: SchaneModel,
    images: ImageSet,
    spec: InputSpec,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    amp: str,
    seed: int,
) -> None:
    """Replace the running statistics by the mean of those of batches of training images without augmentation.

    At most REESTIMATION_IMAGES images, drawn by `seed` over all classes, the same number in every process; the mean is
    over all processes. All layers are in eval mode but BatchNorm; a frozen one keeps its statistics. (torch's update_bn
    resets those too, and drops paths.) The model ends in eval mode.
    """
    model.train()
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    model.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train().reset_running_stats()
        layer.momentum = None  # the mean over batches
    order = np.random.default_rng(seed).permutation(len(images))[:REESTIMATION_IMAGES]
    share = len(order) // world_size()
    batch_size = min(batch_size, share)
    own = order[rank() :: world_size()][: share // batch_size * batch_size]
    for pixels, _, _ in eval_loader(images, eval_transform(spec), batch_size=batch_size, workers=workers, indices=own):
        with autocast(device, amp):
            model(normalise(pixels, spec, device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        for statistic in (layer.running_mean, layer.running_var):
            if world_size() > 1 and statistic is not None:
                dist.all_reduce(statistic)
                statistic /= world_size()
    model.eval()
