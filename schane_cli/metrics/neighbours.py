"""One pass over the cosines of all pairs: nearest neighbours, retrieval, and the positive and negative distributions.

The n x n matrix is made in chunks of rows and never held whole; what each image needs of its row is read off while the
chunk is there.

An image counts twice in mAP@R: as a query, and in the gallery of all other queries. Its gallery gain is the sum over
queries of AP with it minus AP without it (the next image moving up), in closed form from the sorted neighbours; its
term in the interval is both. kNN accuracy and recall@k have their intervals from halves of the images: by query
alone, the gallery kept, they came out too narrow, and one image's absence flips so few votes that its gain is noise.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from schane_cli.metrics.resampling import Floats, Ints, Measured, jackknife

CHUNK_CELLS = 4_000_000  # similarities held at a time: 16 MB in float32, about six times that with the temporaries
CHUNK_ROWS = 256  # or this many rows, where they hold more: with fewer a matrix product takes a third longer
HISTOGRAM_BINS = 2000  # of width 0.001 on [-1, 1], for the picture
SAMPLE_CELLS = 4_000_000  # pairs whose quantiles bound the bins of AUC
COSINE_STEP = 1e-6  # to which the cosines of AUC are rounded, where they are not narrower than that
LOOKED_UP = 1_000_100  # steps from 0 whose bin is looked up: cosines, and what rounding adds to 1
QUANTILES = 8192  # of the bins between which AUC counts ties: at most one part in so many of the pairs is in a bin
KNN_KS = (1, 10, 20, 100, 200)
KNN_TEMPERATURE = 0.07
RECALL_KS = (1, 5, 10)
KEPT_NEIGHBOURS = 10


@dataclass(frozen=True)
class PairPass:
    """What the pass leaves, image by image; indices are rows of the embeddings.

    `neighbours`, `neighbour_cosines` (n, up to 10): nearest other images, nearest first; `deep_neighbours`,
    `deep_cosines` (n, depth): the same as far as halves need them. `hardest_negative`,
    `hardest_negative_cosine` (n,): the most similar image of another class. `knn_correct`, `recall_hit` {k: (n,)}: 1
    where right. `average_precision` (n,): AP@R, NaN where an image is alone in its class. `gallery_gain` (n,): what an
    image adds to the others' AP@R. `uniformity_all`, `uniformity_positive` (n,): sums over other images, and over
    those of the class, of exp(-2 |u_i - u_j|^2). `positive_histogram`, `negative_histogram` (2000,): ordered pairs by
    cosine on equal bins of [-1, 1]. `auc`: the chance that a positive pair is more similar than a negative one.
    """

    neighbours: Ints
    neighbour_cosines: Floats
    deep_neighbours: Ints
    deep_cosines: Floats
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


def pass_over_pairs(unit: Floats, labels: Ints, progress: Callable[[float], None] | None = None) -> PairPass:
    """Read everything in PairPass off the cosines of `unit` (n, d), rows of norm 1, with `labels` (n,) in 0..C-1.

    `progress` is told the share of rows done. Takes n^2 d multiplications and memory linear in n.
    """
    n = len(unit)
    rows, targets = torch.from_numpy(np.ascontiguousarray(unit, dtype=np.float32)), torch.from_numpy(labels).long()
    # One deeper than any k or R, so that the image that moves up is known; half of these may be in the other half.
    depth = min(n - 1, max(*(2 * k + int(6 * k**0.5) for k in KNN_KS), int(np.bincount(labels).max()) - 1) + 1)
    bins = _cosine_bins(torch.from_numpy(unit).double(), targets)
    gain = torch.zeros(n, dtype=torch.float64)
    columns: dict[str, torch.Tensor] = {}
    ranked = np.zeros((2, len(bins.edges) + 1), dtype=np.int64)
    for images in row_chunks(n):
        start = images.start
        cosines = rows[images] @ rows.T  # (chunk, n)
        own_class = _cells_of_own_class(targets, images)
        counts, placements = bins.read(cosines, own_class, images)
        ranked += counts
        per_image = placements | _kernel_sums(cosines, own_class, start)
        per_image |= _retrieval(cosines, targets, start, depth, gain)
        columns = columns or {key: part.new_empty((n, *part.shape[1:])) for key, part in per_image.items()}
        for key, part in per_image.items():
            columns[key][images] = part
        if progress is not None:
            progress(images.stop / n)
    arrays = {key: column.numpy() for key, column in columns.items()}
    sizes = np.bincount(labels)[labels].astype(np.float64)
    auc = _auc(ranked, arrays.pop("positive_placements"), arrays.pop("negative_placements"), sizes - 1)
    return _assemble(arrays, gain, bins.histograms(ranked), auc)


def row_chunks(n: int) -> Iterator[slice]:
    """The rows of an n x n matrix, so many at a time as are held at once."""
    rows = max(CHUNK_ROWS, CHUNK_CELLS // n)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def _cells_of_own_class(targets: torch.Tensor, images: slice) -> torch.Tensor:
    """Flat indices of the pairs within a class, each image with itself among them, in the rows `images` (chunk, n)."""
    return torch.from_numpy(np.flatnonzero((targets[images, None] == targets).numpy()))


def _counts(where: torch.Tensor, own_class: torch.Tensor, start: int, size: int) -> Ints:
    """How many positive and negative pairs (2, size) are in each bin; `where` (chunk, n): each pair's bin."""
    itself = torch.arange(len(where))
    everyone = torch.bincount(where.view(-1), minlength=size)
    of_class = torch.bincount(where.view(-1)[own_class], minlength=size)
    own = torch.bincount(where[itself, itself + start], minlength=size)
    counts: Ints = torch.stack([of_class - own, everyone - of_class]).numpy()
    return counts


