"""Classification metrics from logits: accuracies, calibration and out-of-distribution scores, with 95 % intervals.

Accuracies carry Wilson's score interval, which keeps its coverage near 0 and 1 and for few images (Brown, Cai and
DasGupta 2001). NLL and Brier score carry Hall's interval for skewed means, ECE one of its own; means over seeds carry
Student's t. Every function takes arrays or tensors and returns numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from schane_cli.checks import as_array, require_finite
from schane_cli.metrics.intervals import Estimate, Z, accuracy_interval, mean_share_interval, skewed_mean_interval
from schane_cli.metrics.resampling import Floats, Ints

MAX_LOG_TEMPERATURE = float(np.log(100.0))
ECE_DRAWS = 500
BLOCK_CELLS = 1_000_000  # probabilities held at a time: 8 MB in float64, and as much again three times


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose top-label confidence lies in (low, high]; the first bin includes 0.

    `confidence` (mean) and `accuracy` are None where no image falls.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: Estimate | None


@dataclass(frozen=True)
class Calibration:
    """ECE (top-label, equal-width bins), NLL (negative log-likelihood, nats), Brier score (0 to 2).

    `ece_debiased` subtracts what chance adds to a sum of absolute values. `ece_calibrated` is the mean ECE of
    calibrated models of this confidence over this many images.
    """

    ece: Estimate
    ece_debiased: Estimate
    ece_calibrated: float
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


def topk_accuracy(logits: Any, labels: Any, k: int = 1) -> Estimate:
    """Share of images whose label is among the k highest logits.

    `logits` (n, C), `labels` (n,). A class tied with the label outranks it only with a lower index, as argmax has it,
    so constant logits do not score 1. Raises ValueError for k outside 1..C and for malformed input.
    """
    logits, labels = check_logits(logits, labels)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"top-{k} accuracy needs k from 1 to the {logits.shape[1]} classes")
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    tied_before = (logits == own) & (np.arange(logits.shape[1]) < labels[:, None])
    rank = (logits > own).sum(axis=1) + tied_before.sum(axis=1)
    return accuracy_interval(int((rank < k).sum()), len(labels))


def accuracy_and_nll(logits: Any, labels: Any) -> tuple[float, float]:
    """Top-1 accuracy and mean NLL (nats), the very values of `topk_accuracy` and `calibration` without their intervals.

    `logits` (n, C), `labels` (n,). Raises ValueError for malformed input.
    """
    logits, labels = check_logits(logits, labels)
    right = logits.argmax(axis=1) == labels
    parts = [-log_p[np.arange(len(own)), own] for log_p, own in _log_probabilities(logits, labels, 1.0)]
    return int(right.sum()) / len(labels), float(np.concatenate(parts).mean())


def confusion(logits: Any, labels: Any) -> Ints:
    """Counts (C, C): row the label, column the prediction (highest logit)."""
    logits, labels = check_logits(logits, labels)
    from sklearn.metrics import confusion_matrix  # takes a second, which a run need not wait for

    counts: Ints = confusion_matrix(labels, logits.argmax(axis=1), labels=np.arange(logits.shape[1]))
    return counts


def per_class_accuracy(logits: Any, labels: Any) -> list[Estimate | None]:
    """Top-1 accuracy of each class's own images (recall) in class order; None where a class has no image."""
    counts = confusion(logits, labels)
    totals = counts.sum(axis=1)
    return [accuracy_interval(int(counts[c, c]), int(totals[c])) if totals[c] else None for c in range(len(counts))]


@dataclass(frozen=True)
class ClassMeans:
    """Metrics in which every class counts equally, however many images it has."""

    balanced_accuracy: Estimate
    macro_f1: Estimate


def class_means(logits: Any, labels: Any) -> ClassMeans:
    """Balanced accuracy (mean recall of the classes) and macro-F1, as scikit-learn defines them, with their intervals.

    `logits` (n, C), `labels` (n,). A class without images is left out of the one, one that is neither label nor
    prediction of any image out of the other. Raises ValueError for malformed input.
    """
    counts = confusion(logits, labels)
    return ClassMeans(_balanced_accuracy(counts), _macro_f1(counts))


def _balanced_accuracy(counts: Ints) -> Estimate:
    """Of a confusion matrix (C, C), with Wilson's interval at the n that has the variance of the mean recall.

    For the variance each class's recall is drawn towards the mean by z^2 images, as Wilson's interval draws a share
    towards one half (Agresti and Coull 1998): a class of three images, all wrong, is not known to be always wrong.
    """
    sizes = counts.sum(axis=1)
    present = sizes > 0
    sizes, right, n_classes = sizes[present], counts.diagonal()[present], int(present.sum())
    value = float((right / sizes).mean())
    drawn = (right + Z**2 * value) / (sizes + Z**2)
    variance = float((drawn * (1 - drawn) / sizes).sum()) / n_classes**2
    n_if_alike = n_classes**2 / float((1 / sizes).sum())  # images with that variance, were all recalls the same
    return Estimate(value, mean_share_interval(value, variance, n_if_alike), int(sizes.sum()))


