"""`schane predict` against the loop of timm's inference.py: the same images, model, batch and loader workers, in turn.

    python benchmarks/predict.py RUN IMAGES [--rounds 3] [--workers 1] [--memory 1000 100000] [--out FILE]

timm's script is not part of its package; its loop is written out below: create_dataset, create_loader, softmax, top-1,
a CSV. schane's time is of the passes alone and, in a column of its own, of the whole command (calibration is kept from
the first call; tables, thumbnails and page included). --memory: the highest resident memory, in processes of their own,
for so many images (the given ones over again, by links). --rounds 0 measures memory alone.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from timm.data import create_dataset, create_loader

from schane_cli.cli import keep_freed_memory
from schane_cli.commands.predict import images_to_name, load_predictor, predict, stream
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.preflight import PredictOptions
from schane_cli.terminal import Terminal

QUIET = Terminal(quiet=True)


def timm_loop(run: Path, images: Path, workers: int, out: Path) -> float:
    """Images per second of timm's inference loop over a folder."""
    loaded = load_checkpoint(run)
    model, spec = loaded.model.backbone.eval(), loaded.input
    started = time.perf_counter()
    dataset = create_dataset("", root=str(images), class_map="")
    loader = create_loader(
        dataset,
        input_size=(3, spec.size, spec.size),
        batch_size=loaded.recipe.train.batch_size,
        use_prefetcher=False,
        num_workers=workers,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        device=torch.device("cpu"),
    )
    indices, confidences = [], []
    with torch.inference_mode():
        for pixels, _ in loader:
            confidence, index = model(pixels).softmax(-1).topk(1)
            indices.append(index.numpy())
            confidences.append(confidence.numpy())
    columns = {"filename": dataset.filenames(basename=True), "index": np.concatenate(indices)[:, 0]}
    pd.DataFrame({**columns, "prob": np.concatenate(confidences)[:, 0]}).to_csv(out / "timm.csv", index=False)
    return len(dataset) / (time.perf_counter() - started)


def schane_passes(run: Path, images: Path, workers: int) -> float:
    """Images per second of schane's passes with their probabilities, without tables and page."""
    predictor = load_predictor([run], {"data.workers": workers, "device": "cpu"}, QUIET)
    started = time.perf_counter()
    chosen, _ = images_to_name([str(images)], {})
    for batch in stream(predictor, chosen, np.arange(len(chosen))):
        predictor.probabilities(batch).topk(1)
    return len(chosen) / (time.perf_counter() - started)


def schane_command(run: Path, images: Path, workers: int, out: Path) -> float:
    """Images per second of the command, tables and thumbnails included."""
    started = time.perf_counter()
    values = {"data.workers": workers, "device": "cpu"}
    folder = out / f"run{time.time_ns()}"
    summary = predict([run], [str(images)], options=PredictOptions(), overrides=values, out=folder, terminal=QUIET)
    return summary["images"] / (time.perf_counter() - started)


def peak_memory(run: Path, images: Path, count: int) -> float:
    """MiB of a process of its own that names `count` images."""
    with tempfile.TemporaryDirectory() as place:
        files = sorted(path for path in images.rglob("*") if path.is_file())
        for number in range(count):
            os.symlink(files[number % len(files)].resolve(), Path(place) / f"{number:07d}{files[0].suffix}")
        command = [sys.executable, __file__, str(run), place, "--one-run"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["mebibytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--memory", type=int, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one-run", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    out = Path(tempfile.mkdtemp())
    if arguments.one_run:
        schane_command(arguments.run, arguments.images, 0, out)
        print(json.dumps({"mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        shutil.rmtree(out)
        return
    rows = []
    for number in range(arguments.rounds):
        theirs = timm_loop(arguments.run, arguments.images, arguments.workers, out)
        ours = schane_passes(arguments.run, arguments.images, arguments.workers)
        whole = schane_command(arguments.run, arguments.images, arguments.workers, out)
        rows.append((theirs, ours, whole, ours / theirs, whole / theirs))
        print(number, *(f"{value:.2f}" for value in rows[-1]), flush=True)
    memory = [(count, peak_memory(arguments.run, arguments.images, count)) for count in arguments.memory]
    shutil.rmtree(out)
    text = report(arguments, rows, memory)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def report(arguments: argparse.Namespace, rows: list[tuple[float, ...]], memory: list[tuple[int, float]]) -> str:
    """The tables in Markdown: medians over the rounds, least to most."""
    loaded = load_checkpoint(arguments.run)
    count = sum(path.is_file() for path in arguments.images.rglob("*"))
    lines = [
        "# Predict",
        "",
        f"{count:,} images, {loaded.recipe.model.backbone} at {loaded.input.size} px, batch "
        f"{loaded.recipe.train.batch_size}, {arguments.workers} loader workers, one thread, {arguments.rounds} rounds "
        f"in turn; torch {torch.__version__}, timm {timm.__version__}; load average {os.getloadavg()[0]:.1f} (other "
        f"work included); {time.strftime('%Y-%m-%d')}. Median (least to most).",
    ]
    if rows:
        lines += speed_lines(rows)
    if memory:
        lines += ["", "| images | highest resident memory, MiB |", "| ---: | ---: |"]
        lines += [f"| {images:,} | {mebibytes:,.0f} |" for images, mebibytes in memory]
    return "\n".join([*lines, ""])


def speed_lines(rows: list[tuple[float, ...]]) -> list[str]:
    """Images per second of each way, and over timm's loop in the same round."""
    names = ("timm's loop", "schane, passes", "schane, whole command")
    columns = list(zip(*rows, strict=True))
    lines = ["", "| what | images/s | over timm's loop |", "| --- | ---: | ---: |"]
    for place, name in enumerate(names):
        ratio = columns[2 + place] if place else [1.0]
        lines.append(f"| {name} | {_cell(columns[place], 1)} | {_cell(ratio, 2)} |")
    return lines


def _cell(values: "tuple[float, ...] | list[float]", digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
