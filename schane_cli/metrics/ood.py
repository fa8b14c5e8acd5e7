"""Telling images of other classes from a model's own: scores and how well they separate."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from schane_cli.checks import as_array, require_finite
from schane_cli.metrics.intervals import Estimate, auc_interval, combined_interval, wilson
from schane_cli.metrics.resampling import Floats


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
    score: Floats = np.exp(scipy.special.log_softmax(logits, axis=1).max(axis=1))
    return score


def energy_score(logits: Any, temperature: float = 1.0) -> Floats:
    """Negative free energy T logsumexp(logits / T) (n,); higher is more in-distribution (Liu et al. 2020, eq. 4)."""
    score: Floats = temperature * scipy.special.logsumexp(as_array(logits).astype(np.float64) / temperature, axis=1)
    return score


def knn_score(embeddings: Any, train_embeddings: Any, k: int = 50) -> Floats:
    """Minus the distance (n,) to the k-th nearest training embedding, both L2-normalised (Sun et al. 2022, eq. 3).

    `embeddings` (n, d), `train_embeddings` (m, d). Raises ValueError where m is less than k.
    """
    queries, train = (_unit_rows(as_array(e).astype(np.float64)) for e in (embeddings, train_embeddings))
    if len(train) < k:
        raise ValueError(f"the kNN score with k={k} needs at least {k} training embeddings, and there are {len(train)}")
    from sklearn.neighbors import NearestNeighbors  # takes a second, which a run need not wait for

    distances, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(train).kneighbors(queries)
    score: Floats = -distances[:, -1]
    return score


def _unit_rows(values: Floats) -> Floats:
    norms: Floats = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.maximum(norms, np.finfo(values.dtype).tiny)


def ood_detection(in_scores: Any, out_scores: Any) -> Detection:
    """AUROC and FPR95 of scores (n_in,) and (n_out,), higher meaning in-distribution; ties count one half in AUROC.

    AUROC has a score interval from DeLong's variance. FPR95's joins Wilson's interval over the out-of-distribution
    images with what the threshold's own uncertainty, over the in-distribution images, does to it. Raises ValueError
    for an empty or non-finite set.
    """
    inside, outside = (np.sort(as_array(scores).astype(np.float64).ravel()) for scores in (in_scores, out_scores))
    for name, values in (("in-distribution", inside), ("out-of-distribution", outside)):
        if not len(values):
            raise ValueError(f"AUROC and FPR95 need at least one {name} score")
        require_finite(values, f"the {name} score")
    n = len(inside) + len(outside)
    return Detection(_auroc(inside, outside, n), _fpr95(inside, outside, n), len(inside), len(outside))


def _auroc(inside: Floats, outside: Floats, n: int) -> Estimate:
    """From sorted scores, by DeLong's placements: how much of the other set each image is ranked right against."""
    of_inside, of_outside = _share_below(outside, inside), 1 - _share_below(inside, outside)
    auc = float(of_inside.mean())
    variance = sum(float(one.var(ddof=1)) / len(one) for one in (of_inside, of_outside) if len(one) > 1)
    informative = min(_effective_number(one if auc < 0.5 else 1 - one) for one in (of_inside, of_outside))
    return Estimate(auc, auc_interval(auc, variance, (len(inside), len(outside)), informative), n)


def _share_below(ordered: Floats, scores: Floats) -> Floats:
    """Share (m,) of `ordered` (n,), ascending, that lies below each of `scores` (m,); ties count one half."""
    below = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    share: Floats = below / (2 * len(ordered))
    return share


def _effective_number(contributions: Floats) -> float:
    """Of how many equal ones the sum of `contributions` could be: (sum)^2 / sum of squares; 0 where all are 0."""
    squares = float((contributions**2).sum())
    return float(contributions.sum()) ** 2 / squares if squares else 0.0


def _fpr95(inside: Floats, outside: Floats, n: int) -> Estimate:
    def accepted_at(share: float) -> float:
        """Share of the out-of-distribution images at the threshold that accepts `share` of the others."""
        rank = min(max(int(np.ceil(share * len(inside) - 1e-9)), 1), len(inside))
        below = np.searchsorted(outside, inside[len(inside) - rank], "left")
        return float(len(outside) - below) / len(outside)

    value, (rejected_low, rejected_high) = accepted_at(0.95), wilson(0.05, len(inside))
    over_outside, over_threshold = (
        wilson(value, len(outside)),
        (accepted_at(1 - rejected_high), accepted_at(1 - rejected_low)),
    )
    return Estimate(value, combined_interval(value, over_outside, over_threshold, bounds=(0.0, 1.0)), n)
