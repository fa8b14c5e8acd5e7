"""Embedding quality: every metric with its bootstrap interval, and the paired comparison of two checkpoints.

What the bootstrap resamples is the images, 1,000 times by default, the same resamples for every metric; intervals are
quantiles shifted onto the metric's value (`bootstrap_interval`). No metric is computed anew on a resample, where an
image drawn twice would be its own nearest neighbour and a pair at distance zero. Instead

- metrics over pairs (cosines, alignment, uniformity, AUC) are U-statistics over i != j by original index, resampled by
  their first-order (Hajek) projection;
- silhouette and mAP@R resample each image's own result plus what it does to the others' (through its class's mean, in
  their gallery);
- kNN accuracy, recall@k, linear probe and NMI resample each image's own result; gallery, classifiers and clusters stay
  as they are, so that their own variation is not in the interval. Where classes overlap that makes it too narrow: over
  fresh draws of 600 images of 10 classes it held the mean in 84 % (k=1), 90 to 93 % (larger k), 89 % (probe) and 72 %
  (NMI, whose k-means may settle elsewhere) instead of 95 %;
- metrics of the spectrum and of the scatter resample coordinates along axes that stay as they are, which is exact to
  first order (isotropy excepted, whose interval is given its axes: 89 % overall, 70 % within class by the same draws).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from schane_cli.metrics.bootstrap import Bootstrap, Floats, Ints, Measured
from schane_cli.metrics.checks import as_array, require_direction, require_finite
from schane_cli.metrics.intervals import Estimate, bootstrap_interval
from schane_cli.metrics.neighbours import PairPass, pass_over_pairs
from schane_cli.metrics.registry import metric
from schane_cli.metrics.separation import (
    class_sums,
    fisher_ratio,
    kmeans_clusters,
    linear_probe_correct,
    neural_collapse_1,
    normalised_mutual_information,
    silhouette,
)
from schane_cli.metrics.spectrum import Axes, effective_rank, iso_score, isotropy, principal_axes

Progress = Callable[[str, float], None]
Draft = tuple[str, Measured, int]  # name in the registry, value and resamples, images that count


@dataclass(frozen=True)
class PairedDifference:
    """A metric under two checkpoints on the same images: second minus first, with its paired 95 % interval.

    `better`: the checkpoint the interval favours; "neither" where it holds 0 or the metric has no direction.
    """

    first: float
    second: float
    difference: float
    ci95: tuple[float, float] | None
    n: int
    better: Literal["first", "second", "neither"]


@dataclass(frozen=True)
class EmbeddingAnalysis:
    """Metrics, what pictures need of the same pass, and the resamples that a paired comparison needs.

    `metrics` and `resamples` by the registry's names, in its order. `pairs`: neighbours, hardest negatives and cosine
    histograms. `singular_values` (min(n, d),) of the embeddings as they are, largest first. `clusters` (n,): k-means.
    `probe_correct` (n,): linear probe right, left-one-out.
    """

    metrics: dict[str, Estimate]
    pairs: PairPass
    singular_values: Floats
    clusters: Ints
    probe_correct: Floats
    labels: Ints
    seed: int
    resamples: dict[str, Floats]


def analyse_embeddings(
    embeddings: Any, labels: Any, *, seed: int, n_bootstrap: int = 1000, progress: Progress | None = None
) -> EmbeddingAnalysis:
    """All metrics of `embeddings` (n, d) with integer `labels` (n,).

    `seed` draws the resamples and starts k-means. `progress` is told (step, share done). Raises ValueError for lengths
    that differ, embeddings that are not finite or zero (which rows), one class, or no two images of a class.
    """
    vectors, classes = check_embeddings(embeddings, labels)
    tell = progress or (lambda step, share: None)
    bootstrap = Bootstrap(len(vectors), n_resamples=n_bootstrap, seed=seed)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    drafts: list[Draft] = []
    tell("spectrum", 0.0)
    as_they_are = principal_axes(vectors)
    drafts += _spectrum_metrics(vectors, unit, classes, as_they_are, bootstrap)
    pairs = pass_over_pairs(unit, classes, bootstrap, lambda share: tell("pairs", share))
    drafts += _cosine_metrics(unit, classes, pairs, bootstrap)
    drafts += _retrieval_metrics(pairs, bootstrap)
    tell("classes", 0.0)
    clusters = kmeans_clusters(unit, int(classes.max()) + 1, seed)
    probe_correct, _ = linear_probe_correct(vectors, classes)
    drafts += _class_metrics(vectors, unit, classes, clusters, probe_correct, bootstrap)
    tell("classes", 1.0)
    return EmbeddingAnalysis(
        metrics={name: _estimate(name, measured, n) for name, measured, n in drafts},
        pairs=pairs,
        singular_values=as_they_are.singular_values[: min(vectors.shape)],
        clusters=clusters,
        probe_correct=probe_correct,
        labels=as_array(labels),
        seed=seed,
        resamples={name: measured.resamples for name, measured, _ in drafts},
    )


def compare_embeddings(first: EmbeddingAnalysis, second: EmbeddingAnalysis) -> dict[str, PairedDifference]:
    """Each metric's difference, second minus first, between two checkpoints on the same images in the same order.

    The interval comes from the differences on the same resamples. Raises ValueError where images, labels, seed or the
    number of resamples differ.
    """
    same_images = np.array_equal(first.labels, second.labels)
    if not same_images or first.seed != second.seed:
        what = "images: their labels differ" if not same_images else f"resamples: seeds {first.seed} and {second.seed}"
        raise ValueError(f"a paired comparison needs both analyses on the same {what}")
    if {len(r) for r in first.resamples.values()} != {len(r) for r in second.resamples.values()}:
        raise ValueError("a paired comparison needs as many resamples in both analyses")
    return {
        name: _difference(name, one, second.metrics[name], second.resamples[name] - first.resamples[name])
        for name, one in first.metrics.items()
    }


def _difference(name: str, a: Estimate, b: Estimate, resamples: Floats) -> PairedDifference:
    change = b.value - a.value
    low, high = bootstrap_interval(change, resamples)
    better: Literal["first", "second", "neither"] = "neither"
    direction = metric(name).direction
    if direction != "none" and not low <= 0 <= high:
        better = "second" if (change > 0) == (direction == "higher") else "first"
    return PairedDifference(a.value, b.value, change, (low, high), a.n, better)


def check_embeddings(embeddings: Any, labels: Any) -> tuple[Floats, Ints]:
    """Float32 vectors (n, d) and classes (n,) renumbered 0..C-1, or ValueError in a sentence."""
    vectors, labels = as_array(embeddings), as_array(labels)
    if vectors.ndim != 2 or labels.ndim != 1 or len(vectors) != len(labels):
        raise ValueError(f"embeddings (n, d) and labels (n,) must go together; got {vectors.shape} and {labels.shape}")
    if vectors.shape[1] < 2:
        raise ValueError(f"embeddings need at least 2 dimensions; got {vectors.shape[1]}")
    vectors = vectors.astype(np.float32)
    require_finite(vectors, "the embedding")
    require_direction(vectors, "the embedding")
    known, classes = np.unique(labels, return_inverse=True)
    if len(known) < 2:
        raise ValueError(f"embedding quality compares classes and needs at least 2; got {len(known)}")
    if len(known) == len(labels):
        raise ValueError(f"no class has two images: {len(labels)} images are of {len(known)} classes")
    return vectors, classes.astype(np.int64)


def _spectrum_metrics(
    vectors: Floats, unit: Floats, classes: Ints, as_they_are: Axes, bootstrap: Bootstrap
) -> Iterator[Draft]:
    n, wide = len(vectors), vectors.astype(np.float64)
    yield "isotropy", isotropy(as_they_are, bootstrap), n
    yield "isotropy of unit vectors", isotropy(principal_axes(unit), bootstrap), n
    yield "effective rank", effective_rank(as_they_are, bootstrap), n
    yield "IsoScore", iso_score(principal_axes(wide - wide.mean(axis=0)), bootstrap), n
    sizes = np.bincount(classes)
    residuals = wide - (class_sums(vectors, classes, len(sizes)) / sizes[:, None])[classes]
    if (residuals**2).sum() <= 1e-12 * (wide**2).sum():
        raise ValueError("every image has its class's mean embedding, so metrics within class have nothing to measure")
    within = principal_axes(residuals)
    yield "isotropy, within class", isotropy(within, bootstrap), n
    yield "effective rank, within class", effective_rank(within, bootstrap), n
    yield "IsoScore, within class", iso_score(within, bootstrap), n


def _cosine_metrics(unit: Floats, classes: Ints, pairs: PairPass, bootstrap: Bootstrap) -> Iterator[Draft]:
    """Averages over pairs of images; cosines sum to products with the sum of all vectors, or of the class's."""
    n, sizes = len(unit), np.bincount(classes)
    sums = class_sums(unit, classes, len(sizes))
    own = (unit * unit).sum(axis=1)
    to_all, to_class = unit @ sums.sum(axis=0) - own, (unit * sums[classes]).sum(axis=1) - own
    n_positive = (sizes[classes] - 1).astype(np.float64)
    n_all = np.full(n, n - 1.0)
    n_paired = int((n_positive > 0).sum())
    yield "average cosine", bootstrap.measure(pair_terms(to_all, n_all)), n
    yield "average cosine, within class", bootstrap.measure(pair_terms(to_class, n_positive)), n_paired
    negative = bootstrap.measure(pair_terms(to_all - to_class, n_all - n_positive))
    yield "average cosine of negative pairs", negative, n
    yield "AUC of positive over negative cosines", pairs.auc, n
    alignment = bootstrap.measure(pair_terms(2 * (n_positive - to_class), n_positive))
    yield "alignment, within class", alignment, n_paired
    yield "uniformity", _log_mean(pairs.uniformity_all, n_all, bootstrap), n
    yield "uniformity, within class", _log_mean(pairs.uniformity_positive, n_positive, bootstrap), n_paired


