"""Supervised contrastive losses; `contrastive.py` alone can be copied out and used."""

from importlib.util import find_spec
from typing import Any

from torch import Tensor

from schane_cli.losses.contrastive import (
    CrossBatchMemory,
    SchaneLoss,
    SimCLRLoss,
    SupConLoss,
    contrastive_loss,
    register_backend,
    schane_loss,
    supcon_loss,
)
from schane_cli.losses.tiled import tiled_soft_means

__all__ = [
    "CrossBatchMemory",
    "SchaneLoss",
    "SimCLRLoss",
    "SupConLoss",
    "contrastive_loss",
    "schane_loss",
    "supcon_loss",
]


def _triton_soft_means(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Triton is imported when it is first used: nobody waits for it on a CPU."""
    from schane_cli.losses.triton import triton_soft_means

    return triton_soft_means(*arguments, **options)


register_backend("tiled", tiled_soft_means)
if find_spec("triton") is not None:
    register_backend("triton", _triton_soft_means)
