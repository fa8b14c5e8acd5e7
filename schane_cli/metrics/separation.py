"""Metrics of how far the classes lie apart: silhouette, k-means NMI, Fisher ratio, neural collapse and a linear probe.

Each reduces to a few numbers per image, from which the jackknife makes its interval without the embeddings.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score
from threadpoolctl import threadpool_limits

from schane_cli.metrics.resampling import Floats, Ints, Measured, jackknife
from schane_cli.metrics.spectrum import Axes

RIDGE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # in units of the mean variance of a coordinate
START_IMAGES = 10_000  # among which k-means++ chooses its starts


def class_sums(vectors: Floats, labels: Ints, n_classes: int) -> Floats:
    """Sums (C, d) over each class of `vectors` (n, d), `labels` (n,) in 0..C-1."""
    sums = torch.zeros(n_classes, vectors.shape[1], dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(labels), torch.from_numpy(vectors).double())
    result: Floats = sums.numpy()
    return result


def silhouette(unit: Floats, labels: Ints) -> Measured:
    """Mean silhouette by cosine distance (Rousseeuw 1987); 0 for an image alone in its class, as scikit-learn has it.

    The mean cosine distance to a class is 1 minus the product with the class's mean, so no pair is formed. An image
    enters as itself and through the mean of its class, by the derivative of the others' scores.
    """
    sizes, rows = np.bincount(labels), np.arange(len(labels))
    cosine_sums = unit @ class_sums(unit, labels, len(sizes)).T  # (n, C)
    distance = 1 - cosine_sums / sizes
    distance[rows, labels] = np.inf
    near = distance.argmin(axis=1)
    b = distance[rows, near]
    a = 1 - (cosine_sums[rows, labels] - (unit * unit).sum(axis=1)) / np.maximum(sizes[labels] - 1, 1)
    crowded = (sizes[labels] > 1) & (np.maximum(a, b) > 0)
    a, b = np.where(crowded, a, 1.0), np.where(crowded, b, 1.0)  # a score of 0, and no division by 0
    scores = (b - a) / np.maximum(a, b)
    slope_a = np.where(a < b, -1 / b, -b / a**2) * crowded
    slope_b = np.where(a < b, a / b**2, 1 / a) * crowded
    pull_own = class_sums(slope_a[:, None] * unit, labels, len(sizes))[labels]
    pull_near = class_sums(slope_b[:, None] * unit, near, len(sizes))[labels]
    influence = -((unit * pull_own).sum(axis=1) - slope_a) / np.maximum(sizes[labels] - 1, 1)
    influence -= (unit * pull_near).sum(axis=1) / sizes[labels]
    influence -= (np.bincount(labels, influence) / sizes)[labels]
    return jackknife(scores + influence)


def kmeans_clusters(unit: Floats, n_clusters: int, seed: int) -> Ints:
    """Cluster (n,) of each image by scikit-learn's k-means: best of 3 k-means++ starts, at most 100 rounds each.

    The starts are chosen among all images, or among START_IMAGES of them (or 10 per cluster) drawn by `seed`: choosing
    goes through the images once per centre, which from there on takes longer than the rounds.
    """
    # k-means++ makes thousands of small products, where BLAS's threads wait for one another on a busy machine.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        # Fewer distinct embeddings than classes (a collapse) is a finding that NMI shows, not a fault of the call.
        warnings.simplefilter("ignore", ConvergenceWarning)
        few = len(unit) <= max(START_IMAGES, 10 * n_clusters)
        kmeans = KMeans(n_clusters, init="k-means++" if few else _starts, n_init=3, max_iter=100, random_state=seed)
        clusters: Ints = kmeans.fit_predict(unit.astype(np.float32))
    return clusters


def _starts(unit: Floats, n_clusters: int, random_state: np.random.RandomState) -> Floats:
    """Centres (n_clusters, d) by k-means++ among some of the images."""
    some = random_state.choice(len(unit), max(START_IMAGES, 10 * n_clusters), replace=False)
    centres: Floats = kmeans_plusplus(unit[some], n_clusters, random_state=random_state)[0]
    return centres


def normalised_mutual_information(labels: Ints, clusters: Ints) -> float:
    """2 I(labels; clusters) / (H(labels) + H(clusters)) of two partitions (n,); 1 where both are of one part."""
    return float(normalized_mutual_info_score(labels, clusters))


def fisher_ratio(vectors: Floats, labels: Ints) -> Measured:
    """Trace of the between-class scatter over trace of the within-class scatter (Fisher 1936, as a ratio of traces).

    Squared distances to the overall and to the class mean, left out one by one with the means kept: a mean
    minimises its own scatter, so that its move is of second order.
    """
    sizes = np.bincount(labels)
    means = class_sums(vectors, labels, len(sizes)) / sizes[:, None]
    total = ((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1)
    within = ((vectors - means[labels]) ** 2).sum(axis=1)
    return jackknife(np.stack([total, within], axis=1), lambda m: m[:, 0] / m[:, 1] - 1)


def neural_collapse_1(vectors: Floats, labels: Ints) -> Measured:
    """NC1 = tr(S_W pinv(S_B)) / C; 0 where every class is a point (Papyan, Han and Donoho 2020, section 2).

    S_W averages over images, S_B over classes around the mean of the class means. Its terms are the influence of
    each image on S_W, on its class's mean and through that on pinv(S_B) (its derivative: Golub and Pereyra 1973).
    """
    sizes = np.bincount(labels)
    means = class_sums(vectors, labels, len(sizes)) / sizes[:, None]
    offsets = means - means.mean(axis=0)
    residuals = vectors - means[labels]
    with threadpool_limits(1, user_api="blas"):
        _, singular, axes = np.linalg.svd(offsets / np.sqrt(len(sizes)), full_matrices=False)
    kept = singular > singular[0] * 1e-6
    axes, inverse = axes[kept], singular[kept] ** -2.0  # (r, d), (r,): pinv(S_B) = axes^T diag(inverse) axes
    inside, m = residuals @ axes.T, (offsets @ axes.T) * inverse  # (n, r), (C, r): m = pinv(S_B) offset
    collapse = (inside**2 * inverse).sum(axis=1) / len(sizes)
    spread = inside.T @ inside / len(vectors)  # S_W within the range of S_B
    across = residuals.T @ inside / len(vectors) - axes.T @ spread  # (d, r): S_W between the range and its complement
    pull_inside = (m @ spread) * inverse  # (C, r)
    pull_outside = (m * inverse) @ across.T  # (C, d)
    move = (residuals * pull_outside[labels]).sum(axis=1) - (inside * pull_inside[labels]).sum(axis=1)
    weight = len(vectors) / sizes[labels]
    return jackknife(collapse + 2 / len(sizes) ** 2 * weight * move)


def linear_probe_correct(centred: Axes, labels: Ints) -> tuple[Floats, float]:
    """Which images (n,) a ridge classifier fitted on all the others gets right, and its penalty.

    `centred`: the principal axes of the embeddings (n, d) minus their mean; `labels` (n,) in 0..C-1. Least squares on
    one-hot labels with an intercept. Leave-one-out predictions follow from one eigendecomposition through the leverages
    (Hoerl and Kennard's ridge; Allen 1974's PRESS); the penalty is the one of RIDGE_PENALTIES with the least squared
    leave-one-out error.
    """
    n, coordinates = len(labels), torch.from_numpy(centred.coordinates)
    one_hot = torch.eye(int(labels.max()) + 1, dtype=torch.float64)[torch.from_numpy(labels)]
    target_mean, squares = one_hot.mean(dim=0), coordinates**2
    moments, eigenvalues = coordinates.T @ (one_hot - target_mean), squares.sum(dim=0)  # (d, C), (d,)
    best_error, best, best_penalty = np.inf, torch.zeros(n, dtype=torch.int64), 0.0
    for penalty in RIDGE_PENALTIES:
        gain = 1 / (eigenvalues + penalty * eigenvalues.mean())
        leverage = 1 / n + squares @ gain
        fitted = target_mean + coordinates @ (gain[:, None] * moments)
        left_out = (fitted - leverage[:, None] * one_hot) / (1 - leverage)[:, None]
        error = float(((left_out - one_hot) ** 2).mean())
        if error < best_error:
            best_error, best, best_penalty = error, left_out.argmax(dim=1), penalty
    return (best.numpy() == labels).astype(np.float64), best_penalty


def linear_probe_halves(vectors: Floats, labels: Ints, penalty: float, halves: NDArray[np.bool_]) -> Floats:
    """Leave-one-out accuracy (2, K) of the ridge classifier at a given penalty, on both halves of each split.

    `vectors` (n, d), `labels` (n,), `halves` (K, n): True in the first half. The second half's scatter is what the
    first leaves of the whole, which saves every other product.
    """
    x = torch.from_numpy(vectors - vectors.mean(axis=0))
    wide = x.double()
    whole, accuracies = wide.T @ wide, []
    for half in halves:
        first, second = x[torch.from_numpy(half)], x[torch.from_numpy(~half)]
        wide = first.double()
        squares = wide.T @ wide
        parts = (first, labels[half], squares), (second, labels[~half], whole - squares)
        accuracies.append([_probe_accuracy(*part, penalty) for part in parts])
    return np.array(accuracies).T


def _probe_accuracy(x: torch.Tensor, labels: Ints, squares: torch.Tensor, penalty: float) -> float:
    """Leave-one-out accuracy for `x` (n, d) with `squares` = x.T @ x (d, d), by one Cholesky decomposition.

    In float32 once the penalty has bounded the condition of what is solved: by the square root of d over the penalty.
    """
    n, mean = len(x), x.mean(dim=0, dtype=torch.float64)
    one_hot = torch.eye(int(labels.max()) + 1)[torch.from_numpy(labels)]
    target_mean, scatter = one_hot.mean(dim=0), squares - n * torch.outer(mean, mean)
    scatter.diagonal().add_(penalty * float(scatter.diagonal().mean()) + torch.finfo(torch.float64).tiny)
    factor = torch.linalg.cholesky(scatter).float()
    white = torch.linalg.solve_triangular(factor, (x - mean.float()).T, upper=False)  # (d, n)
    leverage = 1 / n + (white**2).sum(dim=0)
    fitted = target_mean + white.T @ (white @ (one_hot - target_mean))
    left_out = (fitted - leverage[:, None] * one_hot) / (1 - leverage)[:, None]
    return float((left_out.argmax(dim=1).numpy() == labels).mean())


OPTIMAL_ORDER_CLASSES = 200  # beyond, the best order of the leaves takes minutes


@dataclass(frozen=True)
class ClassPair:
    """Two classes that the embedding mixes: `share` of their images' nearest neighbours belong to the other one."""

    first: int
    second: int
    share: float