def _macro_f1(counts: Ints) -> Estimate:
    """Of a confusion matrix (C, C), with Wilson's interval at the n that has the jackknife's variance.

    Few images of a class bias its F1, and the interval is lengthened by the jackknife's estimate of that, towards the
    side that the truth then lies on.
    """
    n = int(counts.sum())
    value, left_out, weights = _macro_f1_left_out(counts)
    mean = float(np.average(left_out, weights=weights))
    variance = (n - 1) / n * float((weights * (left_out - mean) ** 2).sum())
    bias = (n - 1) * (mean - value)
    low, high = mean_share_interval(value, variance, n)
    return Estimate(value, (max(0.0, low - max(bias, 0.0)), min(1.0, high - min(bias, 0.0))), n)


def _macro_f1_left_out(counts: Ints) -> tuple[float, Floats, Ints]:
    """Macro-F1, its values (K,) with one image left out of each cell of the matrix that holds any, and their counts."""
    rows, columns = counts.nonzero()
    right, seen = counts.diagonal(), counts.sum(axis=0) + counts.sum(axis=1)

    def f1(right: Ints, seen: Ints) -> Floats:
        score: Floats = np.divide(2 * right, seen, out=np.zeros(len(seen)), where=seen > 0)
        return score

    scores, n_seen = f1(right, seen), int((seen > 0).sum())
    hit = rows == columns
    as_label = f1(right[rows] - hit, seen[rows] - 1 - hit) - scores[rows]
    as_prediction = np.where(hit, 0.0, f1(right[columns], seen[columns] - 1) - scores[columns])
    gone = (seen[rows] == 1 + hit).astype(int) + (~hit & (seen[columns] == 1))
    left_out = (scores.sum() + as_label + as_prediction) / np.maximum(n_seen - gone, 1)
    return float(scores.sum() / n_seen), left_out, counts[rows, columns]


def calibration(logits: Any, labels: Any, *, seed: int, n_bins: int = 15, temperature: float = 1.0) -> Calibration:
    """ECE, NLL and Brier score of softmax(logits / temperature), with intervals over images.

    ECE: sum over bins of |accuracy - confidence| weighted by the bin's share, top label, `n_bins` bins of equal width
    on (0, 1] (Guo et al. 2017, eq. 3). Brier: squared distance to the one-hot label, summed over classes (Brier 1950).
    `logits` (n, C), `labels` (n,). Raises ValueError for malformed input.
    """
    images = image_losses(*check_logits(logits, labels), temperature)
    confidence, correct = images.confidence, images.correct.astype(np.float64)
    nll, brier = mean_losses(images)
    in_bin = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    ece, ece_debiased, ece_calibrated = expected_calibration_error(confidence, correct, in_bin, n_bins, seed)
    return Calibration(
        ece=ece,
        ece_debiased=ece_debiased,
        ece_calibrated=ece_calibrated,
        nll=nll,
        brier=brier,
        reliability=_reliability(confidence, correct, in_bin, n_bins),
    )


@dataclass(frozen=True)
class ImageLosses:
    """What a model's probabilities are worth, image by image (n,): `confidence` in the predicted class and whether that
    is `correct`, `nll` (nats) and `brier` score."""

    confidence: Floats
    correct: NDArray[np.bool_]
    nll: Floats
    brier: Floats


