"""The cross-entropy of the objective under imbalance: torch's own weighted mean, hard and soft labels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from schane_cli.images.loader import StepSampler
from schane_cli.losses.imbalance import class_weights, log_shares
from schane_cli.recipe import LossRecipe, TrainRecipe
from schane_cli.training.objective import Objective

COUNTS = torch.tensor([80, 15, 5])
LABELS = torch.tensor([0, 0, 1, 2, 1, 0])
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def _cross_entropy(labels: torch.Tensor = LABELS, soft: torch.Tensor | None = None, **options: object) -> float:
    objective = Objective(LossRecipe(name="ce", **options), COUNTS, 8)  # type: ignore[arg-type]
    parts = objective(torch.zeros(len(labels), 8), LOGITS, labels, torch.arange(len(labels)), soft)
    return parts.total.item()


def test_class_weights_give_torchs_weighted_mean() -> None:
    expected = F.cross_entropy(LOGITS, LABELS, class_weights(COUNTS, "balanced"), label_smoothing=0.1)
    assert _cross_entropy(class_weights="balanced", label_smoothing=0.1) == pytest.approx(expected.item(), rel=1e-6)


def test_soft_labels_that_are_hard_weigh_like_hard_ones() -> None:
    soft = F.one_hot(LABELS, 3).float()
    assert _cross_entropy(soft=soft, class_weights="effective") == pytest.approx(
        _cross_entropy(class_weights="effective"), rel=1e-5
    )


def test_logit_adjustment_shifts_the_training_logits_by_its_factor() -> None:
    expected = F.cross_entropy(LOGITS + 0.5 * log_shares(COUNTS), LABELS)
    assert _cross_entropy(logit_adjustment=0.5) == pytest.approx(expected.item(), rel=1e-6)


def test_nothing_of_it_is_in_a_checkpoint_s_state() -> None:
    assert not Objective(LossRecipe(name="ce", class_weights="balanced", logit_adjustment=1), COUNTS, 8).state_dict()


def test_balanced_sampling_draws_classes_equally_often_and_keeps_the_length_of_an_epoch() -> None:
    labels = np.repeat(np.arange(4), [70, 20, 8, 2])
    sampler = StepSampler(labels, batch_size=20, epochs=2, seed=3, balanced=True)
    assert sampler.total_steps == 10
    epoch = np.concatenate([sampler.batch(step) for step in range(5)])
    counts = np.bincount(labels[epoch], minlength=4)
    assert counts.sum() == 100
    assert counts.max() - counts.min() <= 1
    assert np.bincount(epoch, minlength=100)[98:].tolist() in ([12, 13], [13, 12], [13, 13], [12, 12])
    assert not np.array_equal(epoch, np.concatenate([sampler.batch(step) for step in range(5, 10)]))
    resumed = StepSampler(labels, batch_size=20, epochs=2, seed=3, balanced=True, start_step=7)
    assert np.array_equal(sampler.batch(7), resumed.batch(7))


def test_two_ways_of_balancing_at_once_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave sampling out"):
        TrainRecipe(sampling="balanced", classes_per_batch=4)
