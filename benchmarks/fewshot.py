"""Time few-shot classifiers over episodes against a loop over scikit-learn's LogisticRegression; print a table.

    python benchmarks/fewshot.py [--rounds 5] [--features FILE] [--device cpu]

12,000 features of 20 classes, 5-way, 15 queries. Contestants take turns within a round, so that a busy machine slows
them alike; what counts are the ratios within a round, of which the median is printed. scikit-learn is timed at its
default tolerance, where it stops early and is fastest, and at 1e-8, where it has converged as ours has. Its rows are
gathered before the clock starts; our times include gathering. FILE is a torch file of (features, labels).
"""

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression

from schane_cli.cli import keep_freed_memory
from schane_cli.fewshot.classifiers import CLASSIFIERS, normalize_features
from schane_cli.fewshot.episodes import Episodes, draw_episodes
from schane_cli.fewshot.scores import evaluate_episodes

N_EPISODES = 10_000
PEER_EPISODES = 100


def made_features() -> tuple[torch.Tensor, torch.Tensor]:
    """12,000 unit 768-d features of 20 classes, about as separable as CIFAR-FS by a small pretrained network."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20).repeat_interleave(600)
    noise = torch.randn(12_000, 768, generator=generator)
    return noise + 0.25 * torch.randn(20, 768, generator=generator)[labels], labels


def loop(features: torch.Tensor, episodes: Episodes, tolerance: float) -> Callable[[], np.ndarray]:
    """scikit-learn on the first 100 episodes, one at a time; returns the predictions."""
    n_way, n_shot = episodes.support.shape[1:]
    targets = np.repeat(np.arange(n_way), n_shot)
    rows = features.numpy() if tolerance > 1e-6 else features.double().numpy()  # float32 is faster but cannot converge
    pairs = [(rows[episodes.support[e].ravel()], rows[episodes.query[e]]) for e in range(PEER_EPISODES)]

    def run() -> np.ndarray:
        model = LogisticRegression(C=1.0, tol=tolerance, max_iter=10_000)
        return np.stack([model.fit(support, targets).predict(query) for support, query in pairs])

    return run


def contestants(features: torch.Tensor, episodes: Episodes, device: str) -> dict[str, Callable[[], np.ndarray]]:
    mean, on_device = features.mean(dim=0), features.to(device)

    def ours(name: str) -> Callable[[], np.ndarray]:
        if name == "simpleshot":
            return lambda: evaluate_episodes(on_device, episodes, classifier=name, base_mean=mean).predictions
        return lambda: evaluate_episodes(on_device, episodes, classifier=name).predictions

    peers = {f"scikit-learn, tol {tolerance:g}": loop(features, episodes, tolerance) for tolerance in (1e-4, 1e-8)}
    return peers | {name: ours(name) for name in CLASSIFIERS}


def measure(runs: dict[str, Callable[[], np.ndarray]], rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds per 10,000 episodes by contestant and round, and agreement with converged scikit-learn on its 100."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    predictions = {}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            predictions[name] = run()
            elapsed = time.perf_counter() - start
            seconds[name].append(elapsed * (N_EPISODES / len(predictions[name])))
    reference = predictions["scikit-learn, tol 1e-08"]
    return seconds, {name: float((p[:PEER_EPISODES] == reference).mean()) for name, p in predictions.items()}


def print_table(title: str, seconds: dict[str, list[float]], agreement: dict[str, float]) -> None:
    fast, exact = (np.array(seconds[f"scikit-learn, tol {tolerance:g}"]) for tolerance in (1e-4, 1e-8))
    print(f"\n## {title}\n")
    print("| classifier | s per 10,000 episodes | faster than scikit-learn | than scikit-learn converged | agreement |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, times in seconds.items():
        ratios = [f"{statistics.median(peer / times):.1f}x" for peer in (fast, exact)]
        agrees = f"{100 * agreement[name]:.2f} %" if "scikit" in name or name == "logistic" else ""
        print(f"| {name} | {statistics.median(times):.2f} | {ratios[0]} | {ratios[1]} | {agrees} |")
    bounds = [np.array(seconds["centroid"]) / (peer * PEER_EPISODES / N_EPISODES) for peer in (fast, exact)]
    print(
        f"\n10,000 centroid episodes take {statistics.median(bounds[0]):.2f} times as long as {PEER_EPISODES} of "
        f"scikit-learn's logistic regressions at its default tolerance, {statistics.median(bounds[1]):.2f} times as "
        "long as to convergence (at most 1 wanted)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--features", type=Path, default=None, help="torch file of (features (n, d), labels (n,))")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    if arguments.features is None:
        features, labels = made_features()
    else:
        features, labels = torch.load(arguments.features, weights_only=True)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{os.cpu_count()} CPU cores"
    print("# Few-shot classifiers against scikit-learn\n")
    print(
        f"{datetime.date.today()}, {name}, {platform.machine()}, torch {torch.__version__} "
        f"({torch.get_num_threads()} threads), scikit-learn {sklearn.__version__}; {len(features):,} features of "
        f"{features.shape[1]} numbers ({arguments.features.name if arguments.features else 'made'}), 5-way, 15 "
        f"queries, median of {arguments.rounds} interleaved rounds; load average at the start {os.getloadavg()[0]:.1f}."
    )
    for n_shot in (1, 5):
        for norm in ("l2", "none"):
            episodes = draw_episodes(labels.numpy(), n_way=5, n_shot=n_shot, n_query=15, n_episodes=N_EPISODES, seed=0)
            runs = contestants(normalize_features(features, norm), episodes, arguments.device)
            if norm == "none":  # only the logistic regression works harder on features of large norm
                runs = {name: run for name, run in runs.items() if "scikit" in name or name in ("centroid", "logistic")}
            title = f"{n_shot}-shot, {'unit length' if norm == 'l2' else 'not normalised'}"
            print_table(title, *measure(runs, arguments.rounds))


if __name__ == "__main__":
    main()
