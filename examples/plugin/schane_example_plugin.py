"""A loss and a few-shot classifier that schane finds by their entry points (see pyproject.toml)."""

import torch
from torch import Tensor, nn


class MarginLoss(nn.Module):
    """Contrastive loss with a margin on the cosine (Hadsell et al., CVPR 2006, equation 4, for cosines).

    schane passes those of the recipe's loss values that `__init__` names (temperature, hardness, positives,
    stop_gradient, pool, memory), and everything in `loss.args`.
    """

    def __init__(self, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, projection: Tensor, labels: Tensor) -> Tensor:
        """`projection` (n, d) of all views, `labels` (n,): a scalar."""
        unit = nn.functional.normalize(projection, dim=1)
        cosine = unit @ unit.T
        same = labels[:, None] == labels
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        pull = (1 - cosine)[same & ~itself].square()
        push = (cosine - self.margin).clamp_min(0)[~same].square()
        return (pull.sum() + push.sum()) / (pull.numel() + push.numel())


def median(support: Tensor, query: Tensor) -> Tensor:
    """Nearest median of each class: `support` (E, n_way, n_shot, d), `query` (E, q, d) -> logits (E, q, n_way)."""
    return -torch.cdist(query, support.contiguous().median(dim=2).values)
