"""Embedding quality: every metric with its 95 % interval, and the paired comparison of two checkpoints.

What varies is the images. The registry says which method a metric's interval is from, or why it has none;
results/benchmarks/coverage.md how often each covers the truth, and how wide it is. Most metrics are, to first order,
the mean of one term per image (`jackknife`), and their intervals are those of skewed means:

- metrics over pairs (cosines, alignment, uniformity, AUC) are U-statistics, whose terms are their Hajek projection;
- silhouette and mAP@R have each image's own result plus its effect on those of the others (through its class's mean,
  in their gallery);
- metrics of the spectrum and of the scatter leave images out along axes that stay as they are, which is exact to
  first order;
- kNN accuracy, recall@k and the linear probe are not smooth: they are measured again on halves of the images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from schane_cli.checks import as_array, require_direction, require_finite
from schane_cli.metrics.intervals import (
    Estimate,
    halves_interval,
    holm_where_tested,
    paired_change,
    skewed_mean_interval,
)
from schane_cli.metrics.neighbours import PairPass, pair_terms, pass_over_pairs, retrieval_halves
from schane_cli.metrics.registry import HALVES, metric
from schane_cli.metrics.resampling import Floats, Ints, Measured, draw_halves, jackknife
from schane_cli.metrics.separation import (
    class_sums,
    fisher_ratio,
    kmeans_clusters,
    linear_probe_correct,
    linear_probe_halves,
    neural_collapse_1,
    normalised_mutual_information,
    silhouette,
)
from schane_cli.metrics.spectrum import Axes, effective_rank, iso_score, isotropy, principal_axes

N_SPLITS = 25  # into halves: the standard error is then known to within 14 %, which Student's t allows for
PROBE_SPLITS = 10  # the linear probe takes a decomposition for each half
NO_TERMS = np.zeros(0)

Progress = Callable[[str, float], None]
Draft = tuple[str, Measured, int]  # name in the registry, value and terms, images that count


@dataclass(frozen=True)
class PairedDifference:
    """A metric under two checkpoints on the same images: second minus first, with its paired 95 % interval.

    `p_holm` is adjusted for all the metrics compared. `better`: the checkpoint that is significantly better at 5 %;
    "neither" where none is, or no direction of the metric is better.
    """

    first: float
    second: float
    difference: float
    ci95: tuple[float, float] | None
    n: int
    p_value: float | None
    p_holm: float | None
    better: Literal["first", "second", "neither"]


@dataclass(frozen=True)
class EmbeddingAnalysis:
    """Metrics, what pictures need of the same pass, and the terms that a paired comparison needs.

    `metrics` and `terms` (see `Measured`) by the registry's names, in its order. `pairs`: neighbours, hardest negatives
    and cosine histograms. `singular_values` (min(n, d),) of the embeddings as they are, largest first. `clusters` (n,):
    k-means. `probe_correct` (n,): whether the linear probe, leave-one-out, is right.
    """

    metrics: dict[str, Estimate]
    pairs: PairPass
    singular_values: Floats
    clusters: Ints
    probe_correct: Floats
    labels: Ints
    seed: int
    terms: dict[str, Floats]


def analyse_embeddings(
    embeddings: Any, labels: Any, *, seed: int, progress: Progress | None = None
) -> EmbeddingAnalysis:
    """All metrics of `embeddings` (n, d) with integer `labels` (n,).

    `seed` draws the halves and starts k-means. `progress` is called with (step, share done). Raises ValueError for
    lengths that differ, embeddings that are not finite or zero (which rows), one class, or no two images of a class.
    """
    vectors, classes = check_embeddings(embeddings, labels)
    tell = progress or (lambda step, share: None)
    wide = vectors.astype(np.float64)
    exact_unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    unit = exact_unit.astype(np.float32)
    drafts: list[Draft] = []
    tell("spectrum", 0.0)
    as_they_are, centred = principal_axes(vectors), principal_axes(wide - wide.mean(axis=0))
    drafts += _spectrum_metrics(vectors, unit, classes, as_they_are, centred)
    pairs = pass_over_pairs(exact_unit, classes, lambda share: tell("pairs", share))
    drafts += _cosine_metrics(unit, classes, pairs)
    halves = draw_halves(len(vectors), N_SPLITS, seed)
    drafts += _retrieval_metrics(pairs, retrieval_halves(pairs, classes, halves))
    tell("classes", 0.0)
    clusters = kmeans_clusters(unit, int(classes.max()) + 1, seed)
    probe_correct, penalty = linear_probe_correct(centred, classes)
    probe_halves = linear_probe_halves(vectors, classes, penalty, halves[:PROBE_SPLITS])
    probe = Measured(float(probe_correct.mean()), probe_halves)
    drafts.append(("linear-probe accuracy", probe, len(vectors)))
    drafts += _class_metrics(vectors, unit, classes, clusters)
    tell("classes", 1.0)
    return EmbeddingAnalysis(
        metrics={name: _estimate(name, measured, n) for name, measured, n in drafts},
        pairs=pairs,
        singular_values=as_they_are.singular_values[: min(vectors.shape)],
        clusters=clusters,
        probe_correct=probe_correct,
        labels=as_array(labels),
        seed=seed,
        terms={name: measured.terms for name, measured, _ in drafts},
    )


def compare_embeddings(first: EmbeddingAnalysis, second: EmbeddingAnalysis) -> dict[str, PairedDifference]:
    """Each metric's difference, second minus first, between two checkpoints on the same images in the same order.

    The interval comes from the differences of the terms, image by image, and the p-values are Holm's over all metrics
    that have one. Raises ValueError where images, labels or seed differ.
    """
    same_images = np.array_equal(first.labels, second.labels)
    if not same_images or first.seed != second.seed:
        what = "images: their labels differ" if not same_images else f"halves: seeds {first.seed} and {second.seed}"
        raise ValueError(f"a paired comparison needs both analyses on the same {what}")
    changes = {name: _change(name, first, second) for name in first.metrics}
    adjusted = holm_where_tested([change.p_value for change in changes.values()])
    return {
        name: PairedDifference(
            c.first.value, c.second.value, c.difference, c.ci95, c.first.n, c.p_value, p, _verdict(name, c, p)
        )
        for (name, c), p in zip(changes.items(), adjusted, strict=True)
    }


class _Change(NamedTuple):
    first: Estimate
    second: Estimate
    difference: float
    ci95: tuple[float, float] | None
    p_value: float | None


def _change(name: str, first: EmbeddingAnalysis, second: EmbeddingAnalysis) -> _Change:
    a, b = first.metrics[name], second.metrics[name]
    change = b.value - a.value
    if a.ci95 is None:
        return _Change(a, b, change, None, None)
    interval, p_value = paired_change(change, second.terms[name] - first.terms[name])
    return _Change(a, b, change, interval, p_value)


def _verdict(name: str, change: _Change, p: float | None) -> Literal["first", "second", "neither"]:
    direction = metric(name).direction
    if p is None or p >= 0.05 or direction == "none":
        return "neither"
    return "second" if (change.difference > 0) == (direction == "higher") else "first"


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
    vectors: Floats, unit: Floats, classes: Ints, as_they_are: Axes, centred: Axes
) -> Iterator[Draft]:
    n, wide = len(vectors), vectors.astype(np.float64)
    sizes = np.bincount(classes)
    residuals = wide - (class_sums(vectors, classes, len(sizes)) / sizes[:, None])[classes]
    if (residuals**2).sum() <= 1e-12 * (wide**2).sum():
        raise ValueError("every image has its class's mean embedding, so metrics within class have nothing to measure")
    yield "isotropy", Measured(isotropy(as_they_are), NO_TERMS), n
    yield "isotropy of unit vectors", Measured(isotropy(principal_axes(unit)), NO_TERMS), n
    yield "effective rank", effective_rank(as_they_are), n
    yield "IsoScore", iso_score(centred), n
    within = principal_axes(residuals)
    yield "isotropy, within class", Measured(isotropy(within), NO_TERMS), n
    yield "effective rank, within class", effective_rank(within), n
    yield "IsoScore, within class", iso_score(within), n


def _cosine_metrics(unit: Floats, classes: Ints, pairs: PairPass) -> Iterator[Draft]:
    """Averages over pairs of images; cosines sum to products with the sum of all vectors, or of the class's."""
    n, sizes = len(unit), np.bincount(classes)
    sums = class_sums(unit, classes, len(sizes))
    own = (unit * unit).sum(axis=1)
    to_all, to_class = unit @ sums.sum(axis=0) - own, (unit * sums[classes]).sum(axis=1) - own
    n_positive = (sizes[classes] - 1).astype(np.float64)
    n_all = np.full(n, n - 1.0)
    n_paired = int((n_positive > 0).sum())
    yield "average cosine", jackknife(pair_terms(to_all, n_all)), n
    yield "average cosine, within class", jackknife(pair_terms(to_class, n_positive)), n_paired
    negative = jackknife(pair_terms(to_all - to_class, n_all - n_positive))
    yield "average cosine of negative pairs", negative, n
    yield "AUC of positive over negative cosines", pairs.auc, n
    alignment = jackknife(pair_terms(2 * (n_positive - to_class), n_positive))
    yield "alignment, within class", alignment, n_paired
    yield "uniformity", _log_mean(pairs.uniformity_all, n_all), n
    yield "uniformity, within class", _log_mean(pairs.uniformity_positive, n_positive), n_paired


