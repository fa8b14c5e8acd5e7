"""Supervised contrastive losses; `contrastive.py` alone can be copied out and used."""

from importlib.util import find_spec

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
from schane_cli.losses.fallback import triton_or_tiled
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


register_backend("tiled", tiled_soft_means)
if find_spec("triton") is not None:
    register_backend("triton", triton_or_tiled)
