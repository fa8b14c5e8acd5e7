"""Classification metrics from logits: accuracies, calibration and out-of-distribution scores, with 95 % intervals.

Accuracies carry Wilson's score interval, which keeps its coverage near 0 and 1 and for few images (Brown, Cai and
DasGupta 2001). NLL, Brier, ECE, AUROC and FPR95 carry a bootstrap interval over images; means over seeds carry
Student's t. Every function takes arrays or tensors and returns numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp
from scipy.stats import binomtest, t
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import NearestNeighbors

from schane_cli.bootstrap import Bootstrap, Floats, Ints, bootstrap_interval
from schane_cli.errors import BadRequest

MAX_LOG_TEMPERATURE = float(np.log(100.0))


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval (low, high) and the count it rests on (images, or seeds for a mean over seeds)."""

    value: float
    ci95: tuple[float, float]
    n: int


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose top-label confidence lies in (low, high]; the first bin holds 0 too.

    `confidence` (mean) and `accuracy` are None where no image falls.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: Estimate | None


@dataclass(frozen=True)
class Calibration:
    """ECE (top-label, equal-width bins), NLL (negative log-likelihood, nats), Brier score (0 to 2)."""

    ece: Estimate
    nll: Estimate
    brier: Estimate
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class TemperatureFit:
    """`temperature` divides the logits; `at_bound` says that the search ended at 0.01 or 100, so no optimum was found
    (held-out images all right, or no better than chance). NLL in nats on the images it was fitted on."""

    temperature: float
    nll_before: float
    nll_after: float
    at_bound: bool


@dataclass(frozen=True)
class Detection:
    """How well a score separates in-distribution (higher) from out-of-distribution images.

    `fpr95`: share of out-of-distribution images accepted at the threshold that accepts 95 % of the others.
    """

    auroc: Estimate
    fpr95: Estimate
    n_in: int
    n_out: int


