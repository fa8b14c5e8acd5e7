"""Classes against classes, held to loops over pairs of images."""

import numpy as np
import pytest

from schane_cli.metrics import separation
from schane_cli.metrics.separation import (
    class_similarity,
    confused_pairs,
    kmeans_clusters,
    normalised_mutual_information,
    similarity_order,
)


def test_class_similarity_is_the_mean_cosine_over_pairs_of_different_images() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(30, 6)).astype(np.float32), rng.integers(0, 4, 30)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    measured = class_similarity(vectors, labels, 4)
    for a in range(4):
        for b in range(4):
            pairs = [(i, j) for i in range(30) for j in range(30) if i != j and labels[i] == a and labels[j] == b]
            assert measured[a, b] == pytest.approx(np.mean([unit[i] @ unit[j] for i, j in pairs]), abs=1e-6)


def test_a_class_of_one_image_or_none_has_no_similarity_where_it_has_no_pair() -> None:
    measured = class_similarity(np.eye(3, dtype=np.float32), np.array([0, 0, 1]), 3)
    assert np.isnan(measured[1, 1])
    assert np.isnan(measured[2]).all()
    assert measured[0, 1] == 0


def test_like_classes_stand_together_in_the_order() -> None:
    directions = np.array([[1, 0, 0], [0, 1, 0], [1, 0.1, 0], [0, 1, 0.1], [0, 0, 1]], dtype=np.float32)
    labels = np.repeat(np.arange(5), 2)
    order = similarity_order(class_similarity(directions[labels], labels, 5)).tolist()
    assert abs(order.index(0) - order.index(2)) == 1
    assert abs(order.index(1) - order.index(3)) == 1
    assert sorted(order) == [0, 1, 2, 3, 4]


def test_two_classes_keep_their_order() -> None:
    assert similarity_order(np.eye(2)).tolist() == [0, 1]


def test_confused_pairs_count_neighbours_of_the_other_class() -> None:
    rng = np.random.default_rng(1)
    labels, neighbours = rng.integers(0, 3, 40), rng.integers(0, 40, (40, 5))
    measured = {(pair.first, pair.second): pair.share for pair in confused_pairs(labels, neighbours, 10)}
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        own = [i for i in range(40) if labels[i] in (a, b)]
        mixed = sum(labels[j] == (b if labels[i] == a else a) for i in own for j in neighbours[i])
        assert measured[a, b] == pytest.approx(mixed / (5 * len(own)))
    assert list(measured.values()) == sorted(measured.values(), reverse=True)


def test_classes_that_share_no_neighbour_are_no_pair() -> None:
    assert confused_pairs(np.array([0, 0, 1, 1]), np.array([[1], [0], [3], [2]]), 5) == []


def test_k_means_of_many_images_starts_among_some_of_them_to_the_same_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    vectors = (np.eye(8)[labels] + 0.05 * rng.normal(size=(200, 8))).astype(np.float32)
    among_all = kmeans_clusters(vectors, 4, 0)
    monkeypatch.setattr(separation, "START_IMAGES", 50)
    seen: list[int] = []
    start = separation.kmeans_plusplus
    monkeypatch.setattr(separation, "kmeans_plusplus", lambda x, *a, **k: (seen.append(len(x)), start(x, *a, **k))[1])
    among_some = kmeans_clusters(vectors, 4, 0)
    assert seen == [50, 50, 50]
    assert normalised_mutual_information(among_all, among_some) == 1
    assert normalised_mutual_information(labels, among_some) == 1