def class_similarity(vectors: Floats, labels: Ints, n_classes: int) -> Floats:
    """Mean cosine (C, C) of two different images, by class; NaN where there is no such pair.

    `vectors` (n, d), not zero; `labels` (n,) in 0..C-1.
    """
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float64)
    sums = class_sums(unit, labels, n_classes)
    sizes = np.bincount(labels, minlength=n_classes).astype(np.float64)
    totals, pairs = sums @ sums.T, np.outer(sizes, sizes)
    np.fill_diagonal(totals, totals.diagonal() - sizes)  # an image's cosine with itself says nothing
    np.fill_diagonal(pairs, pairs.diagonal() - sizes)
    similarity: Floats = np.divide(totals, pairs, out=np.full_like(totals, np.nan), where=pairs > 0)
    return similarity


def similarity_order(similarity: Floats) -> Ints:
    """Classes (C,) in the leaf order of average-linkage clustering by 1 - cosine, so that like stands beside like.

    Classes without images (NaN) count as unlike all others.
    """
    if len(similarity) < 3:
        return np.arange(len(similarity))
    distance = np.clip(1 - np.nan_to_num(similarity, nan=-1.0), 0, 2)
    np.fill_diagonal(distance, 0)
    condensed = squareform((distance + distance.T) / 2, checks=False)
    tree = linkage(condensed, "average", optimal_ordering=len(similarity) <= OPTIMAL_ORDER_CLASSES)
    order: Ints = leaves_list(tree)
    return order


def confused_pairs(labels: Ints, neighbours: Ints, n_pairs: int) -> list[ClassPair]:
    """The `n_pairs` pairs of classes with the largest share of each other's images among the nearest neighbours.

    `labels` (n,), `neighbours` (n, k) rows. Pairs that share no neighbour are left out; largest share first.
    """
    n_classes = int(labels.max()) + 1
    k = neighbours.shape[1]
    cells = np.repeat(labels, k) * n_classes + labels[neighbours].ravel()
    counts = np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)
    sizes = np.bincount(labels, minlength=n_classes)
    shares = np.triu((counts + counts.T) / np.maximum(k * (sizes[:, None] + sizes), 1), k=1)
    largest = np.argsort(-shares, axis=None, kind="stable")[:n_pairs]
    rows, columns = np.unravel_index(largest, shares.shape)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [ClassPair(a, b, float(shares[a, b])) for a, b in pairs if shares[a, b] > 0]
