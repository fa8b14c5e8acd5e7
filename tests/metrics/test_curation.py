"""The evidence against labels, near-duplicates and outliers against brute force and against what was planted."""

import numpy as np
import pytest
from sklearn.datasets import load_sample_image
from sklearn.linear_model import LogisticRegression

from schane_cli.metrics.curation import (
    STRENGTHS,
    WRONG_ANYWHERE,
    WRONG_LOOKALIKE,
    held_out_logits,
    label_evidence,
    neighbourhood,
    outliers,
    perceptual_hash,
    principal_rows,
    stratified_folds,
)


def _clusters(n: int = 60, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), n // 3)
    return rng.normal(size=(3, d))[labels] + 0.3 * rng.normal(size=(n, d)), labels


def test_a_planted_wrong_label_is_the_likeliest_to_be_wrong_and_its_true_class_is_suggested() -> None:
    vectors, labels = _clusters()
    given = labels.copy()
    given[7] = 2
    evidence = label_evidence(held_out_logits(vectors, given), given)
    np.testing.assert_allclose(evidence.probabilities.sum(1), 1)
    assert evidence.wrong.argmax() == 7
    assert evidence.suggested[7] == labels[7]
    assert evidence.suggested_chance[7] == pytest.approx(evidence.wrong[7], abs=0.1)
    assert (evidence.wrong > 0.5).sum() == 1


def test_the_chance_of_a_wrong_label_is_bayes_rule_written_out() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 80)
    evidence = label_evidence(np.log(rng.dirichlet(np.ones(4) * 0.3, 80)), labels)
    p, i = evidence.probabilities, 5
    lookalike = np.array([[p[labels == j, k].sum() * (j != k) for k in range(4)] for j in range(4)])
    lookalike /= lookalike.sum(1, keepdims=True)
    slip = [WRONG_ANYWHERE / 3 + WRONG_LOOKALIKE * lookalike[j, labels[i]] for j in range(4)]
    slip[labels[i]] = 1 - WRONG_ANYWHERE - WRONG_LOOKALIKE
    joint = p[i] * slip
    assert evidence.wrong[i] == pytest.approx(1 - joint[labels[i]] / joint.sum())


def test_held_out_logits_are_those_of_classifiers_that_never_saw_the_image() -> None:
    """By scikit-learn, fold by fold; and noise is not explained, as a fit on all 40 in 200 dimensions would."""
    rng = np.random.default_rng(1)
    vectors, labels = rng.normal(size=(40, 200)), np.arange(40) % 2
    logits = held_out_logits(vectors, labels)
    assert (logits.argmax(1) == labels).mean() < 0.75
    rows, fold = principal_rows(vectors), stratified_folds(labels)
    assert all(np.bincount(labels[fold == number]).tolist() == [4, 4] for number in range(5))
    candidates = [
        LogisticRegression(C=c, max_iter=500).fit(rows[fold != 2], labels[fold != 2]).predict_log_proba(rows[fold == 2])
        for c in STRENGTHS
    ]
    assert min(np.abs(logits[fold == 2] - one).max() for one in candidates) < 0.02


def test_an_image_alone_in_its_class_is_never_called_wrong() -> None:
    vectors, labels = _clusters()
    given = labels.copy()
    given[3], given[40:42] = 3, 4  # one alone, and two that each have the other
    evidence = label_evidence(held_out_logits(vectors, given), given)
    assert evidence.wrong[3] == 0
    assert (evidence.wrong[40:42] > 0.5).all()


def test_as_many_components_are_kept_as_the_classifiers_see() -> None:
    rows = principal_rows(np.random.default_rng(0).normal(size=(30, 300)))
    assert rows.shape == (30, 256)


def test_the_hash_survives_size_and_brightness_and_tells_pictures_apart() -> None:
    china, flower = load_sample_image("china.jpg"), load_sample_image("flower.jpg")
    changed = (china[::3, ::3] * 0.8 + 10).astype(np.uint8)
    assert (perceptual_hash(china) ^ perceptual_hash(changed)).bit_count() <= 4
    assert (perceptual_hash(china) ^ perceptual_hash(flower)).bit_count() > 10
    assert perceptual_hash(np.zeros((3, 2, 3), dtype=np.uint8)) == 0


def test_neighbours_duplicates_and_outliers_are_those_of_brute_force() -> None:
    vectors, _ = _clusters()
    vectors[11], vectors[59] = 1.01 * vectors[4], -10 * vectors[:20].mean(0)
    hashes = np.random.default_rng(2).integers(0, 2**63, 60, dtype=np.uint64)
    hashes[11] = hashes[4] ^ np.uint64(1)
    near = neighbourhood(vectors, hashes)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T - 3 * np.eye(60)
    np.testing.assert_allclose(near.cosine, cosines.max(1), atol=1e-5)
    np.testing.assert_allclose(cosines[np.arange(60), near.nearest], cosines.max(1), atol=1e-5)
    np.testing.assert_allclose(near.outlier_score, 1 - np.sort(cosines, 1)[:, -10:].mean(1), atol=1e-5)
    assert near.duplicates.tolist() == [[4, 11]]
    assert near.duplicate_bits.tolist() == [1]
    assert outliers(near.outlier_score).tolist()[0] == 59
