"""Which training images of CIFAR-100 to leave out so that a long tail is left: the list that data.exclude takes.

    python benchmarks/long_tail.py --data-root DIR --out long-tail.csv [--largest 200] [--factor 50] [--dataset ...]

The usual profile (Cui et al. 2019, arXiv:1901.05555): class i of C keeps largest * factor ** (-i / (C - 1)) images. The
classes are put in a seeded order, so that the tail is not the end of the alphabet; test is left alone, balanced.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from schane_cli.datasets.load import source_parts
from schane_cli.recipe import build_recipe


def kept_counts(n_classes: int, largest: int, factor: float) -> np.ndarray:
    """Images that each class keeps (C,), the most frequent first."""
    return np.floor(largest * factor ** (-np.arange(n_classes) / (n_classes - 1)) + 1e-9).astype(int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--largest", type=int, default=200)
    parser.add_argument("--factor", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset", default="cifar100", help="folder:DIR for a part of it")
    arguments = parser.parse_args()
    train = source_parts(build_recipe({"data": {"dataset": arguments.dataset, "root": arguments.data_root}}).data)[
        "train"
    ]
    counts = kept_counts(len(train.class_names), arguments.largest, arguments.factor)
    present = np.bincount(train.labels)
    if present.min() < arguments.largest:
        parser.error(f"--largest {arguments.largest} is more than the {present.min()} images that a class has")
    rng = np.random.default_rng(arguments.seed)
    left_out = []
    for label, count in zip(rng.permutation(len(counts)), counts, strict=True):
        left_out += rng.permutation(np.flatnonzero(train.labels == label))[count:].tolist()
    pd.DataFrame({"path": [train.ids[index] for index in sorted(left_out)]}).to_csv(arguments.out, index=False)
    print(f"{counts.sum():,} images stay, {counts.max()} to {counts.min()} per class; {len(left_out):,} are left out")


if __name__ == "__main__":
    main()