def pair_terms(sums: Floats, counts: Floats) -> Floats:
    """Per-image terms (n,) whose mean is the average over pairs, and whose resampled mean is its Hajek projection.

    `sums` and `counts` (n,): each image's sum over its pairs, and how many they are. An image is in two ends of a pair,
    hence the 2 (Hoeffding 1948; the ratio linearised where counts differ).
    """
    sums, counts = sums.astype(np.float64), counts.astype(np.float64)
    average = sums.sum() / counts.sum()
    terms: Floats = average + 2 * (sums - average * counts) / counts.mean()
    return terms


def _log_mean(sums: Floats, counts: Floats, bootstrap: Bootstrap) -> Measured:
    terms = pair_terms(sums, counts)
    smallest = np.finfo(np.float64).tiny
    return bootstrap.measure(terms[:, None], lambda means: np.log(np.maximum(means[:, 0], smallest)))


def _retrieval_metrics(pairs: PairPass, bootstrap: Bootstrap) -> Iterator[Draft]:
    n = len(pairs.average_precision)
    for k, correct in pairs.knn_correct.items():
        yield f"kNN accuracy, k={k}", bootstrap.measure(correct), n
    counted = np.isfinite(pairs.average_precision)
    n_counted = int(counted.sum())
    for k, hit in pairs.recall_hit.items():
        yield f"recall@{k}", _mean_where(counted, hit, bootstrap), n_counted
    results = np.where(counted, pairs.average_precision, 0.0) + pairs.gallery_gain - pairs.gallery_gain.mean()
    yield "mAP@R", _mean_where(counted, results, bootstrap), n_counted


def _mean_where(counted: Any, results: Floats, bootstrap: Bootstrap) -> Measured:
    """Sum of `results` (n,) over the number of images that count, which varies with the resample."""
    samples = np.stack([results, counted.astype(np.float64)], axis=1)
    return bootstrap.measure(samples, lambda means: means[:, 0] / np.maximum(means[:, 1], 1 / len(results)))


def _class_metrics(
    vectors: Floats, unit: Floats, classes: Ints, clusters: Ints, probe_correct: Floats, bootstrap: Bootstrap
) -> Iterator[Draft]:
    n = len(vectors)
    yield "linear-probe accuracy", bootstrap.measure(probe_correct), n
    yield "silhouette", silhouette(unit, classes, bootstrap), n
    yield "NMI of k-means", normalised_mutual_information(classes, clusters, bootstrap), n
    yield "Fisher ratio", fisher_ratio(vectors, classes, bootstrap), n
    yield "NC1", neural_collapse_1(vectors, classes, bootstrap), n


def _estimate(name: str, measured: Measured, n: int) -> Estimate:
    interval = bootstrap_interval(measured.value, measured.resamples, metric(name).bounds)
    return Estimate(measured.value, interval, n)
