"""Few-shot episodes, each drawn from a seed and the episode's number.

An episode is `n_way` classes, `n_shot` support and `n_query` query images of each. Episode `i` is a function of the
seed, `i` and the protocol alone: every random number is one word of a counter-based generator (Philox; Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011) at position `i` of a stream of its own. So episode 7 is the same
whether ten episodes are drawn or a million, here or on another machine. numpy fixes the words
of its bit generators for good (NEP 19) but not the methods of `Generator`: only the words are used.

The streams are numbered by role (class, query, support) and place, so that protocols nest: the 1-shot support is the
first shot of the 5-shot support, with the same classes and queries, and accuracy against shots is a paired curve.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Stream numbers: role * 2**32 + way * 2**16 + place within the way.
CLASS, QUERY, SUPPORT, IMBALANCE = range(4)
_WORDS_PER_COUNT = 4  # of Philox: its counter stands for as many words


@dataclass(frozen=True, eq=False)
class Episodes:
    """E episodes as indices into the data set they were drawn from; all arrays int64.

    `support` (E, n_way, n_shot) and `query` (E, n_way * n_query) hold image indices, `query_labels` (as `query`)
    the way of each query, 0 to n_way - 1, in increasing order, and `classes` (E, n_way) the label behind each way.
    """

    support: Ints
    query: Ints
    query_labels: Ints
    classes: Ints

    def __len__(self) -> int:
        return len(self.support)

    def hash(self) -> str:
        """sha256 (hex) of all four arrays, shapes included: equal hashes mean the same episodes in the same order."""
        digest = hashlib.sha256()
        for field in fields(self):
            array = getattr(self, field.name)
            digest.update(f"{field.name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()


class EpisodeBlocks:
    """The first `n_episodes` episodes of `draw_episodes`, drawn anew, BLOCK at a time, whenever they are gone through.

    So any number of them takes the memory of one block. `protocol` are the other arguments of `draw_episodes`, whose
    ValueError comes at once.
    """

    BLOCK = 10_000

    def __init__(self, labels: ArrayLike, *, n_episodes: int, **protocol: Any) -> None:
        self._labels, self._n_episodes, self._protocol = labels, n_episodes, protocol
        draw_episodes(labels, n_episodes=min(n_episodes, 1), **protocol)

    def __len__(self) -> int:
        return self._n_episodes

    def __iter__(self) -> Iterator[Episodes]:
        for start in range(0, self._n_episodes, self.BLOCK):
            count = min(self.BLOCK, self._n_episodes - start)
            yield draw_episodes(self._labels, n_episodes=count, start=start, **self._protocol)

    def hash(self) -> str:
        """`Episodes.hash` of the only block, or where there are more the sha256 (hex) over their hashes."""
        hashes = [block.hash() for block in self]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def draw_episodes(
    labels: ArrayLike,
    *,
    n_way: int,
    n_shot: int,
    n_query: int,
    n_episodes: int,
    seed: int,
    start: int = 0,
    dirichlet: float | None = None,
    class_names: Sequence[str] | None = None,
) -> Episodes:
    """`n_episodes` episodes, from number `start` on, of the endless sequence that `seed` stands for.

    Classes and images are uniform without replacement within an episode; different episodes may share images.

    Args:
        labels: (n,) integer class label of every image.
        n_query: queries per class; with `dirichlet`, their mean per class.
        dirichlet: None for balanced queries; else the concentration `a` of a symmetric Dirichlet from which each
            episode draws its class proportions (2 in Veilleux et al., "Realistic evaluation of transductive few-shot
            learning", arXiv 2204.11181, section 3). The episode still has n_way * n_query queries, rounded by largest
            remainder; unlike in the authors' sampler, no query is a support image.
        class_names: names by label, for messages.

    Raises:
        ValueError: a number that is not positive, more ways than classes, or too few images in a class.
    """
    images, classes = _images_by_class(labels)
    _check_positive(n_way=n_way, n_shot=n_shot, n_query=n_query, episodes=n_episodes)
    if seed < 0:
        raise ValueError(f"the seed must not be negative, and it is {seed}")
    if dirichlet is not None and not dirichlet > 0:
        raise ValueError(f"the Dirichlet concentration must be above 0, not {dirichlet}")
    # Under Dirichlet proportions one class may hold all the queries.
    share = 1 if dirichlet is None else n_way
    most_queries = share * n_query
    _check_sizes(images, classes, n_way, n_shot, most_queries, class_names, share)

    words = _Words(seed, start, n_episodes)
    ways = np.argsort(words.uniform(CLASS, range(len(classes))), axis=1, kind="stable")[:, :n_way]  # (E, n_way)
    sizes = np.array([len(one) for one in images])
    query_picks, support_picks = _pick_images(words, sizes[ways], n_shot, most_queries)
    counts = _query_counts(words, n_way, n_query, dirichlet)  # (E, n_way)
    query_labels, place = _unroll(counts)
    # All images of class c lie at first[c] and after in one flat array.
    flat, first = np.concatenate(images), np.cumsum(sizes) - sizes
    rows = np.arange(n_episodes)[:, None]
    query = flat[first[ways[rows, query_labels]] + query_picks[rows, query_labels, place]]
    return Episodes(flat[first[ways][:, :, None] + support_picks], query, query_labels, classes[ways])


def disjoint_episodes(
    labels: ArrayLike,
    *,
    n_way: int,
    n_shot: int,
    n_query: int,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> Episodes:
    """As many balanced episodes as the data set yields when no image is used twice.

    The sampling behind the "open" interval of Lafargue et al., "Oops, I sampled it again: reinterpreting confidence
    intervals in few-shot learning", TMLR 2024, arXiv 2409.02850: classes are drawn uniformly among those with enough
    unused images, until fewer than `n_way` of them are left. Pass the accuracies on these episodes to `t_interval` (or
    to `paired_comparison`): as no image is shared, the spread between episodes holds the spread between images, and
    the interval applies to new images. Episodes that may share images give a "closed" interval, which applies only
    to this set of images and shrinks to nothing with their number. Both take the classes as given.

    A data set of n images gives at most n / (n_way * (n_shot + n_query)) episodes: 150 for CIFAR-FS's test classes at
    5-way 1-shot with 15 queries. Fewer queries give more episodes, each noisier; the paper tunes that number.

    Raises:
        ValueError: as `draw_episodes`.
    """
    images, classes = _images_by_class(labels)
    _check_positive(n_way=n_way, n_shot=n_shot, n_query=n_query)
    _check_sizes(images, classes, n_way, n_shot, n_query, class_names)
    source = np.random.Philox(np.random.SeedSequence(seed))
    unused = [one[np.argsort(source.random_raw(len(one)), kind="stable")] for one in images]
    size = n_shot + n_query
    picked, ways = [], []
    while len(open_classes := [c for c, left in enumerate(unused) if len(left) >= size]) >= n_way:
        chosen = np.argsort(source.random_raw(len(open_classes)), kind="stable")[:n_way]
        ways.append([open_classes[c] for c in chosen])
        picked.append([unused[c][:size] for c in ways[-1]])
        for c in ways[-1]:
            unused[c] = unused[c][size:]
    taken = np.array(picked, dtype=np.int64)  # (E, n_way, n_shot + n_query)
    query_labels = np.broadcast_to(np.repeat(np.arange(n_way), n_query), (len(taken), n_way * n_query)).copy()
    return Episodes(taken[:, :, :n_shot], taken[:, :, n_shot:].reshape(len(taken), -1), query_labels, classes[ways])


class _Words:
    """Uniform numbers by (stream, episode), from episode `start` on: word `i` of a stream belongs to episode `i`."""

    def __init__(self, seed: int, start: int, n_episodes: int) -> None:
        self.key = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        self.start, self.n_episodes = start, n_episodes

    def uniform(self, role: int, places: Sequence[int]) -> Floats:
        """(E, places) floats in [0, 1), each stream a Philox key of its own."""
        columns = np.empty((len(places), self.n_episodes))
        count, over = divmod(self.start, _WORDS_PER_COUNT)
        for row, place in enumerate(places):
            source = np.random.Philox(key=np.array([self.key, (role << 32) + place], dtype=np.uint64), counter=count)
            words = source.random_raw(over + self.n_episodes)[over:]
            columns[row] = (words >> np.uint64(11)) * 2.0**-53
        return columns.T


def _pick_images(words: _Words, sizes: Ints, n_shot: int, n_query: int) -> tuple[Ints, Ints]:
    """Distinct image numbers below sizes (E, n_way): queries (E, n_way, n_query), support (E, n_way, n_shot).

    The first draws of a Fisher-Yates shuffle, queries before support so that the queries do not depend on `n_shot`.
    The shuffled array is never built: what lies at position r is found by undoing the swaps, last one first.
    """
    n_way, total = sizes.shape[1], n_query + n_shot
    swaps = np.empty((total, *sizes.shape), dtype=np.int64)
    for way in range(n_way):
        query = words.uniform(QUERY, [(way << 16) + place for place in range(n_query)])
        support = words.uniform(SUPPORT, [(way << 16) + place for place in range(n_shot)])
        left = sizes[:, way, None] - np.arange(total)
        swaps[:, :, way] = (np.arange(total) + np.floor(np.hstack([query, support]) * left).astype(np.int64)).T
    picks = swaps.copy()
    for place in range(total):
        for earlier in range(place - 1, -1, -1):
            picks[place][picks[place] == swaps[earlier]] = earlier
    picks = np.moveaxis(picks, 0, 2)
    return picks[:, :, :n_query], picks[:, :, n_query:]


def _query_counts(words: _Words, n_way: int, n_query: int, dirichlet: float | None) -> Ints:
    """Queries per way (E, n_way), summing to n_way * n_query in every episode."""
    if dirichlet is None:
        return np.full((words.n_episodes, n_way), n_query)
    # A Dirichlet sample is a row of gamma samples over their sum; the inverse CDF needs one word each.
    gamma = special.gammaincinv(dirichlet, words.uniform(IMBALANCE, range(n_way)))
    exact = gamma / gamma.sum(axis=1, keepdims=True) * (n_way * n_query)
    counts = np.floor(exact).astype(np.int64)
    missing = n_way * n_query - counts.sum(axis=1, keepdims=True)
    rank = np.argsort(np.argsort(counts - exact, axis=1, kind="stable"), axis=1)  # 0 = largest remainder
    return counts + (rank < missing)


def _unroll(counts: Ints) -> tuple[Ints, Ints]:
    """Counts (E, n_way) as one entry per query: its way (E, total), in order, and its place within the way."""
    end = np.cumsum(counts, axis=1)
    number = np.arange(int(end[0, -1]))
    way = (number[None, :, None] >= end[:, None, :]).sum(axis=2)
    start = np.take_along_axis(end - counts, way, axis=1)
    return way, number - start


def _images_by_class(labels: ArrayLike) -> tuple[list[Ints], Ints]:
    """Image indices of every class that occurs, in data order, and the sorted labels of those classes."""
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or len(array) == 0:
        raise ValueError("labels must hold one integer per image, and at least one")
    classes, inverse = np.unique(array, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.cumsum(np.bincount(inverse))[:-1]), classes.astype(np.int64)


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def _check_sizes(
    images: list[Ints],
    classes: Ints,
    n_way: int,
    n_shot: int,
    n_query: int,
    class_names: Sequence[str] | None,
    share: int = 1,
) -> None:
    """More ways than classes, or a class with fewer images than an episode may ask of it: `share` times its queries."""
    if n_way > len(classes):
        raise ValueError(f"{n_way} ways asked for, but there are only {len(classes)} classes")
    smallest = min(range(len(images)), key=lambda c: len(images[c]))
    if n_shot + n_query > (size := len(images[smallest])):
        label = int(classes[smallest])
        name = repr(class_names[label]) if class_names is not None else f"label {label}"
        raise ValueError(
            f"an episode may need {n_shot} support + {n_query} query images of one class, but class {name} has only "
            f"{size}: ask for at most {(size - n_shot) // share} queries or fewer shots"
            if size - n_shot >= share
            else f"{n_shot} shots + {n_query} queries asked for, but class {name} has only {size} images"
        )