def as_array(values: Any) -> NDArray[Any]:
    """A NumPy array of an array or a tensor on any device; half-precision floats become float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach()
        return (
            (values.float() if values.is_floating_point() and values.dtype != torch.float64 else values).cpu().numpy()
        )
    return np.asarray(values)


def accuracy_interval(n_correct: int, n: int) -> Estimate:
    """Share correct with Wilson's 95 % score interval (without continuity correction)."""
    if not 0 <= n_correct <= n or n == 0:
        raise BadRequest(f"an accuracy needs at least one image and at most all of them right; got {n_correct} of {n}")
    low, high = binomtest(n_correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Estimate(n_correct / n, (float(low), float(high)), n)


def topk_accuracy(logits: Any, labels: Any, k: int = 1) -> Estimate:
    """Share of images whose label is among the k highest logits.

    `logits` (n, C), `labels` (n,). A class tied with the label outranks it only with a lower index, as argmax has it,
    so constant logits do not score 1. Raises BadRequest for k outside 1..C and for malformed input.
    """
    logits, labels = check_logits(logits, labels)
    if not 1 <= k <= logits.shape[1]:
        raise BadRequest(f"top-{k} accuracy needs k from 1 to the {logits.shape[1]} classes")
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    tied_before = (logits == own) & (np.arange(logits.shape[1]) < labels[:, None])
    rank = (logits > own).sum(axis=1) + tied_before.sum(axis=1)
    return accuracy_interval(int((rank < k).sum()), len(labels))


def confusion(logits: Any, labels: Any) -> Ints:
    """Counts (C, C): row the label, column the prediction (highest logit)."""
    logits, labels = check_logits(logits, labels)
    counts: Ints = confusion_matrix(labels, logits.argmax(axis=1), labels=np.arange(logits.shape[1]))
    return counts


def per_class_accuracy(logits: Any, labels: Any) -> list[Estimate | None]:
    """Top-1 accuracy of each class's own images (recall) in class order; None where a class has no image."""
    counts = confusion(logits, labels)
    totals = counts.sum(axis=1)
    return [accuracy_interval(int(counts[c, c]), int(totals[c])) if totals[c] else None for c in range(len(counts))]


def calibration(
    logits: Any, labels: Any, *, seed: int, n_bins: int = 15, n_bootstrap: int = 1000, temperature: float = 1.0
) -> Calibration:
    """ECE, NLL and Brier score of softmax(logits / temperature), with bootstrap intervals over images.

    ECE: sum over bins of |accuracy - confidence| weighted by the bin's share, top label, `n_bins` bins of equal width
    on (0, 1] (Guo et al. 2017, eq. 3). Brier: squared distance to the one-hot label, summed over classes (Brier 1950).
    `logits` (n, C), `labels` (n,). Raises BadRequest for malformed input.
    """
    logits, labels = check_logits(logits, labels)
    log_p = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    rows = np.arange(len(labels))
    p = np.exp(log_p)
    confidence, correct = p.max(axis=1), (p.argmax(axis=1) == labels).astype(np.float64)
    nll = -log_p[rows, labels]
    brier = (p**2).sum(axis=1) - 2 * p[rows, labels] + 1
    in_bin = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gaps = np.zeros((len(labels), n_bins))
    gaps[rows, in_bin] = correct - confidence
    samples = np.column_stack([nll, brier, gaps])
    means = Bootstrap(len(labels), n_resamples=n_bootstrap, seed=seed).means(samples)
    ece_value, ece_resamples = np.abs(samples[:, 2:].mean(axis=0)).sum(), np.abs(means[:, 2:]).sum(axis=1)
    n = len(labels)
    return Calibration(
        ece=Estimate(float(ece_value), bootstrap_interval(ece_value, ece_resamples, low=0.0, high=1.0), n),
        nll=Estimate(float(nll.mean()), bootstrap_interval(nll.mean(), means[:, 0], low=0.0), n),
        brier=Estimate(float(brier.mean()), bootstrap_interval(brier.mean(), means[:, 1], low=0.0, high=2.0), n),
        reliability=_reliability(confidence, correct, in_bin, n_bins),
    )


def _reliability(confidence: Floats, correct: Floats, in_bin: Ints, n_bins: int) -> tuple[ReliabilityBin, ...]:
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    bins = []
    for b in range(n_bins):
        inside = in_bin == b
        n = int(inside.sum())
        mean = float(confidence[inside].mean()) if n else None
        accuracy = accuracy_interval(int(correct[inside].sum()), n) if n else None
        bins.append(ReliabilityBin(float(edges[b]), float(edges[b + 1]), n, mean, accuracy))
    return tuple(bins)


def fit_temperature(logits: Any, labels: Any) -> TemperatureFit:
    """The temperature in [0.01, 100] that minimises NLL on held-out logits (n, C) (Guo et al. 2017, section 4.2).

    NLL is convex in 1/T, so the bounded scalar search over log T finds the one minimum.
    """
    logits, labels = check_logits(logits, labels)
    logits = logits.astype(np.float64)
    own = logits[np.arange(len(labels)), labels]

    def nll(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((logsumexp(logits * scale, axis=1) - own * scale).mean())

    bound = MAX_LOG_TEMPERATURE
    fit = minimize_scalar(nll, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    # NLL that only falls towards a bound is flat there to the last digit: the search then stops anywhere short of it.
    edge = min((-bound, bound), key=nll)
    at_bound = nll(edge) <= float(fit.fun) + 1e-12
    best = edge if at_bound else float(fit.x)
    return TemperatureFit(float(np.exp(best)), nll(0.0), nll(best), at_bound)


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over runs with the two-sided 95 % interval of Student's t; `n` is the number of seeds.

    Raises BadRequest for fewer than two runs: one run says nothing of the spread.
    """
    runs = np.asarray(values, dtype=np.float64)
    if len(runs) < 2:
        raise BadRequest(f"an interval over seeds needs at least 2 runs, and there is {len(runs)}")
    half = float(t.ppf(0.975, len(runs) - 1) * runs.std(ddof=1) / np.sqrt(len(runs)))
    return Estimate(float(runs.mean()), (float(runs.mean() - half), float(runs.mean() + half)), len(runs))


_LOWER_IS_BETTER = ("nll", "ece", "brier", "seconds", "bytes", "joules", "forwarded")


def better_is_lower(name: str) -> bool:
    """Whether less of a figure, called as in summary.json, is better: losses, calibration errors and costs."""
    return name.split("_")[-1] in _LOWER_IS_BETTER


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

    `embeddings` (n, d), `train_embeddings` (m, d). Raises BadRequest where m is less than k.
    """
    queries, train = (_unit_rows(as_array(e).astype(np.float64)) for e in (embeddings, train_embeddings))
    if len(train) < k:
        raise BadRequest(f"the kNN score with k={k} needs at least {k} training embeddings, and there are {len(train)}")
    distances, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(train).kneighbors(queries)
    score: Floats = -distances[:, -1]
    return score


def _unit_rows(values: Floats) -> Floats:
    norms: Floats = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.maximum(norms, np.finfo(values.dtype).tiny)


def ood_detection(in_scores: Any, out_scores: Any, *, seed: int, n_bootstrap: int = 1000) -> Detection:
    """AUROC and FPR95 of scores (n_in,) and (n_out,), higher meaning in-distribution; ties count one half in AUROC.

    The bootstrap resamples the two sets independently. Raises BadRequest for an empty or non-finite set.
    """
    scores = [as_array(s).astype(np.float64).ravel() for s in (in_scores, out_scores)]
    for name, values in zip(("in", "out-of"), scores, strict=True):
        if not len(values) or not np.isfinite(values).all():
            raise BadRequest(f"the {name}-distribution scores must be finite and at least one; got {len(values)}")
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
        Estimate(value, bootstrap_interval(value, np.array(resamples), low=0.0, high=1.0), n_in + n_out)
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


def check_logits(logits: Any, labels: Any) -> tuple[Floats, Ints]:
    """Arrays of logits (n, C) and labels (n,), or BadRequest: lengths that differ, none, NaN, labels out of range."""
    logits, labels = as_array(logits), as_array(labels)
    if logits.ndim != 2 or labels.ndim != 1 or len(logits) != len(labels):
        raise BadRequest(f"logits (n, C) and labels (n,) must go together; got {logits.shape} and {labels.shape}")
    if not len(labels):
        raise BadRequest("there are no images to evaluate")
    if not np.isfinite(logits).all():
        raise BadRequest(f"the logits of {name_rows(~np.isfinite(logits).all(axis=1))} are not finite")
    if not np.issubdtype(labels.dtype, np.integer):
        raise BadRequest(f"labels must be class indices (integers); got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise BadRequest(
            f"labels run from {labels.min()} to {labels.max()}, but the logits know {logits.shape[1]} classes"
        )
    return logits, labels


def name_rows(mask: NDArray[np.bool_]) -> str:
    """`3 rows (0, 4, 7)` for the rows that are True, the first five named."""
    rows = np.flatnonzero(mask)
    named = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    return f"{len(rows)} row{'s' if len(rows) != 1 else ''} ({named})"
