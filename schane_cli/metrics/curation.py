"""What may be wrong with a labelled set, from its embeddings: left-out probabilities, near-duplicates, outliers."""

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from schane_cli.metrics.bootstrap import Floats, Ints
from schane_cli.metrics.classification import fit_temperature
from schane_cli.metrics.separation import linear_probe_left_out

CHUNK_CELLS = 8_000_000  # cosines held at a time: 32 MB
NEIGHBOURS = 10
HASH_SIDE = 8
# (least cosine of the embeddings, most of 64 differing bits) of a pair that counts as near-duplicates
DUPLICATE_RULES = ((0.9, 3), (0.99, 6))


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


def left_out_probabilities(vectors: Floats, labels: Ints) -> Floats:
    """Probabilities (n, C) of the classes for each image, by a classifier fitted on all the other images.

    Ridge regression left out in closed form (see `linear_probe_left_out`), made probabilities by the temperature that
    fits them to the labels. `vectors` (n, d) are L2-normalised first; `labels` (n,) in 0..C-1.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    scores, _ = linear_probe_left_out(unit.astype(np.float64), labels)
    fit = fit_temperature(scores, labels)
    probabilities: Floats = softmax(scores / fit.temperature, axis=1)
    return probabilities


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
    (DUPLICATE_RULES): the embedding alone calls every pair of a class alike once a model is fine-tuned.
    """
    unit = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    n, k = len(unit), min(NEIGHBOURS, len(unit) - 1)
    nearest, cosine, score = np.empty(n, dtype=np.int64), np.empty(n), np.empty(n)
    pairs, pair_cosines, pair_bits = [], [], []
    chunk = max(1, CHUNK_CELLS // n)
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        cosines = unit[start:stop] @ unit.T
        rows = np.arange(stop - start)
        cosines[rows, rows + start] = -2
        nearest[start:stop] = cosines.argmax(axis=1)
        cosine[start:stop] = cosines[rows, nearest[start:stop]]
        score[start:stop] = 1 - np.partition(cosines, n - k, axis=1)[:, n - k :].mean(axis=1)
        first, second = np.nonzero(cosines >= DUPLICATE_RULES[0][0])
        later = second > first + start
        first, second = first[later], second[later]
        bits = np.bitwise_count(hashes[first + start] ^ hashes[second]).astype(np.int64)
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


def outliers(score: Floats) -> Ints:
    """Images far from all others, the farthest first: beyond the third quartile by three times the quartiles' distance
    (Tukey's far-out fence)."""
    low, high = np.quantile(score, [0.25, 0.75])
    far = np.flatnonzero(score > high + 3 * (high - low))
    order: Ints = far[np.argsort(-score[far], kind="stable")]
    return order
