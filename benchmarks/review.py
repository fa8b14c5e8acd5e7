"""How many planted label errors `schane review` finds: CIFAR-100 at 50 images per class, 5 % of the labels flipped.

    python benchmarks/review.py --data-root DIR --weights FILE [--out results/benchmarks/review.md]

DIR holds cifar100/; FILE is MobileNetV2 0.35 pretrained on ImageNet (a state dict), frozen. Two ways of flipping (to a
random class, to the most confusable one), three seeds each; each way of proposing errors sees the same probabilities.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from sklearn.linear_model import LogisticRegression

from schane_cli.commands.fewshot_folder import own_backbone
from schane_cli.commands.predict import Predictor, stream
from schane_cli.commands.review import label_issues
from schane_cli.datasets.load import load_splits
from schane_cli.metrics.curation import left_out_probabilities
from schane_cli.recipe import build_recipe, find_recipe, read_recipe

SHARE, SEEDS, TEST_IMAGES, SIZE = 0.05, (0, 1, 2), 2000, 64


def embeddings(root: str, weights: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frozen embeddings and labels of the 5,000 training images and of 2,000 test images."""
    values = {"data.root": root, "model.weights": weights, "data.image_size": SIZE, "device": "cpu", "data.workers": 0}
    recipe = build_recipe(read_recipe(find_recipe("cifar100_small")), values)
    predictor = Predictor([own_backbone(None, recipe)], [recipe], torch.device("cpu"))
    splits = load_splits(recipe.data)
    test = splits.test.subset(np.random.default_rng(0).choice(len(splits.test), TEST_IMAGES, replace=False), "test")
    found = []
    for images in (splits.train, test):
        parts = [batch.outputs[0].embedding for batch in stream(predictor, images, np.arange(len(images)))]
        found += [torch.cat(parts).numpy().astype(np.float64), images.labels]
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) if one.ndim == 2 else one for one in found]
    return unit[0], unit[1], unit[2], unit[3]


def flipped(labels: np.ndarray, vectors: np.ndarray, how: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels with 5 % of them wrong, which ones)."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(labels), round(SHARE * len(labels)), replace=False)
    given, n_classes = labels.copy(), labels.max() + 1
    if how == "random":
        given[chosen] = (labels[chosen] + rng.integers(1, n_classes, len(chosen))) % n_classes
    else:
        means = np.stack([vectors[labels == c].mean(0) for c in range(n_classes)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        given[chosen] = (means @ means.T - 2 * np.eye(n_classes)).argmax(1)[labels[chosen]]
    return given, chosen


def proposals(given: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """The images that each way proposes."""
    ours = label_issues(given, probabilities)
    loss = -np.log(probabilities[np.arange(len(given)), given])
    ways = {"schane review": ours, "highest loss, as many": np.argsort(-loss)[: len(ours)]}
    for name in ("prune_by_noise_rate", "confident_learning", "both"):
        ways[f"cleanlab {name}"] = np.flatnonzero(find_label_issues(given, probabilities, filter_by=name, n_jobs=1))
    return ways


def accuracy(vectors: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Test accuracy of a logistic regression on the frozen embeddings."""
    model = LogisticRegression(C=10, max_iter=200).fit(vectors, labels)
    return float(model.score(test, test_labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--gain", action="store_true", help="also train classifiers on flipped and on relabelled data")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.time()
    vectors, labels, test, test_labels = embeddings(arguments.data_root, arguments.weights)
    print(f"embedded in {time.time() - started:.0f} s", flush=True)
    rows: list[dict] = []
    gains: list[dict] = []
    for how in ("random", "confusable"):
        for seed in SEEDS:
            given, wrong = flipped(labels, vectors, how, seed)
            probabilities = left_out_probabilities(vectors, given)
            for way, proposed in proposals(given, probabilities).items():
                hits = len(np.intersect1d(proposed, wrong))
                rows.append({"flip": how, "seed": seed, "way": way, "proposed": len(proposed),
                             "precision": hits / max(len(proposed), 1), "recall": hits / len(wrong)})  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
            if arguments.gain and seed == 0:
                issues = label_issues(given, probabilities)
                relabelled, kept = given.copy(), np.setdiff1d(np.arange(len(given)), issues)
                relabelled[issues] = probabilities[issues].argmax(1)
                gains.append({"flip": how,
                              "clean": accuracy(vectors, labels, test, test_labels),
                              "flipped": accuracy(vectors, given, test, test_labels),
                              "relabelled": accuracy(vectors, relabelled, test, test_labels),
                              "left out": accuracy(vectors[kept], given[kept], test, test_labels)})  # fmt: skip
                print(json.dumps(gains[-1]), flush=True)
    text = report(rows, gains)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def report(rows: list[dict], gains: list[dict]) -> str:
    """The table in Markdown: means over the seeds with the least and the most."""
    lines = [
        "# Label errors found by `schane review`",
        "",
        f"CIFAR-100, 50 images per class (5,000), {SHARE:.0%} of the labels flipped (250), frozen MobileNetV2 0.35 at",
        f"{SIZE} px, probabilities of ridge regression left out in closed form; mean over {len(SEEDS)} seeds of",
        "flipping (least to most). Precision and recall count planted errors only: CIFAR-100's own are false alarms. "
        f"{platform.machine()}, {time.strftime('%Y-%m-%d')}.",
        "",
        "| flipped to | way | proposed | precision, % | recall, % |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for how in dict.fromkeys(row["flip"] for row in rows):
        for way in dict.fromkeys(row["way"] for row in rows):
            own = [row for row in rows if (row["flip"], row["way"]) == (how, way)]
            cells = [_cell([row["proposed"] for row in own], 1, 0)]
            cells += [_cell([row[key] for row in own], 100, 1) for key in ("precision", "recall")]
            lines.append(f"| {how} class | {way} | {' | '.join(cells)} |")
    if gains:
        lines += ["", f"Accuracy of logistic regression on the same embeddings, {TEST_IMAGES} test images, seed 0:", "",
                  "| flipped to | clean | flipped | suggested labels taken | proposals left out |",
                  "| --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
        lines += [f"| {g['flip']} class | " + " | ".join(f"{100 * g[k]:.1f} %" for k in
                  ("clean", "flipped", "relabelled", "left out")) + " |" for g in gains]  # fmt: skip
    return "\n".join([*lines, "", "Command: python benchmarks/review.py --data-root DIR --weights FILE", ""])


def _cell(values: list[float], scale: float, digits: int) -> str:
    mean, low, high = (scale * one for one in (float(np.mean(values)), min(values), max(values)))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
