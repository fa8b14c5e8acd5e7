"""Telling images of other classes from a model's own: scores and how well they separate."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.neighbors import NearestNeighbors

from schane_cli.metrics.bootstrap import Floats, Ints
from schane_cli.metrics.checks import as_array
from schane_cli.metrics.intervals import Estimate, bootstrap_interval


@dataclass(frozen=True)
class Detection:
    """How well a score separates in-distribution (higher) from out-of-distribution images.

    `fpr95`: share of out-of-distribution images accepted at the threshold that accepts 95 % of the others.
    """

    auroc: Estimate
    fpr95: Estimate
    n_in: int
    n_out: int


def max_softmax_score(logits: Any) -> Floats:
    """Highest softmax probability (n,) of logits (n, C); higher is more in-distribution (Hendrycks and Gimpel 2017)."""
    logits = as_array(logits).astype(np.float64)
    score: Floats = np.exp(log_softmax(logits, axis=1).max(axis=1))
    return score


def energy_score(logits: Any, temperature: float = 1.0) -> Floats:
    """Negative free energy T logsumexp(logits / T) (n,); higher is more in-distribution (Liu et al. 2020, eq. 4)."""
    score: Floats = temperature * logsumexp(as_array(logits).astype(np.float64) / temperature, axis=1)
    return score


def knn_score(embeddings: Any, train_embeddings: Any, k: int = 50) -> Floats:
    """Minus the distance (n,) to the k-th nearest training embedding, both L2-normalised (Sun et al. 2022, eq. 3).

    `embeddings` (n, d), `train_embeddings` (m, d). Raises ValueError where m is less than k.
    """
    queries, train = (_unit_rows(as_array(e).astype(np.float64)) for e in (embeddings, train_embeddings))
    if len(train) < k:
        raise ValueError(f"the kNN score with k={k} needs at least {k} training embeddings, and there are {len(train)}")
    distances, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(train).kneighbors(queries)
    score: Floats = -distances[:, -1]
    return score


def _unit_rows(values: Floats) -> Floats:
    norms: Floats = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.maximum(norms, np.finfo(values.dtype).tiny)


def ood_detection(in_scores: Any, out_scores: Any, *, seed: int, n_bootstrap: int = 1000) -> Detection:
    """AUROC and FPR95 of scores (n_in,) and (n_out,), higher meaning in-distribution; ties count one half in AUROC.

    The bootstrap resamples the two sets independently. Raises ValueError for an empty or non-finite set.
    """
    scores = [as_array(s).astype(np.float64).ravel() for s in (in_scores, out_scores)]
    for name, values in zip(("in", "out-of"), scores, strict=True):
        if not len(values) or not np.isfinite(values).all():
            raise ValueError(f"the {name}-distribution scores must be finite and at least one; got {len(values)}")
    n_in, n_out = len(scores[0]), len(scores[1])
    levels, where = np.unique(np.concatenate(scores), return_inverse=True)
    counts_in = np.bincount(where[:n_in], minlength=len(levels))
    counts_out = np.bincount(where[n_in:], minlength=len(levels))
    point = _auroc_and_fpr95(counts_in, counts_out)
    rng = np.random.default_rng(seed)
    draws = [
        _auroc_and_fpr95(_resample(rng, where[:n_in], len(levels)), _resample(rng, where[n_in:], len(levels)))
        for _ in range(n_bootstrap)
    ]
    auroc, fpr95 = (
        Estimate(value, bootstrap_interval(value, np.array(resamples), (0.0, 1.0)), n_in + n_out)
        for value, resamples in zip(point, zip(*draws, strict=True), strict=True)
    )
    return Detection(auroc, fpr95, n_in, n_out)


def _resample(rng: np.random.Generator, where: Ints, n_levels: int) -> Ints:
    return np.bincount(rng.choice(where, size=len(where)), minlength=n_levels)


def _auroc_and_fpr95(counts_in: Ints, counts_out: Ints) -> tuple[float, float]:
    """From the counts of both sets at each score level, ascending."""
    n_in, n_out = counts_in.sum(), counts_out.sum()
    out_below = np.cumsum(counts_out) - counts_out
    auroc = (counts_in * (out_below + 0.5 * counts_out)).sum() / (n_in * n_out)
    accepted = np.cumsum(counts_in[::-1])  # from the highest level down
    threshold = np.searchsorted(accepted, 0.95 * n_in - 1e-9)
    return float(auroc), float(counts_out[::-1][: threshold + 1].sum() / n_out)