def image_losses(logits: Floats, labels: Ints, temperature: float = 1.0) -> ImageLosses:
    """Losses of softmax(logits / temperature) for `logits` (n, C), `labels` (n,); in float64, some rows at a time."""
    parts = []
    for log_p, own in _log_probabilities(logits, labels, temperature):
        p, within = np.exp(log_p), np.arange(len(own))
        brier = (p**2).sum(axis=1) - 2 * p[within, own] + 1
        parts.append((p.max(axis=1), p.argmax(axis=1) == own, -log_p[within, own], brier))
    return ImageLosses(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _log_probabilities(logits: Floats, labels: Ints, temperature: float) -> Iterator[tuple[Floats, Ints]]:
    """Some rows at a time: log softmax(logits / temperature) (rows, C) in float64, and their labels (rows,)."""
    rows = max(1, BLOCK_CELLS // logits.shape[1])
    for start in range(0, len(labels), rows):
        some = slice(start, start + rows)
        yield scipy.special.log_softmax(logits[some].astype(np.float64) / temperature, axis=1), labels[some]


def mean_losses(images: ImageLosses) -> tuple[Estimate, Estimate]:
    """NLL and Brier score with their intervals, which they lack where every image is right.

    What a wrong image costs decides both means, and such images do not say how much that is.
    """
    known = len(images.correct) > 1 and not images.correct.all()

    def estimate(losses: Floats, bounds: tuple[float, float]) -> Estimate:
        return Estimate(float(losses.mean()), skewed_mean_interval(losses, bounds) if known else None, len(losses))

    return estimate(images.nll, (0.0, np.inf)), estimate(images.brier, (0.0, 2.0))


def expected_calibration_error(
    confidence: Floats, correct: Floats, in_bin: Ints, n_bins: int, seed: int
) -> tuple[Estimate, Estimate, float]:
    """ECE, its debiased value, both with the 95 % interval of the true ECE, and the mean ECE of calibrated models.

    `confidence`, `correct` (n,), `in_bin` (n,) in 0..n_bins-1. The sum of absolute gaps is biased upwards: chance opens
    a gap in every bin. A bootstrap repeats that bias, and its interval held the truth of a calibrated model in 1 to 2 %
    of draws. Here

    - the debiased value subtracts the mean of sum |gap + noise| - |gap|, the noise normal with each bin's standard
      error and the gaps shrunk to sqrt(gap^2 - error^2) (Kumar et al. 2019 take them as they are, which leaves more of
      the bias);
    - the upper end adds 1.96 standard errors of the signed sum of gaps: as |gap + noise| >= |gap| + noise * sign(gap),
      the truth lies above it in at most 2.5 % of draws;
    - the lower end subtracts the 97.5 % quantile of the same difference, and is 0 where 2.5 % or more of calibrated
      models of this confidence would score as much.
    """
    n = len(confidence)
    gaps = np.bincount(in_bin, correct - confidence, minlength=n_bins) / n
    errors = _gap_errors(confidence, correct, in_bin, gaps)
    value, rng = float(np.abs(gaps).sum()), np.random.default_rng(seed)
    noise = rng.normal(size=(ECE_DRAWS, n_bins)) * errors
    shrunk = np.sqrt(np.maximum(gaps**2 - errors**2, 0)) * np.sign(gaps)
    excess = np.abs(shrunk + noise).sum(axis=1) - np.abs(shrunk).sum()
    calibrated = _calibrated_scores(confidence, in_bin, n_bins, rng)
    could_be_calibrated = value <= np.quantile(calibrated, 0.975)
    low = 0.0 if could_be_calibrated else max(0.0, value - float(np.quantile(excess, 0.975)))
    interval = (low, min(1.0, value + Z * float(np.sqrt((errors**2).sum()))))
    debiased = max(0.0, value - float(excess.mean()))
    return Estimate(value, interval, n), Estimate(debiased, interval, n), float(calibrated.mean())


def _gap_errors(confidence: Floats, correct: Floats, in_bin: Ints, gaps: Floats) -> Floats:
    """Standard error (bins,) of each bin's gap; a bin's accuracy counts one more image, as sure as the others are."""
    n, n_bins = len(confidence), len(gaps)
    sizes, right, sure = (np.bincount(in_bin, weights, n_bins) for weights in (None, correct, confidence))
    mean_confidence = sure / np.maximum(sizes, 1)
    accuracy = (right + mean_confidence) / (sizes + 1)
    squares = sizes / n * (accuracy * (1 - accuracy) + (accuracy - mean_confidence) ** 2)
    errors: Floats = np.sqrt(np.maximum(squares - gaps**2, 0) / n)
    return errors


def _calibrated_scores(confidence: Floats, in_bin: Ints, n_bins: int, rng: np.random.Generator) -> Floats:
    """ECE (draws,) of models whose images are right with the probability that their confidence states."""
    n = len(confidence)
    order = np.argsort(in_bin, kind="stable")
    ordered, starts = confidence[order], np.searchsorted(in_bin[order], np.arange(n_bins))
    filled = starts < np.append(starts[1:], n)
    scores = []
    for _ in range(ECE_DRAWS):
        gaps = np.add.reduceat((rng.random(n) < ordered) - ordered, starts[filled])
        scores.append(np.abs(gaps).sum() / n)
    return np.array(scores)


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
        return float((scipy.special.logsumexp(logits * scale, axis=1) - own * scale).mean())

    bound = MAX_LOG_TEMPERATURE
    fit = scipy.optimize.minimize_scalar(nll, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    # NLL that only falls towards a bound is flat there to the last digit: the search then stops anywhere short of it.
    edge = min((-bound, bound), key=nll)
    at_bound = nll(edge) <= float(fit.fun) + 1e-12
    best = edge if at_bound else float(fit.x)
    return TemperatureFit(float(np.exp(best)), nll(0.0), nll(best), at_bound)


def check_logits(logits: Any, labels: Any) -> tuple[Floats, Ints]:
    """Arrays of logits (n, C) and labels (n,), or ValueError: lengths that differ, none, NaN, labels out of range."""
    logits, labels = as_array(logits), as_array(labels)
    if logits.ndim != 2 or labels.ndim != 1 or len(logits) != len(labels):
        raise ValueError(f"logits (n, C) and labels (n,) must go together; got {logits.shape} and {labels.shape}")
    if not len(labels):
        raise ValueError("there are no images to evaluate")
    require_finite(logits, "the logits")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be class indices (integers); got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but the logits have {logits.shape[1]} classes"
        )
    return logits, labels
