"""Embedding metrics and t-SNE against scikit-learn's and openTSNE's own t-SNE on n x 768, interleaved.

    python -m benchmarks.embed [--rounds 3] [--points 10000] [--runs openTSNE schane metrics]

(As a module: beside a script, numba, which openTSNE asks for, takes benchmarks/coverage.py for the package.)
Prints one line per run (wall and CPU seconds, as other work on the machine stretches the wall), then the ratios. The
embeddings are synthetic: 100 classes, each with 8 directions of its own around its mean, plus noise. openTSNE runs with
the approximate neighbours that it chooses itself, and otherwise as `schane embed` calls it: perplexity, iterations, one
thread, a start from PCA. The share of the 30 nearest kept is of all images, or of 2,000 drawn where there are more than
10,000.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import openTSNE
import torch
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from schane_cli.cli import keep_freed_memory
from schane_cli.metrics.embedding import analyse_embeddings
from schane_cli.metrics.projection2d import EARLY_ITERATIONS, LATE_ITERATIONS, tsne


def synthetic(n: int, d: int = 768, n_classes: int = 100, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    means, directions = rng.normal(size=(n_classes, d)), rng.normal(size=(n_classes, 8, d)) / 8**0.5
    spread = np.einsum("nk,nkd->nd", rng.normal(size=(n, 8)), directions[labels])
    return (0.7 * means[labels] + spread + 0.3 * rng.normal(size=(n, d))).astype(np.float32), labels


def kept_neighbours(vectors: np.ndarray, picture: np.ndarray, k: int = 30) -> float:
    """Share of each image's k nearest that are among its k nearest in the picture; of 2,000 images where n > 10,000."""
    n = len(vectors)
    rows = np.arange(n) if n <= 10_000 else np.random.default_rng(0).choice(n, 2000, replace=False)
    nearest = []
    for v, how in ((vectors, "brute"), (picture, "auto")):
        index = NearestNeighbors(n_neighbors=k + 1, algorithm=how).fit(v)
        answers = zip(index.kneighbors(v[rows], return_distance=False), rows, strict=True)
        nearest.append([own[own != row][:k] for own, row in answers])
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*nearest, strict=True)]))


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def open_tsne(vectors: np.ndarray) -> np.ndarray:
    """openTSNE with its own choice of neighbours, and otherwise as `schane embed` calls it."""
    iterations = {"early_exaggeration_iter": EARLY_ITERATIONS, "n_iter": LATE_ITERATIONS}
    return np.asarray(openTSNE.TSNE(perplexity=30, **iterations, n_jobs=1, random_state=0).fit(vectors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, default=10_000)
    names = {"scikit-learn": "default", "openTSNE": "its own neighbours", "schane": "t-SNE", "metrics": "all"}
    parser.add_argument("--runs", nargs="+", choices=names, default=list(names))
    asked = parser.parse_args()
    keep_freed_memory()  # as the command line does
    torch.set_num_threads(1)
    vectors, labels = synthetic(asked.points)
    runs: dict[str, Callable[[], Any]] = {
        "scikit-learn": lambda: TSNE(random_state=0).fit_transform(vectors),
        "openTSNE": lambda: open_tsne(vectors),
        "schane": lambda: tsne(vectors, seed=0),
        "metrics": lambda: analyse_embeddings(vectors, labels, seed=0),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in asked.runs}
    for _ in range(asked.rounds):
        for name in asked.runs:
            result, wall, cpu = timed(runs[name])
            seconds[name].append((wall, cpu))
            print(f"{name + ', ' + names[name]:32s} {wall:7.1f} s wall {cpu:7.1f} s CPU", end="", flush=True)
            print("" if name == "metrics" else f"  30 nearest kept {kept_neighbours(vectors, result):.4f}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"n = {asked.points:,}; most memory {peak:.1f} GiB, all runs of this process")
    for other in asked.runs:
        for name in asked.runs:
            if name != other:
                pairs = zip(seconds[name], seconds[other], strict=True)
                ratios = np.median([[a / b for a, b in zip(one, two, strict=True)] for one, two in pairs], axis=0)
                print(f"{name:12s} {ratios[0]:.2f} x wall {ratios[1]:.2f} x CPU of {other} (median of {asked.rounds})")


if __name__ == "__main__":
    main()
