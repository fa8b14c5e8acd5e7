"""Supervised contrastive losses by name; `contrastive.py` alone can be copied out and used."""

import inspect
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from torch import nn

from schane_cli.losses.contrastive import CrossBatchMemory, SchaneLoss, SimCLRLoss, SupConLoss, register_backend
from schane_cli.losses.fallback import triton_or_tiled
from schane_cli.losses.tiled import tiled_soft_means

__all__ = [
    "CrossBatchMemory",
    "SchaneLoss",
    "SimCLRLoss",
    "SupConLoss",
    "contrastive_loss",
    "is_registered",
    "register_loss",
]

_LOSSES: dict[str, Callable[..., nn.Module]] = {}


def register_loss(name: str, build: Callable[..., nn.Module]) -> None:
    """Register `build(**options)` as the loss `name`.

    `build` makes a module whose `forward(projection, labels)` takes (n, d) and (n,) and returns a scalar; it is given
    those options that it names. Two attributes are optional: `by_image = True` asks for image ids in place of class
    labels, and `stats`, a dict of 0-dim tensors about the last batch, goes into the log.
    """
    _LOSSES[name] = build


def is_registered(name: str) -> bool:
    """Whether `contrastive_loss` knows the name."""
    return name in _LOSSES


def contrastive_loss(name: str, *, extra: Mapping[str, Any] | None = None, **options: Any) -> nn.Module:
    """The loss of that name: `schane`, `easy` (schane at hardness 0), `supcon`, `simclr`, or one that was registered.

    Options that the named loss does not have are ignored, so that one recipe serves a comparison; those in `extra` are
    for it alone, and one that it does not have raises TypeError. Raises ValueError for another name:
    plain cross-entropy has no contrastive term and is not built here.
    """
    if name not in _LOSSES:
        raise ValueError(f"name is {name!r}; allowed: {', '.join(_LOSSES)}")
    parameters = inspect.signature(_LOSSES[name]).parameters
    inherited = getattr(_LOSSES[name], "__init__", None) is nn.Module.__init__  # which takes any name, and refuses it
    if not inherited and any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return _LOSSES[name](**options, **(extra or {}))
    taken = {key: value for key, value in options.items() if key in parameters}
    return _LOSSES[name](**taken, **(extra or {}))


def _easy(**options: Any) -> SchaneLoss:
    """The release's `easy` estimator: all negatives have the same weight."""
    return SchaneLoss(**{**options, "hardness": 0.0})


register_loss("schane", SchaneLoss)
register_loss("easy", _easy)
register_loss("supcon", SupConLoss)
register_loss("simclr", SimCLRLoss)
register_backend("tiled", tiled_soft_means)
if find_spec("triton") is not None:
    register_backend("triton", triton_or_tiled)
