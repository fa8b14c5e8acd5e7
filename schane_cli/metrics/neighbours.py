"""One pass over the cosines of all pairs: nearest neighbours, retrieval, and the positive and negative distributions.

The n x n matrix is made in chunks of rows and never held whole; what each image needs of its row is read off while the
chunk is there.

An image counts twice in mAP@R: as a query, and in the gallery of all other queries. Its gallery gain is the sum over
queries of AP with it minus AP without it (the next image moving up), in closed form from the sorted neighbours; the
bootstrap resamples both. kNN accuracy and recall@k are resampled by query alone: one image's absence flips so few
votes that its gain is mostly noise, and intervals with it came out up to 1.8 times too wide.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from schane_cli.metrics.bootstrap import Bootstrap, Floats, Ints, Measured

CHUNK_CELLS = 4_000_000  # similarities held at a time: 16 MB in float32, about six times that with the temporaries
HISTOGRAM_BINS = 2000  # of width 0.001 on [-1, 1], narrow enough for the AUC of embeddings that all lie in one cone
KNN_KS = (1, 10, 20, 100, 200)
KNN_TEMPERATURE = 0.07
RECALL_KS = (1, 5, 10)
KEPT_NEIGHBOURS = 10


@dataclass(frozen=True)
class PairPass:
    """What the pass leaves, image by image; indices are rows of the embeddings.

    `neighbours`, `neighbour_cosines` (n, up to 10): nearest other images, nearest first. `hardest_negative`,
    `hardest_negative_cosine` (n,): the most similar image of another class. `knn_correct`, `recall_hit` {k: (n,)}: 1
    where right. `average_precision` (n,): AP@R, NaN where an image is alone in its class. `gallery_gain` (n,): what an
    image adds to the others' AP@R. `uniformity_all`, `uniformity_positive` (n,): sums over other images, and over
    those of the class, of exp(-2 |u_i - u_j|^2). `positive_histogram`, `negative_histogram` (2000,): ordered pairs by
    cosine on equal bins of [-1, 1]. `auc`: the chance that a positive pair is more similar than a negative one.
    """

    neighbours: Ints
    neighbour_cosines: Floats
    hardest_negative: Ints
    hardest_negative_cosine: Floats
    knn_correct: dict[int, Floats]
    recall_hit: dict[int, Floats]
    gallery_gain: Floats
    average_precision: Floats
    uniformity_all: Floats
    uniformity_positive: Floats
    positive_histogram: Ints
    negative_histogram: Ints
    auc: Measured


def pass_over_pairs(
    unit: Floats, labels: Ints, bootstrap: Bootstrap, progress: Callable[[float], None] | None = None
) -> PairPass:
    """Read everything in PairPass off the cosines of `unit` (n, d), rows of norm 1, with `labels` (n,) in 0..C-1.

    `progress` is told the share of rows done. Takes n^2 d multiplications and memory linear in n.
    """
    n = len(unit)
    rows, targets = torch.from_numpy(np.ascontiguousarray(unit, dtype=np.float32)), torch.from_numpy(labels).long()
    # One deeper than any k or R, so that the image that moves up is known.
    depth = min(n - 1, max(*KNN_KS, *RECALL_KS, int(np.bincount(labels).max()) - 1) + 1)
    gain = torch.zeros(n, dtype=torch.float64)
    per_image: list[dict[str, torch.Tensor]] = []
    histograms = np.zeros((2, HISTOGRAM_BINS), dtype=np.int64)
    weighted = np.zeros((2, len(bootstrap.counts), HISTOGRAM_BINS))
    chunk = max(1, CHUNK_CELLS // n)
    for start in range(0, n, chunk):
        images = slice(start, min(start + chunk, n))
        cosines = rows[images] @ rows.T  # (chunk, n)
        positive = targets[images, None] == targets  # (chunk, n), itself still in
        per_row = _row_histograms(cosines, positive, start)
        histograms += per_row.sum(axis=1, dtype=np.int64)
        for kind in range(2):
            weighted[kind] += bootstrap.weighted_sums(per_row[kind], images)
        per_image.append(
            _kernel_sums(cosines, positive, start) | _retrieval(cosines, positive, targets, start, depth, gain)
        )
        if progress is not None:
            progress(images.stop / n)
    columns = {key: torch.cat([part[key] for part in per_image]).numpy() for key in per_image[0]}
    return _assemble(columns, gain, histograms, _auc(histograms, weighted))


def _row_histograms(cosines: torch.Tensor, positive: torch.Tensor, start: int) -> Floats:
    """Counts (2, chunk, bins) of each row's positive and negative cosines, itself left out."""
    chunk, itself = len(cosines), torch.arange(len(cosines))
    where = ((cosines + 1) * (HISTOGRAM_BINS / 2)).long().clamp_(0, HISTOGRAM_BINS - 1)
    where += HISTOGRAM_BINS * itself[:, None]
    size = chunk * HISTOGRAM_BINS
    everyone = torch.bincount(where.view(-1), minlength=size)
    own_class = torch.bincount(where[positive], minlength=size)
    own_bin = where[itself, itself + start]
    everyone[own_bin] -= 1
    own_class[own_bin] -= 1
    counts: Floats = torch.stack([own_class, everyone - own_class]).view(2, chunk, HISTOGRAM_BINS).float().numpy()
    return counts


