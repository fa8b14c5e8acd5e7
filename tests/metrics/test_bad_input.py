"""Degenerate input gives finite numbers or a sentence: constant and repeated rows, huge norms, ties, two images."""

import numpy as np
import pytest

from schane_cli.metrics import classification, ood
from schane_cli.metrics.embedding import analyse_embeddings, compare_embeddings
from schane_cli.metrics.intervals import mean_accuracy_interval, skewed_mean_interval

RNG = np.random.default_rng(0)
LABELS = np.arange(24) % 3
NOISE = RNG.normal(size=(24, 6))


def cone() -> np.ndarray:
    return 1 + 1e-3 * NOISE


EMBEDDINGS = {
    "constant": (np.ones((24, 6)), LABELS),
    "one row for each class": (np.eye(6)[LABELS], LABELS),
    "every image twice": (np.repeat(NOISE[:12], 2, axis=0), np.repeat(LABELS[:12], 2)),
    "two thirds the same": (np.where((np.arange(24) % 3 < 2)[:, None], 1.0, NOISE), LABELS),
    "one apart from the rest": (np.where((np.arange(24) == 7)[:, None], NOISE, 1.0), LABELS),
    "norm 1e7": (1e7 * NOISE, LABELS),
    "norm 1e-7": (1e-7 * NOISE, LABELS),
    "a narrow cone": (cone(), LABELS),
    "one direction": (np.outer(np.linspace(1, 2, 24), np.ones(6)), LABELS),
    "four images": (NOISE[:4], LABELS[[0, 0, 1, 1]]),
    "three images": (NOISE[:3], LABELS[[0, 0, 1]]),
    "more dimensions than images": (RNG.normal(size=(6, 40)), np.arange(6) % 2),
    "one class": (NOISE, np.zeros(24, dtype=int)),
    "two images": (NOISE[:2], np.array([0, 1])),
    "two images of a class": (NOISE[:2], np.array([0, 0])),
    "a zero row": (NOISE * (np.arange(24) > 0)[:, None], LABELS),
    "not a number": (np.where(np.arange(24)[:, None] == 3, np.nan, NOISE), LABELS),
}


REFUSED = {"constant", "one row for each class", "one class", "two images", "two images of a class"}
REFUSED |= {"a zero row", "not a number"}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings_of_any_kind_give_finite_metrics_or_a_sentence(name: str) -> None:
    vectors, labels = EMBEDDINGS[name]
    try:
        analysis = analyse_embeddings(vectors, labels, seed=0)
    except ValueError:
        assert name in REFUSED
        return
    assert name not in REFUSED
    for metric, estimate in analysis.metrics.items():
        assert np.isfinite(estimate.value), metric
        assert estimate.ci95 is None or np.isfinite(estimate.ci95).all(), metric
        assert estimate.ci95 is None or estimate.ci95[0] <= estimate.value + 1e-9, metric
        assert estimate.ci95 is None or estimate.value - 1e-9 <= estimate.ci95[1], metric
    changes = compare_embeddings(analysis, analysis)
    assert all(np.isfinite(change.difference) and change.better == "neither" for change in changes.values())


LOGITS = {
    "constant": (np.zeros((24, 3)), LABELS),
    "all right": (50 * np.eye(3)[LABELS], LABELS),
    "all wrong": (50 * np.eye(3)[(LABELS + 1) % 3], LABELS),
    "one class present": (RNG.normal(size=(24, 3)), np.zeros(24, dtype=int)),
    "one image": (np.array([[0.2, 0.1]]), np.array([0])),
    "two images": (np.array([[0.2, 0.1], [0.2, 0.1]]), np.array([0, 1])),
    "huge": (1e30 * RNG.normal(size=(24, 3)), LABELS),
    "the same row": (np.tile([[0.1, 0.5, 0.2]], (24, 1)), LABELS),
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_of_any_kind_give_finite_metrics(name: str) -> None:
    logits, labels = LOGITS[name]
    means, scores = classification.class_means(logits, labels), classification.calibration(logits, labels, seed=0)
    for estimate in (*vars(means).values(), scores.ece, scores.ece_debiased, scores.nll, scores.brier):
        assert np.isfinite(estimate.value)
        if estimate.ci95 is not None:
            assert estimate.ci95[0] - 1e-9 <= estimate.value <= estimate.ci95[1] + 1e-9
    assert np.isfinite(classification.fit_temperature(logits, labels).temperature)


@pytest.mark.parametrize("scores", [([1.0], [1.0]), ([1, 1, 1], [1, 1]), ([2.0] * 5, [1.0] * 4), ([0, 1], [0.5])])
def test_scores_that_tie_or_are_few_have_finite_intervals(scores: tuple[list[float], list[float]]) -> None:
    detection = ood.ood_detection(*map(np.array, scores))
    for estimate in (detection.auroc, detection.fpr95):
        assert estimate.ci95 is not None
        assert 0 <= estimate.ci95[0] <= estimate.value <= estimate.ci95[1] <= 1


@pytest.mark.parametrize("terms", [[1.0, 1.0], [0.0, 1e100], [1e-300, 2e-300], [0.0] * 99 + [1.0], [-5.0, 5.0]])
def test_an_interval_of_any_terms_is_finite_and_holds_their_mean(terms: list[float]) -> None:
    low, high = skewed_mean_interval(np.array(terms))
    assert low <= np.mean(terms) <= high
    assert np.isfinite(high - low)
    assert mean_accuracy_interval(np.zeros(1)) is None
