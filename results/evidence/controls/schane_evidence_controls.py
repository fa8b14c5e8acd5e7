"""Losses that take the objective apart: what is left of its gain without the term, or without the right negatives?"""

import torch
from torch import Tensor, nn


class Nothing(nn.Module):
    """0, with a gradient of zeros: cross-entropy at the weight 1 - lambda that it has in the whole objective."""

    def forward(self, projection: Tensor, labels: Tensor) -> Tensor:
        """Projections (n, d) and labels (n,) to a scalar."""
        return 0 * projection.sum()


class Shuffled(nn.Module):
    """SCHaNe with the weights of each anchor's negatives dealt out to them at random: same weights, no hard negatives.

    The weights are constants, as with SchaneLoss(stop_gradient=True), and positives="mean". Anchors without a positive
    or a negative contribute nothing.
    """

    def __init__(self, temperature: float = 0.5, hardness: float = 1.0) -> None:
        super().__init__()
        self.temperature, self.hardness = temperature, hardness

    def forward(self, projection: Tensor, labels: Tensor) -> Tensor:
        """Projections (n, d) and labels (n,) to a scalar."""
        unit = nn.functional.normalize(projection.float(), dim=1)
        scores = unit @ unit.T / self.temperature
        positive = labels[:, None] == labels
        negative, itself = ~positive, torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        weights = self.dealt(scores.detach(), negative)
        counts = (positive & ~itself).sum(dim=1)
        positives = scores.masked_fill(~positive | itself, -torch.inf).logsumexp(dim=1) - counts.log()
        negatives = (scores + weights.log()).masked_fill(~negative, -torch.inf).logsumexp(dim=1)
        valid = (counts > 0) & negative.any(dim=1)
        losses = nn.functional.softplus((negatives - positives)[valid])
        return losses.mean() if len(losses) else 0 * projection.sum()

    def dealt(self, scores: Tensor, negative: Tensor) -> Tensor:
        """The weights (n, n) that hardness gives the negatives of each row, in random order; 1 elsewhere."""
        logits = (self.hardness * scores).masked_fill(~negative, -torch.inf)
        weights = logits.softmax(dim=1) * negative.sum(dim=1, keepdim=True)
        keys = torch.rand_like(scores).masked_fill(~negative, 2)
        at_random, in_order = keys.argsort(dim=1), negative.int().argsort(dim=1, descending=True, stable=True)
        drawn = torch.ones_like(weights).scatter(1, at_random, weights.gather(1, in_order))
        return torch.where(negative, drawn, 1.0)
