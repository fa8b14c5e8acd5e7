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
from schane_cli.losses.imbalance import class_weights, log_shares
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
    so the mixed images need a forward pass of their own. So do class weights and logit adjustment: the contrastive term
    is a mean over anchors, each of which has its positives averaged, so that under imbalance frequent classes give more
    anchors and more negatives, and only `train.sampling: balanced` changes that.
    """

    class_weights: torch.Tensor | None
    adjustment: torch.Tensor | None

    def __init__(self, recipe: LossRecipe, class_counts: torch.Tensor, projection_dim: int) -> None:
        super().__init__()
        n_classes = len(class_counts)
        self.weight = contrastive_weight(recipe)
        self.label_smoothing = recipe.label_smoothing
        self.criterion = contrastive_term(recipe, projection_dim) if self.weight else None
        adjustment = recipe.logit_adjustment * log_shares(class_counts) if recipe.logit_adjustment else None
        # not part of the state: computed from the training labels again when a run is resumed
        self.register_buffer("class_weights", class_weights(class_counts, recipe.class_weights), persistent=False)
        self.register_buffer("adjustment", adjustment, persistent=False)
        mixers = [v2.MixUp(alpha=recipe.mixup, num_classes=n_classes)] if recipe.mixup else []
        mixers += [v2.CutMix(alpha=recipe.cutmix, num_classes=n_classes)] if recipe.cutmix else []
        self.mixer: v2.Transform | None = v2.RandomChoice(mixers) if mixers else None

    @property
    def stats(self) -> dict[str, torch.Tensor]:
        """The contrastive term's statistics of the last batch (see `SchaneLoss`); empty for cross-entropy alone."""
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
        """Over all processes: the mean over rows, or with class weights the weighted mean by the labels' weights."""
        if self.adjustment is not None:
            logits = logits + self.adjustment
        if self.class_weights is None:
            loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
            amount = torch.tensor(float(len(logits)), device=logits.device)
        else:
            shares = target if target.is_floating_point() else F.one_hot(target, logits.shape[1]).to(logits)
            amount = (shares @ self.class_weights).sum()
            summed = F.cross_entropy(
                logits, target, self.class_weights, reduction="sum", label_smoothing=self.label_smoothing
            )
            loss = summed / amount.clamp_min(1e-12)
        if world_size() == 1:
            return loss
        whole = amount.clone()
        dist.all_reduce(whole)
        return loss * amount * world_size() / whole


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