def _log_mean(sums: Floats, counts: Floats) -> Measured:
    terms = pair_terms(sums, counts)
    smallest = np.finfo(np.float64).tiny
    return jackknife(terms[:, None], lambda means: np.log(np.maximum(means[:, 0], smallest)))


def _retrieval_metrics(pairs: PairPass, halves: dict[str, Floats]) -> Iterator[Draft]:
    n = len(pairs.average_precision)
    for k, correct in pairs.knn_correct.items():
        name = f"kNN accuracy, k={k}"
        yield name, Measured(float(correct.mean(dtype=np.float64)), halves[name]), n
    counted = np.isfinite(pairs.average_precision)
    n_counted = int(counted.sum())
    for k, hit in pairs.recall_hit.items():
        name = f"recall@{k}"
        yield name, Measured(float(hit[counted].mean(dtype=np.float64)), halves[name]), n_counted
    results = np.where(counted, pairs.average_precision, 0.0) + pairs.gallery_gain - pairs.gallery_gain.mean()
    yield "mAP@R", _mean_where(counted, results), n_counted


def _mean_where(counted: Any, results: Floats) -> Measured:
    """Sum of `results` (n,) over the number of images that count, which leaving one out changes."""
    samples = np.stack([results, counted.astype(np.float64)], axis=1)
    return jackknife(samples, lambda means: means[:, 0] / np.maximum(means[:, 1], 1 / len(results)))


def _class_metrics(vectors: Floats, unit: Floats, classes: Ints, clusters: Ints) -> Iterator[Draft]:
    n = len(vectors)
    yield "silhouette", silhouette(unit, classes), n
    yield "NMI of k-means", Measured(normalised_mutual_information(classes, clusters), NO_TERMS), n
    yield "Fisher ratio", fisher_ratio(vectors, classes), n
    yield "NC1", neural_collapse_1(vectors, classes), n


def _estimate(name: str, measured: Measured, n: int) -> Estimate:
    known = metric(name)
    if not known.interval:
        return Estimate(measured.value, None, n)
    if known.interval == HALVES:
        return Estimate(measured.value, halves_interval(measured.value, measured.terms, n), n)
    return Estimate(measured.value, skewed_mean_interval(measured.terms, known.bounds), n)
