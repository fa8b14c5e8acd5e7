"""t-SNE and PCA in two dimensions: determinism, neighbours kept, and refusals."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from threadpoolctl import threadpool_limits

from schane_cli.metrics.projection2d import _nearest, principal_components, tsne


@pytest.fixture(scope="module")
def clusters() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 8
    return (rng.normal(size=(8, 32))[labels] * 2 + rng.normal(size=(400, 32))).astype(np.float32), labels


@pytest.fixture(scope="module")
def picture(clusters) -> np.ndarray:
    return tsne(clusters[0], seed=0)


def test_principal_components_equal_a_singular_value_decomposition(clusters):
    vectors = clusters[0].astype(float)
    result = principal_components(vectors)
    left, singular, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(abs(result.points), abs(left[:, :2] * singular[:2]), atol=1e-3)
    assert result.variance_share == pytest.approx(tuple(singular[:2] ** 2 / (singular**2).sum()), rel=1e-4)
    assert result.variance_share == pytest.approx(tuple(PCA(2).fit(vectors).explained_variance_ratio_), rel=1e-4)


def test_nearest_rows_equal_scikit_learns(clusters):
    vectors = clusters[0].astype(np.float64)
    indices, distances = _nearest(clusters[0], 20)
    expected_distances, _ = NearestNeighbors(n_neighbors=20).fit(vectors).kneighbors()
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-4)
    np.testing.assert_allclose(distances, np.linalg.norm(vectors[:, None] - vectors[indices], axis=2), rtol=1e-4)


def test_tsne_is_the_same_to_the_bit_takes_tensors_and_reports_progress_to_the_end(clusters, picture):
    told: list[float] = []
    np.testing.assert_array_equal(tsne(torch.tensor(clusters[0]), seed=0, progress=told.append), picture)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_tsne_keeps_classes_apart_and_neighbours_as_scikit_learns_does(clusters, picture):
    vectors, labels = clusters
    assert picture.shape == (400, 2)
    assert KNeighborsClassifier(5).fit(picture, labels).score(picture, labels) > 0.98
    with threadpool_limits(1):
        theirs = TSNE(random_state=0).fit_transform(vectors)
    assert trustworthiness(vectors, picture, n_neighbors=30) > trustworthiness(vectors, theirs, n_neighbors=30) - 0.01


def test_fewer_points_than_the_perplexity_needs_are_refused():
    with pytest.raises(ValueError, match=r"perplexity 30 needs .* more than 90 points; got 90"):
        tsne(np.random.default_rng(0).normal(size=(90, 5)), seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        tsne(np.ones((90, 5)), seed=0, perplexity=0.5)


def test_bad_embeddings_are_refused():
    vectors = np.ones((100, 5))
    vectors[7] = np.nan
    for picture_of in (principal_components, lambda v: tsne(v, seed=0)):
        with pytest.raises(ValueError, match=r"1 row \(7\) is not finite"):
            picture_of(vectors)
        with pytest.raises(ValueError, match="at least 2 rows and 2 dimensions"):
            picture_of(np.ones((100, 1)))


def test_identical_embeddings_are_refused_by_t_sne_and_duplicates_are_drawn() -> None:
    with pytest.raises(ValueError, match="all 100 embeddings are the same"):
        tsne(np.ones((100, 4)), seed=0)
    vectors = np.random.default_rng(0).normal(size=(60, 4))
    vectors[:50] = vectors[0]
    assert np.isfinite(tsne(vectors, seed=0, perplexity=5)).all()