def _kernel_sums(cosines: torch.Tensor, positive: torch.Tensor, start: int) -> dict[str, torch.Tensor]:
    """Sums over other images of exp(-2 |u_i - u_j|^2) = exp(4 cosine - 4): all of them, and those of the class."""
    kernel = (4 * cosines).sub_(4).exp_()
    itself = torch.arange(len(cosines))
    kernel[itself, itself + start] = 0
    return {"uniformity_all": kernel.sum(dim=1), "uniformity_positive": (kernel * positive).sum(dim=1)}


def _retrieval(
    cosines: torch.Tensor,
    positive: torch.Tensor,
    targets: torch.Tensor,
    start: int,
    depth: int,
    gallery_gain: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """kNN votes, recall, AP@R and the nearest images of each row; adds to `gallery_gain`, overwrites `cosines`."""
    itself = torch.arange(len(cosines))
    cosines[itself, itself + start] = -torch.inf
    nearest = cosines.topk(depth, dim=1)
    hardest = cosines.masked_fill_(positive, -torch.inf).max(dim=1)
    own = targets[start : start + len(cosines)]
    found = targets[nearest.indices]  # (chunk, depth): classes of the nearest images, nearest first
    relevant = found == own[:, None]
    average_precision, gain = _average_precision(relevant, positive.sum(dim=1) - 1)
    gallery_gain += _gains(gain, relevant, nearest.indices, targets, start)
    result = {
        "neighbours": nearest.indices[:, :KEPT_NEIGHBOURS].clone(),
        "neighbour_cosines": nearest.values[:, :KEPT_NEIGHBOURS].clone(),
        "hardest_negative": hardest.indices,
        "hardest_negative_cosine": hardest.values,
        "average_precision": average_precision,
    }
    result |= {f"recall {k}": relevant[:, :k].any(dim=1).float() for k in RECALL_KS if k <= depth}
    return result | _knn(found, nearest.values, own, int(targets.max()) + 1)


def _average_precision(relevant: torch.Tensor, n_relevant: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """AP@R (chunk,), NaN where R is 0, and what each ranked image adds to it (chunk, 1 + depth).

    AP@R: precision at each relevant rank up to R, summed and divided by R. Column 0 of the gains is that of an image
    of the class ranked after R, whose absence only lowers R.
    """
    r = n_relevant[:, None]
    ranks = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float32)
    rank_without = (ranks - 1).clamp(min=1)
    found = relevant.cumsum(dim=1, dtype=torch.float32)
    before = (relevant * found / ranks).cumsum(dim=1)
    after_other = (relevant * found / rank_without).cumsum(dim=1)  # ranks move up when another class's image goes
    after_own = (relevant * (found - 1) / rank_without).cumsum(dim=1)  # and one fewer is found when a relevant one goes
    precision = before.gather(1, (r - 1).clamp(min=0)) / r
    strictly_before = before - relevant * found / ranks
    less = (r - 1).clamp(min=1)
    without_other = (strictly_before + after_other.gather(1, r) - after_other) / r
    without_own = (strictly_before + after_own.gather(1, (r - 1).clamp(min=0)) - after_own) / less
    without_far = before.gather(1, (r - 2).clamp(min=0)) / less
    without = torch.where(relevant, without_own, without_other)
    gain = torch.cat([precision - without_far, (precision - without) * (ranks <= r)], dim=1)
    return precision[:, 0], gain.masked_fill_(r < 2, 0)


def _gains(
    gain: torch.Tensor, relevant: torch.Tensor, gallery: torch.Tensor, targets: torch.Tensor, start: int
) -> torch.Tensor:
    """Gains of AP@R by gallery image (n,): those ranked within R have their own, the rest of the class shares one."""
    far, ranked = gain[:, :1].double(), gain[:, 1:].double()
    itself = torch.arange(start, start + len(gain))
    by_class = torch.zeros(int(targets.max()) + 1, dtype=torch.float64).index_add_(0, targets[itself], far[:, 0])
    total = by_class[targets]
    total[itself] -= far[:, 0]
    n_relevant = torch.bincount(targets)[targets[itself]][:, None] - 1
    within = relevant & (torch.arange(1, relevant.shape[1] + 1) <= n_relevant)
    return total.index_add_(0, gallery.reshape(-1), (ranked - within * far).reshape(-1))


def _knn(found: torch.Tensor, cosines: torch.Tensor, own: torch.Tensor, n_classes: int) -> dict[str, torch.Tensor]:
    votes = torch.zeros(len(own), n_classes)
    weights = (cosines / KNN_TEMPERATURE - 1 / KNN_TEMPERATURE).exp()  # at most 1: nothing overflows
    correct, counted = {}, 0
    for k in KNN_KS:
        if k <= found.shape[1]:
            votes.scatter_add_(1, found[:, counted:k], weights[:, counted:k])
            correct[f"knn {k}"] = (votes.argmax(dim=1) == own).float()
            counted = k
    return correct


def _auc(histograms: Ints, weighted: Floats) -> Measured:
    """AUC of the histograms (2, bins), and of each resample's (2, B, bins), ties within a bin counted one half.

    A pair is in a resample as often as its images' counts multiply to; w_i w_j is taken to first order,
    w_i + w_j - 1, so that one sum over rows gives every resample.
    """
    resampled = 2 * weighted - histograms[:, None]
    return Measured(float(_auc_of(histograms[:, None].astype(np.float64))[0]), _auc_of(resampled))


def _auc_of(histograms: Floats) -> Floats:
    positive, negative = histograms / histograms.sum(axis=2, keepdims=True)
    below = np.cumsum(negative, axis=1) - negative
    auc: Floats = (positive * (below + negative / 2)).sum(axis=1)
    return auc


def _assemble(columns: dict[str, Floats], gain: torch.Tensor, histograms: Ints, auc: Measured) -> PairPass:
    """The pass's columns under their names, those with a k gathered by k."""
    by_k: dict[str, dict[int, Floats]] = {"knn": {}, "recall": {}}
    for key in [key for key in columns if " " in key]:
        kind, k = key.split()
        by_k[kind][int(k)] = columns.pop(key)
    return PairPass(
        **columns,  # type: ignore[arg-type]
        knn_correct=by_k["knn"],
        recall_hit=by_k["recall"],
        gallery_gain=gain.numpy(),
        positive_histogram=histograms[0],
        negative_histogram=histograms[1],
        auc=auc,
    )
