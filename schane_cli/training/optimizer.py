"""The optimizer and the learning rate of every step, from timm's factories."""

from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_class,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2

from schane_cli.models.model import SchaneModel
from schane_cli.recipe import Recipe, TrainRecipe


def optimizer_groups(model: SchaneModel, recipe: Recipe) -> list[dict[str, Any]]:
    """Layer decay on the backbone, the head at its full rate, no weight decay on biases and 1-d weights."""
    settings = recipe.train
    exempt = model.backbone.no_weight_decay() if hasattr(model.backbone, "no_weight_decay") else set()
    if settings.layer_decay < 1:
        groups = param_groups_layer_decay(
            model.backbone, settings.weight_decay, no_weight_decay_list=exempt, layer_decay=settings.layer_decay
        )
    else:
        groups = param_groups_weight_decay(model.backbone, settings.weight_decay, no_weight_decay_list=exempt)
    groups += param_groups_weight_decay(model.projection, settings.weight_decay)
    return [group for group in groups if group["params"]]


def make_optimizer(model: SchaneModel, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimizer from timm's factory, fused where torch has it: one pass over the weights, not ten."""
    name = recipe.train.optimizer
    with_fused = {torch.optim.Adam, torch.optim.AdamW}
    if recipe.train.sharding != "fsdp":  # torch has no fused SGD for tensors that are split over processes
        with_fused |= {torch.optim.SGD}
    fused = get_optimizer_class(name, bind_defaults=False) in with_fused and device.type in {"cpu", "cuda"}
    arguments: dict[str, Any] = {"fused": True} if fused else {}
    return create_optimizer_v2(optimizer_groups(model, recipe), opt=name, lr=recipe.train.lr, **arguments)


def make_scheduler(
    optimizer: torch.optim.Optimizer, settings: TrainRecipe, total_steps: int, steps_per_epoch: int
) -> Any:
    """Linear warm-up to `lr`, then a cosine to `min_lr`, counted in steps."""
    warmup = round(min(settings.warmup_epochs, settings.epochs / 2) * steps_per_epoch)
    return create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=max(total_steps - warmup, 1),
        warmup_epochs=warmup,
        warmup_prefix=True,
        min_lr=settings.min_lr,
        warmup_lr=settings.min_lr,
        step_on_epochs=False,
        updates_per_epoch=1,
    )[0]
