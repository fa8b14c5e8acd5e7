"""A dataset, a loss and a few-shot classifier that schane finds by their entry points (see pyproject.toml)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from schane_cli.datasets.catalog import Dataset
from schane_cli.images.imageset import ImageSet, Names


class Stripes(Dataset):
    """Grey noise with a bright stripe whose row is the class: a dataset that needs no files."""

    title = "Stripes"
    licence = "CC0"
    source = "made by a seeded generator"
    classes = 4
    counts: Mapping[str, int] = {"all": 400}

    def read(self, root: Path) -> Mapping[str, ImageSet]:
        """All images; schane makes the splits by its seeded rule. `root` is the folder of the datasets."""
        labels = np.arange(400) % self.classes
        pixels = np.random.default_rng(0).integers(0, 60, (400, 32, 32, 3))
        pixels[np.arange(400), 8 * labels] += 190
        names = Names(f"{number:03d}" for number in range(400))
        classes = tuple(f"row {8 * row}" for row in range(self.classes))
        return {"all": ImageSet("stripes", "all", pixels.astype(np.uint8), labels, classes, names)}


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