def _sums_within(cells: torch.Tensor, own_class: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Sums (chunk,) by row of the values `cells` at the flat indices `own_class` of a matrix of `shape` (chunk, n)."""
    sums = torch.zeros(shape[0], dtype=torch.float64)
    return sums.index_add_(0, own_class // shape[1], cells.double())


@dataclass(frozen=True)
class CosineBins:
    """Bins of cosines, each with at most 1 in QUANTILES of a sample of the positive and of the negative pairs.

    Bins of one width fail where all embeddings lie in a narrow cone; those of the histogram are cut finer here.
    `edges` (m,) ascending, in steps; `below` (2, m + 1): the share of the sample's positive and negative pairs below
    each bin, its own counted half. Cosines are rounded to `step`, so that rounding errors break no ties; `unit` (n, d),
    in float64, gives them where they lie closer than float32 can tell, else None.
    """

    edges: torch.Tensor
    below: torch.Tensor
    step: float
    unit: torch.Tensor | None

    @cached_property
    def bin_of_step(self) -> torch.Tensor:
        """The bin of each cosine that is a whole number of steps, from -LOOKED_UP to LOOKED_UP of them."""
        return torch.bucketize(torch.arange(-LOOKED_UP, LOOKED_UP + 1, dtype=torch.float64), self.edges, out_int32=True)

    def read(
        self, cosines: torch.Tensor, own_class: torch.Tensor, images: slice
    ) -> tuple[Ints, dict[str, torch.Tensor]]:
        """Counts (2, m + 1) of the positive and negative pairs of some rows, and each row's sum of placements.

        A placement: the share of negative pairs below a positive one, and of positive pairs above a negative one.
        `own_class`: the flat indices of the pairs within a class, each image with itself among them.
        """
        itself, start = torch.arange(len(cosines)), images.start
        where = self._bins_of(cosines, images)
        counts = _counts(where, own_class, start, len(self.edges) + 1)
        above = (1 - self.below[0]).float().index_select(0, where.view(-1)).view(where.shape)
        above.view(-1)[own_class] = 0
        below = _sums_within(self.below[1][where.view(-1)[own_class]], own_class, where.shape)
        below -= self.below[1][where[itself, itself + start]]
        return counts, {"positive_placements": below, "negative_placements": above.sum(dim=1, dtype=torch.float64)}

    def _bins_of(self, cosines: torch.Tensor, images: slice) -> torch.Tensor:
        """The bin of each pair: looked up by its rounded cosine, or searched for where there are too many of those."""
        if self.unit is not None:
            return torch.bucketize((self.unit[images] @ self.unit.T / self.step).round(), self.edges)
        steps = torch.add(cosines.new_tensor(LOOKED_UP + 0.5), cosines, alpha=1 / self.step).int()  # cut off: rounded
        return self.bin_of_step.index_select(0, steps.view(-1)).view(steps.shape)

    def histograms(self, counts: Ints) -> Ints:
        """Positive and negative pairs (2, HISTOGRAM_BINS) on equal bins of [-1, 1], of `counts` (2, m + 1) by bin."""
        upper = torch.bucketize(self.edges, _histogram_edges(self.step)).numpy()
        place = np.append(upper, HISTOGRAM_BINS - 1)
        return np.stack([np.bincount(place, row, HISTOGRAM_BINS) for row in counts]).astype(np.int64)


def _histogram_edges(step: float) -> torch.Tensor:
    """Edges between the bins of the histogram, in steps; half a step lower, so that a cosine on one is above it."""
    within = torch.arange(1, HISTOGRAM_BINS, dtype=torch.float64) * (2 / HISTOGRAM_BINS) - 1
    return (within / step).round() - 0.5


def _cosine_bins(unit: torch.Tensor, targets: torch.Tensor) -> CosineBins:
    """Bins by quantiles of the pairs of some images, spread over the set, with all others; `unit` (n, d) in float64."""
    n = len(unit)
    some = torch.linspace(0, n - 1, min(n, max(1, SAMPLE_CELLS // n))).long()
    cosines, same = unit[some] @ unit.T, targets[some, None] == targets
    apart = some[:, None] != torch.arange(n)
    kinds = [cosines[same & apart].sort().values, cosines[~same].sort().values]
    narrow = max(float(kind[len(kind) * 9 // 10] - kind[len(kind) // 10]) for kind in kinds if len(kind)) < 0.01
    step = 1e-12 if narrow else COSINE_STEP
    kinds = [(kind / step).round() for kind in kinds]
    quantiles = torch.linspace(0, 1, QUANTILES + 1, dtype=torch.float64)
    by_quantile = [kind[(quantiles * (len(kind) - 1)).long()] for kind in kinds if len(kind)]
    edges = torch.cat([*by_quantile, _histogram_edges(step)]).unique()
    below = []
    for kind in kinds:
        counts = torch.bincount(torch.bucketize(kind, edges), minlength=len(edges) + 1).double()
        below.append((counts.cumsum(0) - counts / 2) / max(len(kind), 1))
    return CosineBins(edges, torch.stack(below), step, unit if narrow else None)


def _kernel_sums(cosines: torch.Tensor, own_class: torch.Tensor, start: int) -> dict[str, torch.Tensor]:
    """Sums over other images of exp(-2 |u_i - u_j|^2) = exp(4 cosine - 4): all of them, and those of the class."""
    kernel = (4 * cosines).sub_(4).exp_()
    itself = torch.arange(len(cosines))
    kernel[itself, itself + start] = 0
    within = _sums_within(kernel.view(-1)[own_class], own_class, kernel.shape)
    return {"uniformity_all": kernel.sum(dim=1), "uniformity_positive": within}


def _retrieval(
    cosines: torch.Tensor, targets: torch.Tensor, start: int, depth: int, gallery_gain: torch.Tensor
) -> dict[str, torch.Tensor]:
    """kNN votes, recall, AP@R and the nearest images of each row; adds to `gallery_gain`, overwrites `cosines`.

    The hardest negative is among the nearest, of which there are more than images of any class.
    """
    itself = torch.arange(len(cosines))
    cosines[itself, itself + start] = -torch.inf
    nearest, nearest_cosines = largest(cosines, depth)
    own = targets[start : start + len(cosines)]
    neighbour_classes = targets[nearest]  # (chunk, depth): classes of the nearest images, nearest first
    relevant = neighbour_classes == own[:, None]
    hardest = relevant.int().argmin(dim=1, keepdim=True)  # the first of another class
    average_precision, gain = _average_precision(relevant, torch.bincount(targets)[own] - 1)
    gallery_gain += _gains(gain, relevant, nearest, targets, start)
    result = {
        "neighbours": nearest[:, :KEPT_NEIGHBOURS].clone(),
        "neighbour_cosines": nearest_cosines[:, :KEPT_NEIGHBOURS].clone(),
        "deep_neighbours": nearest.int(),
        "deep_cosines": nearest_cosines,
        "hardest_negative": nearest.gather(1, hardest)[:, 0],
        "hardest_negative_cosine": nearest_cosines.gather(1, hardest)[:, 0],
        "average_precision": average_precision,
    }
    result |= {f"recall {k}": relevant[:, :k].any(dim=1).float() for k in RECALL_KS if k <= depth}
    return result | _knn(neighbour_classes, nearest_cosines, own, int(targets.max()) + 1)


def largest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns (rows, k) of the k largest of each row, largest first and equals from left to right, and their values.

    By NumPy's partition, which takes less than half of the time of `torch.topk`.
    """
    columns = np.argpartition(values.numpy(), -k, axis=1)[:, -k:]
    columns.sort(axis=1)
    found = torch.from_numpy(columns)
    highest, order = values.gather(1, found).sort(dim=1, descending=True, stable=True)
    return found.gather(1, order), highest


def _average_precision(relevant: torch.Tensor, n_relevant: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """AP@R (chunk,), NaN where R is 0, and what each ranked image adds to it (chunk, 1 + depth).

    AP@R: precision at each relevant rank up to R, summed and divided by R. Column 0 of the gains is that of an image
    of the class ranked after R, whose absence only lowers R.
    """
    r = n_relevant[:, None]
    ranks = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float32)
    rank_without = (ranks - 1).clamp(min=1)
    hits = relevant.cumsum(dim=1, dtype=torch.float32)
    before = (relevant * hits / ranks).cumsum(dim=1)
    after_other = (relevant * hits / rank_without).cumsum(dim=1)  # ranks move up when another class's image goes
    after_own = (relevant * (hits - 1) / rank_without).cumsum(dim=1)  # and one fewer is found when a relevant one goes
    precision = before.gather(1, (r - 1).clamp(min=0)) / r
    strictly_before = before - relevant * hits / ranks
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


def _knn(
    neighbour_classes: torch.Tensor, cosines: torch.Tensor, own: torch.Tensor, n_classes: int
) -> dict[str, torch.Tensor]:
    votes = torch.zeros(len(own), n_classes)
    weights = (cosines / KNN_TEMPERATURE - 1 / KNN_TEMPERATURE).exp()  # at most 1: nothing overflows
    correct, counted = {}, 0
    for k in KNN_KS:
        if k <= neighbour_classes.shape[1]:
            votes.scatter_add_(1, neighbour_classes[:, counted:k], weights[:, counted:k])
            correct[f"knn {k}"] = (votes.argmax(dim=1) == own).float()
            counted = k
    return correct


def _auc(ranked: Ints, positive: Floats, negative: Floats, n_positive: Floats) -> Measured:
    """AUC of the counts (2, bins) of all pairs, ties within a bin counted one half; its terms to first order.

    `positive`, `negative` (n,): each image's sums of placements; `n_positive` (n,): its pairs within the class.
    """
    shares = ranked / ranked.sum(axis=1, keepdims=True)
    value = float((shares[0] * (np.cumsum(shares[1]) - shares[1] / 2)).sum())
    terms = pair_terms(positive, n_positive) + pair_terms(negative, len(positive) - 1 - n_positive)
    return jackknife(terms - terms.mean() + value)


def pair_terms(sums: Floats, counts: Floats) -> Floats:
    """Per-image terms (n,) whose mean is the average over pairs, and whose spread is that of its Hajek projection.

    `sums` and `counts` (n,): each image's sum over its pairs, and how many they are. An image is in two ends of a pair,
    hence the 2 (Hoeffding 1948; the ratio linearised where counts differ).
    """
    sums, counts = sums.astype(np.float64), counts.astype(np.float64)
    average = sums.sum() / counts.sum()
    terms: Floats = average + 2 * (sums - average * counts) / counts.mean()
    return terms


def retrieval_halves(pairs: PairPass, labels: Ints, halves: NDArray[np.bool_]) -> dict[str, Floats]:
    """kNN accuracy and recall (2, K) on both halves of each split, by the registry's names.

    `halves` (K, n): True in the first half. Each half is its own gallery.
    """
    names = [*(f"kNN accuracy, k={k}" for k in pairs.knn_correct), *(f"recall@{k}" for k in pairs.recall_hit)]
    neighbours, targets = torch.from_numpy(pairs.deep_neighbours).long(), torch.from_numpy(labels).long()
    votes = (torch.from_numpy(pairs.deep_cosines) / KNN_TEMPERATURE - 1 / KNN_TEMPERATURE).exp()
    classes = targets[neighbours]
    relevant, values = classes == targets[:, None], []
    for first in torch.from_numpy(halves):
        there = first[neighbours] == first[:, None]  # neighbours that are in the image's own half
        rank = there.cumsum(dim=1, dtype=torch.int16 if there.shape[1] < 2**15 else torch.int64)
        correct = _knn_within(there, rank, votes, classes, targets, list(pairs.knn_correct))
        part = 2 * targets + first
        paired = torch.bincount(part)[part] > 1
        found = _found_within(there & relevant, rank, list(pairs.recall_hit))
        hits = [torch.where(paired, hit, torch.nan) for hit in found]
        values.append([[float(one[half].nanmean()) for one in correct + hits] for half in (first, ~first)])
    by_metric = np.nan_to_num(np.array(values)).transpose(2, 1, 0)  # no image of a pair: 0
    return dict(zip(names, by_metric, strict=True))


def _knn_within(
    there: torch.Tensor,
    rank: torch.Tensor,
    votes: torch.Tensor,
    classes: torch.Tensor,
    targets: torch.Tensor,
    ks: list[int],
) -> list[torch.Tensor]:
    """For each k, which images (n,) the votes of their k nearest get right; `there` (n, depth): who is asked."""
    tally, counted, correct = torch.zeros(len(there), int(targets.max()) + 1), 0, []
    fewest, most, place = rank.amin(dim=0), rank.amax(dim=0), rank * there
    for k in ks:
        some = slice(int((most <= counted).sum()), int((fewest <= k).sum()))  # beyond them no row has a vote
        voting = (place[:, some] > counted) & (place[:, some] <= k)
        tally.scatter_add_(1, classes[:, some], votes[:, some] * voting)
        correct.append((tally.argmax(dim=1) == targets).float())
        counted = k
    return correct


def _found_within(relevant: torch.Tensor, rank: torch.Tensor, ks: list[int]) -> list[torch.Tensor]:
    """For each k, which images (n,) have one of their class among the k nearest; `relevant`, `rank` (n, depth)."""
    some = slice(int((rank.amin(dim=0) <= max(ks)).sum()))  # beyond them no row has one
    best = rank[:, some].masked_fill(~relevant[:, some], torch.iinfo(rank.dtype).max).amin(dim=1)
    return [(best <= k).float() for k in ks]


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
