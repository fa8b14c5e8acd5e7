"""Triton is used only where it agrees with the tiled form; its absence or a wrong answer is said once."""

from typing import Any

import pytest
import torch
from torch import Tensor

from schane_cli.losses import fallback
from schane_cli.losses.contrastive import Weighting, make_pairs
from schane_cli.losses.tiled import tiled_soft_means

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forgotten() -> Any:
    fallback.why_not_triton.cache_clear()
    yield
    fallback.why_not_triton.cache_clear()


def _soft_means() -> tuple[Tensor, Tensor]:
    pool = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    pairs = make_pairs(torch.arange(20) % 4, 0, 20, pool.dtype)
    return fallback.triton_or_tiled(pool, pairs, Weighting(0.5, 1.0, stop_gradient=False), allow_tf32=False)


def test_kernels_that_agree_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def kernels(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return tiled_soft_means(*arguments, **options)

    monkeypatch.setattr(fallback, "_triton", kernels)
    _soft_means()
    _soft_means()
    assert len(calls) == 3  # the comparison, once, and the two calls


def test_kernels_that_disagree_are_left_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        positive, negative = tiled_soft_means(*arguments, **options)
        return positive, negative * 1.01

    monkeypatch.setattr(fallback, "_triton", wrong)
    with pytest.warns(UserWarning, match="differ from the tiled form by 0.01; it runs tiled"):
        first = _soft_means()
    second = _soft_means()  # no second warning: warnings are errors here
    assert torch.equal(first[1], second[1])


def test_kernels_that_do_not_compile_are_left_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        raise RuntimeError("PTX assembly aborted\ndue to errors")

    monkeypatch.setattr(fallback, "_triton", broken)
    with pytest.warns(UserWarning, match="do not run here .RuntimeError: PTX assembly aborted due to errors."):
        _soft_means()


def test_a_wrong_gradient_is_seen_too() -> None:
    def without_gradient(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        positive, negative = tiled_soft_means(*arguments, **options)
        return positive, negative + (negative - negative.detach())

    assert fallback.disagreement(without_gradient, CPU) > fallback.TOLERANCE
    assert fallback.disagreement(tiled_soft_means, CPU) == 0
