"""The training objective of a batch: L = lambda L_contrastive + (1 - lambda) L_CE over all views and processes."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import v2

from schane_cli import plugins
from schane_cli.distributed import world_size
from schane_cli.errors import BadRequest
from schane_cli.losses import CrossBatchMemory, contrastive_loss, is_registered, register_loss
from schane_cli.recipe import LossRecipe


class LossParts(NamedTuple):
    """Scalars of one step. `total` is what is differentiated; the others are for the log."""

    total: torch.Tensor
    contrastive: torch.Tensor
    cross_entropy: torch.Tensor


def contrastive_weight(recipe: LossRecipe) -> float:
    """lambda, which is 0 for cross-entropy alone."""
    return recipe.contrastive_weight if recipe.name != "ce" else 0.0


class Objective(nn.Module):
    """From projections, logits and labels of all views to the loss (docs/method.md, The objective).

    Rows are view-major: row v * B + b is view v of image b. Under several processes the value is scaled so that
    averaging gradients over processes (as DDP does) gives the gradient of the loss of the whole batch, uneven parts
    included. mixup and cutmix act on the cross-entropy branch alone: the contrastive term needs images of one class,
    so the mixed images take a forward pass of their own.
    """

    def __init__(self, recipe: LossRecipe, n_classes: int, projection_dim: int) -> None:
        super().__init__()
        self.weight = contrastive_weight(recipe)
        self.label_smoothing = recipe.label_smoothing
        self.criterion = contrastive_term(recipe, projection_dim) if self.weight else None
        mixers = [v2.MixUp(alpha=recipe.mixup, num_classes=n_classes)] if recipe.mixup else []
        mixers += [v2.CutMix(alpha=recipe.cutmix, num_classes=n_classes)] if recipe.cutmix else []
        self.mixer: v2.Transform | None = v2.RandomChoice(mixers) if mixers else None

    @property
    def stats(self) -> dict[str, torch.Tensor]:
        """What the contrastive term says of the last batch (`SchaneLoss`); empty for cross-entropy alone."""
        return getattr(self.criterion, "stats", {})

    def mix(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 3, S, S) and labels (n,) -> mixed images and soft labels (n, classes)."""
        if self.mixer is None:
            raise ValueError("mix() needs mixup or cutmix above 0")
        return self.mixer(images, labels)

    def forward(
        self,
        projection: torch.Tensor,
        logits: torch.Tensor,
        labels: torch.Tensor,
        indices: torch.Tensor,
        soft_labels: torch.Tensor | None = None,
    ) -> LossParts:
        """projection (n, p), logits (n, C), labels and image indices (n,); soft_labels (n, C) of mixed images."""
        cross_entropy = self._cross_entropy(logits.float(), labels if soft_labels is None else soft_labels)
        if self.criterion is None:
            return LossParts(cross_entropy, torch.zeros_like(cross_entropy), cross_entropy)
        contrastive = self.criterion(
            projection.float(), indices if getattr(self.criterion, "by_image", False) else labels
        )
        total = self.weight * contrastive + (1 - self.weight) * cross_entropy
        return LossParts(total, contrastive, cross_entropy)

    def _cross_entropy(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        if world_size() == 1:
            return loss
        rows = torch.tensor(float(len(logits)), device=logits.device)
        all_rows = rows.clone()
        dist.all_reduce(all_rows)
        return loss * rows * world_size() / all_rows


def contrastive_term(recipe: LossRecipe, projection_dim: int) -> nn.Module:
    """The contrastive loss that the recipe names, built-in or of an installed package.

    Raises:
        BadRequest: an installed package's loss that cannot be imported or built.
    """
    if not is_registered(recipe.name):
        register_loss(recipe.name, plugins.load_plugin(plugins.LOSSES, recipe.name))
    options = {
        "temperature": recipe.temperature,
        "hardness": recipe.hardness,
        "positives": recipe.positives,
        "stop_gradient": recipe.stop_gradient,
        "pool": recipe.contrastive_pool,
        "memory": CrossBatchMemory(recipe.memory_size, projection_dim) if recipe.memory_size else None,
        "check_finite": False,  # the training core checks every step's loss and gradient itself
    }
    try:
        return contrastive_loss(recipe.name, extra=recipe.args, **options)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"the loss {recipe.name!r} cannot be built: {error}") from None
