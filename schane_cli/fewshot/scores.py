"""Score a classifier on any number of episodes: chunk by chunk in bounded memory, on the device or on every core."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

from schane_cli.checks import require_finite
from schane_cli.fewshot.classifiers import best_way, centroid, classifier_named, minus_distances, normalize_features
from schane_cli.fewshot.episodes import Episodes, Ints

# Gathered features of one chunk of episodes: a few times the cache of a core on a CPU, ample on a GPU.
CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 1 << 30}
TILE_BYTES = 1 << 20  # the second-level cache of a core


@dataclass(frozen=True, eq=False)
class EpisodeScores:
    """Accuracy of each episode (E,), float64 from 0 to 1, and for each query (E, q) the predicted way and if right."""

    accuracies: NDArray[np.float64]
    predictions: NDArray[np.int16]
    correct: NDArray[np.bool_]


@dataclass(frozen=True)
class Images:
    """Normalised features of the images (n, d), and of the copies that stand for them in the support (copies, n, d)."""

    plain: Tensor
    copies: Tensor | None

    @property
    def sources(self) -> Tensor:
        """What the support is gathered from: (1 or copies, n, d)."""
        return self.plain.unsqueeze(0) if self.copies is None else self.copies


def evaluate_episodes(
    features: Tensor,
    episodes: Episodes,
    *,
    classifier: str,
    normalize: str = "none",
    base_mean: Tensor | None = None,
    augmented_support: Tensor | None = None,
    chunk: int | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> EpisodeScores:
    """Score one classifier on all episodes, a chunk at a time: extra memory is that of one chunk.

    Args:
        features: (n, d) one feature per image, in the order of the labels that the episodes were drawn from.
        normalize: see `normalize_features`; done once, before the first episode. Where a normalisation is part of the
            classifier (CL2N of SimpleShot), it is used, and no other is taken.
        base_mean: (d,) mean feature of the base classes, for "cl2n" and so for SimpleShot.
        augmented_support: (copies, n, d) features of randomly augmented copies; where given, all copies of a support
            image (RFS: 5) take its place, and its plain feature is not used.
        chunk: episodes at a time (on a CPU, in each thread); by default as many as suit the device. Results do not
            depend on it.
        device: where to compute; by default where the features are.
        progress: called as progress(episodes done, episodes in all) after each chunk.
        options: the classifier's own.

    Raises:
        ValueError: an unknown classifier or normalisation, features that are not finite, or of too few images.
    """
    _check_features(features, episodes, augmented_support)
    method = classifier_named(classifier)
    if method.normalize:
        if normalize not in ("none", method.normalize):
            raise ValueError(
                f"{classifier} is {method.normalize.upper()} on raw features: normalize must be none or "
                f"{method.normalize}, not {normalize}"
            )
        normalize = method.normalize
    device = torch.device(device) if device is not None else features.device
    prepare = partial(_prepared, device=device, normalize=normalize, base_mean=base_mean)
    images = Images(prepare(features), None if augmented_support is None else prepare(augmented_support))
    tiled = method.logits is centroid and device.type == "cpu" and not options and _for_numpy(images.plain)
    logits = partial(_tiled_centroid, images) if tiled else partial(_gathered_logits, images, method.logits, options)
    chunk = chunk or method.chunks * _default_chunk(images, episodes, tiled)
    predictions = np.empty(episodes.query.shape, dtype=np.int16)

    def score(start: int) -> int:
        part = slice(start, start + chunk)
        best = best_way(logits(episodes.support[part], episodes.query[part]))
        predictions[part] = best.to(torch.int16).cpu().numpy()
        return min(start + chunk, len(episodes))

    for done in _each(score, range(0, len(episodes), chunk), device):
        if progress is not None:
            progress(done, len(episodes))
    correct = predictions == episodes.query_labels
    return EpisodeScores(correct.mean(axis=1, dtype=np.float64), predictions, correct)


def _prepared(features: Tensor, *, device: torch.device, normalize: str, base_mean: Tensor | None) -> Tensor:
    return normalize_features(features.to(device), normalize, base_mean)


def _gathered_logits(
    images: Images, classifier: Callable[..., Tensor], options: dict[str, Any], support: Ints, query: Ints
) -> Tensor:
    """Logits (E, q, n_way) for support (E, n_way, n_shot) and queries (E, q) given as rows of the features."""
    device = images.plain.device
    rows = torch.from_numpy(support).to(device)
    shots = [_gather(one, rows) for one in images.sources]
    gathered = shots[0] if len(shots) == 1 else torch.cat(shots, dim=2)  # (E, n_way, n_shot * copies, d)
    return classifier(gathered, _gather(images.plain, torch.from_numpy(query).to(device)), **options)


def _tiled_centroid(images: Images, support: Ints, query: Ints) -> Tensor:
    """The same of the nearest centroid on a CPU, 1.5 times as fast.

    A few episodes at a time, so that their queries are multiplied while they are in the cache, and by NumPy, whose
    OpenBLAS multiplies a handful of rows without copying the others into blocks first.
    """
    shots = torch.from_numpy(support).flatten(0, 1)  # (E * n_way, n_shot)
    sums = torch.stack([F.embedding_bag(shots, one, mode="sum") for one in images.sources]).sum(dim=0)
    prototypes = sums.div_(len(images.sources) * support.shape[2]).view(*support.shape[:2], -1)
    rows, few = images.plain.detach().numpy(), prototypes.detach().numpy()
    products = np.empty((*few.shape[:2], query.shape[1]), rows.dtype)  # (E, n_way, q)
    tile = max(1, TILE_BYTES // (query.shape[1] * rows[0].nbytes))
    gathered = np.empty((tile, query.shape[1], rows.shape[1]), rows.dtype)
    for start in range(0, len(query), tile):
        part = slice(start, start + tile)
        some = gathered[: len(query[part])]
        np.take(rows, query[part], axis=0, out=some, mode="clip")  # any other mode copies once more
        np.matmul(few[part], some.transpose(0, 2, 1), out=products[part])
    return minus_distances(torch.from_numpy(products).mT, prototypes)


def _for_numpy(features: Tensor) -> bool:
    """Whether NumPy multiplies such features by BLAS."""
    return features.dtype in (torch.float32, torch.float64)


def _gather(features: Tensor, index: Tensor) -> Tensor:
    """Rows (*index.shape, d); index_select copies rows faster than indexing."""
    return torch.index_select(features, 0, index.reshape(-1)).view(*index.shape, -1)


def _default_chunk(images: Images, episodes: Episodes, tiled: bool) -> int:
    """As many episodes as suit the device: what they gather, or (tiled) their prototypes, sums and squares."""
    vectors = episodes.support[0].size * len(images.sources) + episodes.query.shape[1]
    if tiled:
        vectors = 4 * episodes.support.shape[1]
    budget = CHUNK_BYTES.get(images.plain.device.type, CHUNK_BYTES["cuda"])
    return max(1, budget // (vectors * images.plain[0].nbytes))


def _each(score: Callable[[int], int], starts: range, device: torch.device) -> Iterator[int]:
    """`score` of every start, in order; on a CPU in as many threads as torch may use, each working alone.

    Threads that share every small operation wait for each other at its end: slower, and many times slower where
    another program keeps one of the cores busy.
    """
    threads = min(torch.get_num_threads(), len(starts))
    if device.type != "cpu" or threads == 1:
        yield from map(score, starts)
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield from pool.map(score, starts)
    finally:
        pool.shutdown(cancel_futures=True)
        # What a thread sets for itself also becomes the default of threads yet to start: put that back.
        torch.set_num_threads(torch.get_num_threads())


@cache
def _libraries() -> ThreadpoolController:
    """The loaded BLAS libraries; looking for them takes longer than a thousand episodes."""
    return ThreadpoolController()


def _check_features(features: Tensor, episodes: Episodes, augmented_support: Tensor | None) -> None:
    for name, one in (("features", features), ("augmented support features", augmented_support)):
        if one is None:
            continue
        last = max(int(episodes.support.max()), int(episodes.query.max()))
        if last >= one.shape[-2]:
            raise ValueError(
                f"the episodes ask for image number {last}, but there are {name} of only {one.shape[-2]} images: "
                "features of another data set?"
            )
        require_finite(one if one.ndim == 2 else one.transpose(0, 1), f"the {name[:-1]}")  # images first
