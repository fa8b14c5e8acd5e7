"""Extraction to disk against the bare model on batches that lie ready in memory, interleaved.

    python benchmarks/extraction.py [--rounds 5] [--images 1024] [--backbone mobilenetv2_035] [--size 112]

Both see the same images (random bytes) and batch size; the store's pass also decodes, resizes, normalises, hashes,
moves and writes. One line a round in seconds of wall and CPU, then the median ratio. 64 px images in memory.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from schane_cli.features.extract import normalise
from schane_cli.features.store import FeatureStore, fill
from schane_cli.images.imageset import ImageSet
from schane_cli.models.checkpoint import Loaded
from schane_cli.models.model import build_model, input_spec
from schane_cli.recipe import build_recipe

BATCH = 64


def timed(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--backbone", default="mobilenetv2_035")
    parser.add_argument("--size", type=int, default=112)
    asked = parser.parse_args()
    recipe = build_recipe({"model": {"backbone": asked.backbone, "weights": "random"}})
    model = build_model(recipe.model, 100, asked.size).eval()
    spec = input_spec(model, asked.size)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (asked.images, asked.size, asked.size, 3), dtype=np.uint8)
    names = tuple(map(str, range(100)))
    labels = rng.integers(0, 100, asked.images)
    images = ImageSet("random", "test", pixels, labels, names, tuple(map(str, range(asked.images))))
    ready = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), spec, torch.device("cpu")).contiguous()
    loaded = Loaded(Path("none"), model, recipe, names, spec, {})

    @torch.no_grad()
    def bare() -> None:
        for start in range(0, len(ready), BATCH):
            model(ready[start : start + BATCH])

    def store() -> None:
        with tempfile.TemporaryDirectory() as folder:
            target = FeatureStore(Path(folder) / "store", asked.images, 4096)
            fill(target, loaded, images, device=torch.device("cpu"), batch_size=BATCH, workers=0, amp="off")

    ratios = []
    for number in range(asked.rounds + 1):
        (bare_wall, bare_cpu), (wall, cpu) = timed(bare), timed(store)
        if number:  # the first round warms caches
            ratios.append((wall / bare_wall, cpu / bare_cpu))
            print(f"bare {bare_wall:6.2f} s ({bare_cpu:6.2f} CPU)   store {wall:6.2f} s ({cpu:6.2f} CPU)", flush=True)
    wall_ratio, cpu_ratio = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"store over bare, median of {asked.rounds}: {wall_ratio:.3f} wall, {cpu_ratio:.3f} CPU")


if __name__ == "__main__":
    main()
