"""Embedding figures and t-SNE against scikit-learn's default t-SNE on 10,000 x 768, interleaved.

    python benchmarks/embed.py [--rounds 3] [--points 10000]

Prints one line per run (wall and CPU seconds, as other work on the machine stretches the wall), then the ratios. The
embeddings are synthetic: 100 classes, each with 8 directions of its own around its mean, plus noise.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from schane_cli.metrics.embedding import analyse_embeddings
from schane_cli.metrics.projection2d import tsne


def synthetic(n: int, d: int = 768, n_classes: int = 100, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    means, directions = rng.normal(size=(n_classes, d)), rng.normal(size=(n_classes, 8, d)) / 8**0.5
    spread = np.einsum("nk,nkd->nd", rng.normal(size=(n, 8)), directions[labels])
    return (0.7 * means[labels] + spread + 0.3 * rng.normal(size=(n, d))).astype(np.float32), labels


def kept_neighbours(vectors: np.ndarray, picture: np.ndarray, k: int = 30) -> float:
    """Share of each image's k nearest that are among its k nearest in the picture."""
    nearest = [
        NearestNeighbors(n_neighbors=k, algorithm=how).fit(v).kneighbors(return_distance=False)
        for v, how in ((vectors, "brute"), (picture, "auto"))
    ]
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*nearest, strict=True)]))


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, default=10_000)
    asked = parser.parse_args()
    vectors, labels = synthetic(asked.points)
    runs: dict[str, Callable[[], Any]] = {
        "scikit-learn t-SNE, default": lambda: TSNE(random_state=0).fit_transform(vectors),
        "schane t-SNE": lambda: tsne(vectors, seed=0),
        "schane metrics": lambda: analyse_embeddings(vectors, labels, seed=0),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(asked.rounds):
        for name, run in runs.items():
            result, wall, cpu = timed(run)
            seconds[name].append((wall, cpu))
            kept = f"  30 nearest kept {kept_neighbours(vectors, result):.4f}" if "t-SNE" in name else ""
            print(f"{name:28s} {wall:7.1f} s wall {cpu:7.1f} s CPU{kept}", flush=True)
    reference = seconds["scikit-learn t-SNE, default"]
    for name, taken in seconds.items():
        ratios = [[a[i] / b[i] for a, b in zip(taken, reference, strict=True)] for i in range(2)]
        wall, cpu = (statistics.median(r) for r in ratios)
        print(f"{name:28s} {wall:.2f} x wall {cpu:.2f} x CPU of scikit-learn's default (median of {asked.rounds})")


if __name__ == "__main__":
    main()
