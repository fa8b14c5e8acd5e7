"""Class weights and logit shares against scikit-learn, the papers' formulas, and what they are for."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from schane_cli.losses.imbalance import class_weights, log_shares

COUNTS = torch.tensor([500, 50, 5])


def test_balanced_weights_are_proportional_to_those_of_scikit_learn_with_mean_one() -> None:
    labels = np.repeat(np.arange(3), COUNTS.numpy())
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    ours = class_weights(COUNTS, "balanced")
    assert ours is not None
    assert ours.mean().item() == pytest.approx(1)
    np.testing.assert_allclose(ours.numpy(), expected / expected.mean(), rtol=1e-6)


def test_effective_numbers_follow_the_paper_and_lie_between_equal_and_balanced_weights() -> None:
    ours, balanced = class_weights(COUNTS, "effective"), class_weights(COUNTS, "balanced")
    assert ours is not None
    assert balanced is not None
    b = 554 / 555
    expected = np.array([(1 - b) / (1 - b**n) for n in COUNTS.tolist()])
    np.testing.assert_allclose(ours.numpy(), expected / expected.mean(), rtol=1e-5)
    assert 1 < ours[2] / ours[0] < balanced[2] / balanced[0]


def test_a_class_without_images_weighs_nothing_and_stays_finite() -> None:
    counts = torch.tensor([10, 0, 10])
    for how in ("balanced", "effective"):
        weights = class_weights(counts, how)
        assert weights is not None
        assert weights.tolist() == pytest.approx([1, 0, 1])
    assert torch.isfinite(log_shares(counts)).all()


def test_no_weights_are_none_and_an_unknown_kind_is_named() -> None:
    assert class_weights(COUNTS, "none") is None
    with pytest.raises(ValueError, match="unknown class weights 'rare'; allowed: none, balanced, effective"):
        class_weights(COUNTS, "rare")


def test_log_shares_undo_the_prior_of_a_model_that_only_knows_the_prior() -> None:
    """A constant model trained with the adjustment ends at equal logits: it no longer prefers the frequent class."""
    labels = torch.repeat_interleave(torch.arange(3), COUNTS)
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy((logits + log_shares(COUNTS)).expand(len(labels), 3), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose((logits - logits.mean()).detach().numpy(), 0, atol=1e-3)
