"""Supervised contrastive losses; `contrastive.py` alone can be copied out and used."""

from schane_cli.losses.contrastive import (
    CrossBatchMemory,
    SchaneLoss,
    SimCLRLoss,
    SupConLoss,
    contrastive_loss,
    schane_loss,
    supcon_loss,
)

__all__ = [
    "CrossBatchMemory",
    "SchaneLoss",
    "SimCLRLoss",
    "SupConLoss",
    "contrastive_loss",
    "schane_loss",
    "supcon_loss",
]
