"""Left-out probabilities, near-duplicates and outliers against brute force and against what was planted."""

import numpy as np
from sklearn.datasets import load_sample_image

from schane_cli.metrics.curation import left_out_probabilities, neighbourhood, outliers, perceptual_hash


def _clusters(n: int = 60, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), n // 3)
    return rng.normal(size=(3, d))[labels] + 0.3 * rng.normal(size=(n, d)), labels


def test_a_planted_wrong_label_gets_a_low_probability_and_its_class_a_high_one() -> None:
    vectors, labels = _clusters()
    given = labels.copy()
    given[7] = 2
    probabilities = left_out_probabilities(vectors, given)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    own = probabilities[np.arange(60), given]
    assert own.argmin() == 7
    assert probabilities[7].argmax() == labels[7]


def test_probabilities_are_out_of_sample_so_noise_is_not_explained() -> None:
    rng = np.random.default_rng(1)
    probabilities = left_out_probabilities(rng.normal(size=(40, 200)), np.arange(40) % 2)
    assert (probabilities.argmax(1) == np.arange(40) % 2).mean() < 0.75  # a fit on all 40 in 200 dimensions has 1.0


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
