"""Two-dimensional pictures of embeddings: t-SNE and PCA, deterministic, on a stated number of threads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from openTSNE import TSNE
from openTSNE.affinity import PerplexityBasedNN
from openTSNE.initialization import rescale
from openTSNE.nearest_neighbors import PrecomputedNeighbors
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from schane_cli.checks import as_array, require_finite
from schane_cli.metrics.neighbours import largest, row_chunks
from schane_cli.metrics.resampling import Floats, Ints

EARLY_ITERATIONS = 250
LATE_ITERATIONS = 350
REPORT_EVERY = 25


@dataclass(frozen=True)
class PrincipalComponents:
    """`points` (n, 2), largest variance first, each axis turned so that its largest entry in the embedding is positive;
    `variance_share` (first, second): the share of all variance each shows."""

    points: Floats
    variance_share: tuple[float, float]


def principal_components(embeddings: Any) -> PrincipalComponents:
    """PCA of `embeddings` (n, d) to two dimensions. Raises ValueError for fewer than 2 rows or dimensions, or NaN."""
    vectors = _check(embeddings)
    with threadpool_limits(1):
        pca = PCA(2, svd_solver="covariance_eigh").fit(vectors)
        points: Floats = pca.transform(vectors)
    first, second = np.nan_to_num(pca.explained_variance_ratio_)
    return PrincipalComponents(points, (float(first), float(second)))


def umap(embeddings: Any, *, seed: int, neighbours: int = 15) -> Floats:
    """UMAP (n, 2) of `embeddings` (n, d) (McInnes, Healy and Melville 2018, arXiv:1802.03426), by umap-learn.

    The same at every call of one seed. Raises ValueError for fewer than four points and for NaN (which rows), and
    ImportError where umap-learn (the extra `umap`) is not installed.
    """
    from umap import UMAP

    vectors = _check(embeddings)
    if len(vectors) < 4:
        raise ValueError(f"UMAP needs four points or more; got {len(vectors)}")
    start = "spectral" if len(vectors) > 10 else "random"
    model = UMAP(n_neighbors=min(neighbours, len(vectors) - 1), random_state=seed, n_jobs=1, init=start)
    points: Floats = np.asarray(model.fit_transform(vectors), dtype=np.float64)
    return points


def tsne(
    embeddings: Any,
    *,
    seed: int,
    perplexity: float = 30.0,
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Floats:
    """t-SNE (n, 2) of `embeddings` (n, d) (van der Maaten and Hinton 2008), by openTSNE.

    Exact nearest neighbours by Euclidean distance in all d dimensions, started from the first two principal
    components, gradient by Barnes-Hut trees below 10,000 points and by interpolation from there (FIt-SNE, Linderman et
    al. 2019), 250 iterations with early exaggeration 12 and 350 without: 500 kept no more neighbours (0.598 against
    0.599). On one of `threads` (openTSNE's and BLAS's) the result is the same, bit for bit, at every call; on more the
    library's sums may come in another order. `progress` is told the share of iterations done.

    The neighbours are not sought after a PCA to 50 dimensions, as is customary: with 100 classes that loses some (30
    nearest kept: 0.568 against 0.598), and exact ones take a few per cent of the whole time.

    Raises ValueError where n is not above 3 x perplexity (the neighbours t-SNE looks at), where all rows are the same,
    and for NaN (which rows).
    """
    vectors = _check(embeddings)
    n_neighbours = int(3 * perplexity)
    if perplexity < 1 or len(vectors) <= n_neighbours:
        raise ValueError(
            f"t-SNE with perplexity {perplexity:g} needs a perplexity of at least 1 and more than {n_neighbours} "
            f"points; got {len(vectors)}"
        )
    if (vectors == vectors[0]).all():
        raise ValueError(f"all {len(vectors)} embeddings are the same: t-SNE has no distances to show")
    with threadpool_limits(threads):
        nearest, distances = _nearest(vectors, n_neighbours)
        index = PrecomputedNeighbors(nearest, distances)
        affinities = PerplexityBasedNN(perplexity=perplexity, knn_index=index, n_jobs=threads)
        start = rescale(principal_components(vectors).points.astype(np.float64))
        points = _optimiser(seed, perplexity, threads, progress).fit(affinities=affinities, initialization=start)
    result: Floats = np.asarray(points, dtype=np.float32)
    return result


def _optimiser(seed: int, perplexity: float, threads: int, progress: Callable[[float], None] | None) -> TSNE:
    done = 0

    def tell(iteration: int, error: float, points: Any) -> None:
        nonlocal done  # the library starts counting iterations again after early exaggeration
        done += REPORT_EVERY
        if progress is not None:
            progress(min(1.0, done / (EARLY_ITERATIONS + LATE_ITERATIONS)))

    return TSNE(
        perplexity=perplexity,
        early_exaggeration_iter=EARLY_ITERATIONS,
        n_iter=LATE_ITERATIONS,
        negative_gradient_method="auto",  # trees below 10,000 points, where interpolating on a grid is slower
        n_jobs=threads,
        random_state=seed,
        callbacks=tell if progress is not None else None,
        callbacks_every_iters=REPORT_EVERY,
    )


def _nearest(vectors: Floats, k: int) -> tuple[Ints, Floats]:
    """Nearest other rows (n, k) and their Euclidean distances (n, k), nearest first, in chunks of rows."""
    rows = torch.from_numpy(vectors - vectors.mean(axis=0))  # centred, the squares below lose less to rounding
    squares = (rows * rows).sum(dim=1)
    nearest, distances = [], []
    for some in row_chunks(len(rows)):
        closeness = (2 * (rows[some] @ rows.T)).sub_(squares).sub_(squares[some, None])  # minus the square
        itself = torch.arange(len(closeness))
        closeness[itself, itself + some.start] = -torch.inf
        columns, values = largest(closeness, k)
        nearest.append(columns)
        distances.append(values.neg_().clamp_(min=0).sqrt_())
    return torch.cat(nearest).numpy(), torch.cat(distances).numpy()


def _check(embeddings: Any) -> Floats:
    vectors = as_array(embeddings)
    if vectors.ndim != 2 or min(vectors.shape) < 2:
        raise ValueError(f"a picture needs embeddings (n, d) of at least 2 rows and 2 dimensions; got {vectors.shape}")
    require_finite(vectors, "the embedding")
    return np.ascontiguousarray(vectors, dtype=np.float32)
