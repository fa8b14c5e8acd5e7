"""What may be wrong with a labelled set, judged by its embeddings: wrong labels, near-duplicates, outliers."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from schane_cli.metrics.neighbours import row_chunks
from schane_cli.metrics.resampling import Floats, Ints
from schane_cli.metrics.separation import class_sums

FOLDS = 5
STRENGTHS = (3.0, 10.0, 30.0)  # scikit-learn's C, for embeddings of length 1
PROBE_DIMENSIONS = 256  # principal components that the classifiers see: as good as all, and several times faster
# What is assumed of the labels before anything is seen: ten benchmark test sets hold 3.4 % of wrong ones on average
# (Northcutt, Athalye and Mueller 2021, arXiv:2103.14749), and a training set is labelled with less care.
WRONG_ANYWHERE, WRONG_LOOKALIKE = 0.03, 0.03
_NEVER = -80.0  # log-probability
NEIGHBOURS = 10
HASH_SIDE = 8
# (least cosine of the embeddings, most of 64 differing bits) of a pair that counts as near-duplicates
DUPLICATE_RULES = ((0.9, 3), (0.99, 6))
_BITS_OF_BYTE = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


@dataclass(frozen=True)
class Neighbourhood:
    """`nearest` (n,): each image's nearest other one, at cosine `cosine` (n,). `outlier_score` (n,): one minus the
    mean cosine to the ten nearest. `duplicates` (m, 2): pairs of near-duplicates, first < second, with their
    `duplicate_cosine` (m,) and `duplicate_bits` (m,) that differ."""

    nearest: Ints
    cosine: Floats
    outlier_score: Floats
    duplicates: Ints
    duplicate_cosine: Floats
    duplicate_bits: Ints


@dataclass(frozen=True)
class LabelEvidence:
    """What classifiers that never saw an image predict about its label.

    `probabilities` (n, C): of the classes, calibrated. `wrong` (n,): the chance that the label is wrong. `suggested`
    (n,): the likeliest class but the label's own, and `suggested_chance` (n,) the chance that it is the true one.
    """

    probabilities: Floats
    wrong: Floats
    suggested: Ints
    suggested_chance: Floats


def held_out_logits(vectors: Floats, labels: Ints, advance: Callable[[], None] = lambda: None) -> Floats:
    """Log-probabilities (n, C) of the classes for each image, by logistic regression fitted on four fifths without it.

    The images are divided into FOLDS stratified folds; one that is alone in its class gets that class for certain. The
    strength of each fold's classifier is the one of STRENGTHS with the highest log-likelihood on the other folds, held
    out in their turn. `vectors` (n, d) are L2-normalised and turned onto at most PROBE_DIMENSIONS principal components
    first; `labels` (n,) in 0..C-1, at least two classes. `advance` is called after each of the len(STRENGTHS) * FOLDS
    fits.
    """
    rows, fold = principal_rows(vectors), stratified_folds(labels)
    logits = np.full((len(STRENGTHS), len(labels), int(labels.max()) + 1), _NEVER)
    logits[:, fold < 0, labels[fold < 0]] = 0
    for number in range(FOLDS):
        out = fold == number
        if not out.any():
            continue
        model = LogisticRegression(max_iter=200, tol=1e-3, warm_start=True)
        for place, strength in enumerate(STRENGTHS):
            model.set_params(C=strength)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(rows[~out], labels[~out])
            logits[place, out] = model.predict_log_proba(rows[out])
            advance()
    own = np.take_along_axis(logits, labels[None, :, None], axis=2)[:, :, 0]
    best = np.array([own[:, fold != number].mean(axis=1).argmax() for number in range(FOLDS)])
    chosen: Floats = logits[best[fold], np.arange(len(labels))]
    return chosen


def label_evidence(logits: Floats, labels: Ints) -> LabelEvidence:
    """Each label against the held-out log-probabilities (n, C) of `held_out_logits`, by Bayes' rule.

    A true class j is assumed to have been given the label k by a slip to any class (WRONG_ANYWHERE in all), or to a
    class that looks like it (WRONG_LOOKALIKE in all, shared by how often the classifiers take images labelled j for k).
    The temperature of the classifiers is fitted to the labels under the same assumption, so that wrong labels do not
    flatten it. Confident learning counts errors by thresholds (Northcutt, Jiang and Chuang 2021), which on a weak
    classifier call half of the images wrong; these chances say how many are more likely wrong than right. Nothing can
    be said of an image that is alone in its class: its chance is 0.
    """

    def negative_log_likelihood(log_temperature: float) -> float:
        return -float(np.log(_joint(softmax(logits / np.exp(log_temperature), axis=1), labels).sum(axis=1)).mean())

    fit = minimize_scalar(negative_log_likelihood, bounds=(-2.5, 2.5), method="bounded")
    probabilities = softmax(logits / np.exp(fit.x), axis=1)
    chances = _joint(probabilities, labels)
    chances /= chances.sum(axis=1, keepdims=True)
    images = np.arange(len(labels))
    wrong = 1 - chances[images, labels]
    wrong[np.bincount(labels)[labels] == 1] = 0
    chances[images, labels] = -1
    suggested = chances.argmax(axis=1)
    return LabelEvidence(probabilities, wrong, suggested, chances[images, suggested])


def _joint(probabilities: Floats, labels: Ints) -> Floats:
    """(n, C): the probability of each true class and, given it, of the label that the image has."""
    n_classes = probabilities.shape[1]
    sums = class_sums(probabilities, labels, n_classes)
    np.fill_diagonal(sums, 0)
    lookalike = sums / np.maximum(sums.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    noise = WRONG_ANYWHERE / max(n_classes - 1, 1) + WRONG_LOOKALIKE * lookalike  # (true class, label)
    np.fill_diagonal(noise, 1 - WRONG_ANYWHERE - WRONG_LOOKALIKE)
    joint: Floats = probabilities * noise[:, labels].T
    return joint


def principal_rows(vectors: Floats) -> Floats:
    """`vectors` (n, d) at length 1, centred, on their first PROBE_DIMENSIONS principal components; float32."""
    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    rows = rows - rows.mean(axis=0)
    if rows.shape[1] > PROBE_DIMENSIONS:
        _, directions = np.linalg.eigh(rows.T @ rows)
        rows = rows @ directions[:, -PROBE_DIMENSIONS:]
    return np.ascontiguousarray(rows, dtype=np.float32)


def stratified_folds(labels: Ints) -> Ints:
    """The fold (n,) of each image, over which every class is spread evenly; -1 for one that is alone in its class."""
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS
    fold[np.bincount(labels)[labels] == 1] = -1
    return fold


def perceptual_hash(image: np.ndarray) -> int:
    """64 bits of an image uint8 (H, W, 3): whether each cell of an 8 x 9 grid is brighter than its right neighbour
    (dHash; Krawetz 2013)."""
    grey = image.astype(np.float32).mean(axis=2)
    rows = np.linspace(0, len(grey), HASH_SIDE + 1).astype(int)
    columns = np.linspace(0, grey.shape[1], HASH_SIDE + 2).astype(int)
    summed = np.add.reduceat(np.add.reduceat(grey, rows[:-1].clip(max=len(grey) - 1), axis=0),
                             columns[:-1].clip(max=grey.shape[1] - 1), axis=1)  # fmt: skip
    area = np.diff(rows).clip(min=1)[:, None] * np.diff(columns).clip(min=1)[None]
    cells = summed / area
    bits = (cells[:, :-1] > cells[:, 1:]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def neighbourhood(vectors: Floats, hashes: Ints) -> Neighbourhood:
    """Nearest neighbours, outlier scores and near-duplicates of `vectors` (n, d) with `hashes` uint64 (n,).

    Takes n^2 d multiplications and memory linear in n. Two images are near-duplicates where embedding and hash agree
    (DUPLICATE_RULES): after fine-tuning the embedding alone makes every pair of a class look alike.
    """
    unit = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    n, k = len(unit), min(NEIGHBOURS, len(unit) - 1)
    nearest, cosine, score = np.empty(n, dtype=np.int64), np.empty(n), np.empty(n)
    pairs, pair_cosines, pair_bits = [], [], []
    for some in row_chunks(n):
        start, stop = some.start, some.stop
        cosines = unit[start:stop] @ unit.T
        rows = np.arange(stop - start)
        cosines[rows, rows + start] = -2
        nearest[start:stop] = cosines.argmax(axis=1)
        cosine[start:stop] = cosines[rows, nearest[start:stop]]
        score[start:stop] = 1 - np.partition(cosines, n - k, axis=1)[:, n - k :].mean(axis=1)
        first, second = np.nonzero(cosines >= DUPLICATE_RULES[0][0])
        later = second > first + start
        first, second = first[later], second[later]
        bits = _different_bits(hashes[first + start], hashes[second])
        candidate_cosines = cosines[first, second]
        alike = np.zeros(len(bits), dtype=bool)
        for least, most in DUPLICATE_RULES:
            alike |= (candidate_cosines >= least) & (bits <= most)
        pairs.append(np.stack([first + start, second], axis=1)[alike])
        pair_cosines.append(candidate_cosines[alike])
        pair_bits.append(bits[alike])
    return Neighbourhood(
        nearest,
        cosine,
        score,
        np.concatenate(pairs),
        np.concatenate(pair_cosines).astype(np.float64),
        np.concatenate(pair_bits),
    )


def _different_bits(first: np.ndarray, second: np.ndarray) -> Ints:
    """The number of bits in which the hashes of each pair differ (numpy has bitwise_count from 2.0 on)."""
    return _BITS_OF_BYTE[(first ^ second)[:, None].view(np.uint8)].sum(axis=1, dtype=np.int64)


def outliers(score: Floats) -> Ints:
    """Images far from all others, the farthest first: beyond the third quartile by three times the quartiles' distance
    (Tukey's far-out fence)."""
    low, high = np.quantile(score, [0.25, 0.75])
    far = np.flatnonzero(score > high + 3 * (high - low))
    order: Ints = far[np.argsort(-score[far], kind="stable")]
    return order
