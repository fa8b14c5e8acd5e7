"""The losses of results/evidence/controls, which take the objective apart."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from schane_cli.losses.contrastive import SchaneLoss


@pytest.fixture(scope="module")
def controls() -> Any:
    path = Path(__file__).parents[1] / "results" / "evidence" / "controls" / "schane_evidence_controls.py"
    spec = importlib.util.spec_from_file_location("schane_evidence_controls", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 8, generator=generator), torch.tensor([0, 1, 2, 3] * 5 + [4] * 3 + [5])


def test_without_hardness_shuffled_weights_are_the_easy_form(controls: Any, batch: tuple) -> None:
    projection, labels = batch
    expected = SchaneLoss(hardness=0.0)(projection, labels)
    torch.testing.assert_close(controls.Shuffled(hardness=0.0)(projection, labels), expected)


def test_each_anchor_keeps_its_weights_and_deals_them_out_anew(controls: Any, batch: tuple) -> None:
    projection, labels = batch
    unit = torch.nn.functional.normalize(projection, dim=1)
    negative = labels[:, None] != labels
    torch.manual_seed(0)
    dealt = controls.Shuffled().dealt(unit @ unit.T / 0.5, negative)
    for row, own in enumerate(negative):
        exact = (unit[own] @ unit[row] / 0.5).exp()
        exact = exact / exact.mean()
        torch.testing.assert_close(dealt[row, own].sort().values, exact.sort().values)
        assert not torch.allclose(dealt[row, own], exact)
    assert (dealt[~negative] == 1).all()


def test_no_term_is_zero_and_has_a_gradient_of_zeros(controls: Any, batch: tuple) -> None:
    projection = batch[0].clone().requires_grad_()
    loss = controls.Nothing()(projection, batch[1])
    loss.backward()
    assert loss == 0
    assert (projection.grad == 0).all()
