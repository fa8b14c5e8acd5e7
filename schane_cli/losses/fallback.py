"""The Triton kernels, used only where they agree with the tiled form on this very machine."""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from schane_cli.losses.contrastive import SoftMeans, Weighting, make_pairs
from schane_cli.losses.tiled import tiled_soft_means

CHECKED_ROWS, CHECKED_WIDTH = 96, 48  # neither is a multiple of a tile, so that the masked edges are used too
TOLERANCE = 1e-3  # relative, of values and gradients in fp32; a wrong kernel is off by far more


def triton_or_tiled(pool: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The soft means by Triton, or by tiles where the kernels do not compile or disagree on `pool`'s device.

    Compared once in each process and on each device, with a warning where Triton is not used.
    """
    soft_means = tiled_soft_means if why_not_triton(pool.device) else _triton
    return soft_means(pool, *arguments, **options)


@cache
def why_not_triton(device: torch.device) -> str | None:
    """None where the kernels agree with the tiled form on `device`; otherwise what went wrong, in a sentence."""
    try:
        difference = disagreement(_triton, device)
    except ValueError:  # a device that the kernels refuse: the call itself raises the error
        return None
    except Exception as error:  # whatever a compiler or a driver raises
        reason = f"they do not run here ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
    else:
        if difference <= TOLERANCE:
            return None
        reason = f"they differ from the tiled form by {difference:.2g}"
    warnings.warn(f"the Triton kernels of the loss are not used on {device}: {reason}; it runs tiled", stacklevel=3)
    return reason


def disagreement(soft_means: SoftMeans, device: torch.device) -> float:
    """Largest relative difference from the tiled form, over both soft means and their gradients, on a small batch."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(CHECKED_ROWS, CHECKED_WIDTH, generator=generator)
    labels = torch.arange(CHECKED_ROWS) % 7
    given, expected = (_values_and_gradient(form, rows, labels, device) for form in (soft_means, tiled_soft_means))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(given, expected, strict=True))


def _values_and_gradient(soft_means: SoftMeans, rows: Tensor, labels: Tensor, device: torch.device) -> list[Tensor]:
    pool = torch.nn.functional.normalize(rows, dim=1).to(device).requires_grad_()
    pairs = make_pairs(labels.to(device), 0, len(labels), pool.dtype)
    positive, negative = soft_means(pool, pairs, Weighting(0.5, 1.0, stop_gradient=False), allow_tf32=False)
    (positive.sum() + 2 * negative.sum()).backward()
    assert pool.grad is not None
    return [positive.detach(), negative.detach(), pool.grad]


def _triton(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Triton is imported when it is first used, so that a run on a CPU does not wait for it."""
    from schane_cli.losses.triton import triton_soft_means

    return triton_soft_means(*arguments, **options)
