"""The training core against timm's training path, the cost of the full objective, and gradient caching's peak memory.

    python benchmarks/train.py [--rounds 9] [--steps 4] [--markdown results/benchmarks/train.md]
    python benchmarks/train.py --options [--rounds 5] [--steps 1]

timm's path is its train.py written out: create_dataset's kind of dataset under create_loader (on CUDA its prefetcher),
create_optimizer_v2 (AdamW, weight decay exemptions), create_scheduler_v2, ModelEma off, cross-entropy, autocast as
ours, channels_last for convnets as ours. Same model, images in memory, batch, precision, random crop and flip, one
view. Contenders take turns, a block of steps each, in one process; a ratio is the median over rounds of the ratios
within a round. Processor time stands beside wall time since other work may share the machine.

`--options` takes what docs/stronger.md offers (activations computed again, chunks, LoRA, heads alone) against the same
step without, its peak memory in a process of its own, and LoRA's at a batch of 1,024 in chunks of 64.

On CUDA the cases are BEiT-3 base at 224 px in bfloat16 and ResNet-50, with the share of the device's matrix rate.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from schane_cli.features.extract import autocast
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import worker_count
from schane_cli.models.model import build_model, input_spec, is_convnet
from schane_cli.recipe import Recipe, build_recipe
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal
from schane_cli.training.trackers import Trackers
from schane_cli.training.trainer import Job, Trainer

CPU_CASES = (("resnet18", 64, 32), ("vit_tiny_patch16_224", 96, 32))  # backbone, px, batch
CUDA_CASES = (("beit3_base_patch16_224", 224, 128), ("resnet50", 224, 256))
OBJECTIVE_CASES = (("resnet18", 64, 32), ("vit_tiny_patch16_224", 96, 32), ("mobilenetv2_035", 48, 100))
CLASSES = 10
BFLOAT16_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12}  # dense, the makers' sheets
Block = Callable[[int], None]


def images_in_memory(count: int, size: int) -> ImageSet:
    """`count` images of noise at 4/3 of `size`, so that a crop has something to choose."""
    side = size * 4 // 3
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    labels = np.arange(count) % CLASSES
    names = tuple(map(str, range(CLASSES)))
    return ImageSet("noise", "train", pixels, labels, names, tuple(map(str, range(count))))


def recipe_of(backbone: str, size: int, batch: int, **train: object) -> Recipe:
    """A cross-entropy recipe of one view, crop and flip alone."""
    return build_recipe(
        {
            "data": {"image_size": size},
            "model": {"backbone": backbone, "weights": "random"},
            "loss": {"name": "ce"},
            "augment": {"views": 1, "color_jitter_p": 0.0, "grayscale": 0.0},
            "train": {"epochs": 1000, "batch_size": batch, "optimizer": "adamw", **train},
        }
    )


def trainer_of(recipe: Recipe, images: ImageSet, folder: Path, device: torch.device) -> Trainer:
    torch.manual_seed(0)
    model = build_model(recipe.model, CLASSES, recipe.data.image_size)
    run = RunFolder(folder / recipe.loss.name)
    run.path.mkdir(exist_ok=True)
    spec = input_spec(model, recipe.data.image_size)
    return Trainer(Job(recipe, model, spec, images, images, run, Terminal(quiet=True), device, "finetune"))


def ours(trainer: Trainer, batches: Iterator) -> Block:
    """Steps as Trainer.run takes them, without validation and saving."""
    trainer.trackers = Trackers((), trainer.job.run.path, trainer.recipe)
    with trainer.job.terminal.task("steps", 10**9) as task:
        pass

    def block(steps: int) -> None:
        for _ in range(steps):
            views, labels, indices = next(batches)
            figures = trainer._training_step(views, labels, indices)
            trainer.images_done += len(labels)
            trainer._report(task, figures, 1.0)

    return block


class Pictures(Dataset):
    """The same images as timm's loader takes them."""

    def __init__(self, images: ImageSet) -> None:
        self.images, self.transform = images, None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        return self.transform(Image.fromarray(self.images.images[index])), int(self.images.labels[index])


def timm_batches(recipe: Recipe, images: ImageSet, device: torch.device) -> Iterator:
    workers = worker_count(recipe.data, images)
    loader = create_loader(
        Pictures(images),
        input_size=(3, recipe.data.image_size, recipe.data.image_size),
        batch_size=recipe.train.batch_size,
        is_training=True,
        scale=recipe.augment.crop_scale,
        color_jitter=0.0,
        interpolation="bicubic",
        num_workers=workers,
        device=device,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def timms(recipe: Recipe, batches: Iterator, device: torch.device) -> Block:
    """The loop of timm's train.py at its plainest."""
    torch.manual_seed(0)
    model = build_model(recipe.model, CLASSES, recipe.data.image_size)
    layout = torch.channels_last if is_convnet(model) else torch.contiguous_format
    backbone = model.backbone.to(device, memory_format=layout).train()
    optimizer = create_optimizer_v2(backbone, opt="adamw", lr=recipe.train.lr, weight_decay=recipe.train.weight_decay)
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=1000, updates_per_epoch=16)
    done = 0

    def block(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            pixels, target = next(batches)
            pixels, target = pixels.to(device).contiguous(memory_format=layout), target.to(device)
            with autocast(device, recipe.train.amp):
                loss = F.cross_entropy(backbone(pixels), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            scheduler.step_update(done)
        loss.item()

    return block


def repeated(batches: Iterator) -> Iterator:
    """One batch for ever: the loop without its loader."""
    batch = next(batches)
    while True:
        yield batch


def turns(contenders: dict[str, Block], rounds: int, steps: int, device: torch.device) -> dict[str, np.ndarray]:
    """Seconds a step of each contender, (rounds, 2): wall and processor time. One warm-up block first."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, block in contenders.items():
            started, busy = time.perf_counter(), time.process_time()
            block(steps)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken = (time.perf_counter() - started) / steps, (time.process_time() - busy) / steps
            if round_number:
                seconds[name].append(taken)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(over: np.ndarray, under: np.ndarray) -> tuple[str, str]:
    """Median (and range) over rounds of over / under, for wall and for processor time."""
    shares = over / under
    middle, low, high = np.median(shares, axis=0), shares.min(0), shares.max(0)
    wall, busy = (f"{middle[i]:.2f} ({low[i]:.2f} to {high[i]:.2f})" for i in (0, 1))
    return wall, busy


def against_timm(arguments: argparse.Namespace, device: torch.device, folder: Path) -> list[str]:
    rows = []
    for backbone, size, batch in CUDA_CASES if device.type == "cuda" else CPU_CASES:
        recipe, images = recipe_of(backbone, size, batch), images_in_memory(16 * batch, size)
        trainer, repeating = (trainer_of(recipe, images, folder, device) for _ in range(2))
        named = {
            "schane": ours(trainer, iter(trainer._loader())),
            "timm": timms(recipe, timm_batches(recipe, images, device), device),
            "schane, one batch": ours(repeating, repeated(iter(repeating._loader()))),
            "timm, one batch": timms(recipe, repeated(timm_batches(recipe, images, device)), device),
        }
        seconds = turns(named, arguments.rounds, arguments.steps, device)
        for kind in ("", ", one batch"):
            mine, theirs = seconds[f"schane{kind}"], seconds[f"timm{kind}"]
            rates = [f"{batch / np.median(values[:, 0]):.1f}" for values in (mine, theirs)]
            rows.append(f"| {backbone} | {size} | {batch} | {kind[2:] or 'loader'} | " + " | ".join(
                [*rates, *ratio(theirs, mine), share_of_peak(trainer, mine, device)]) + " |")  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def share_of_peak(trainer: Trainer, seconds: np.ndarray, device: torch.device) -> str:
    """Model flops a second over the device's dense bfloat16 rate."""
    if device.type != "cuda":
        return ""
    peak = next((rate for name, rate in BFLOAT16_FLOPS.items() if name in torch.cuda.get_device_name()), None)
    views, labels, indices = next(iter(trainer._loader()))
    with FlopCounterMode(display=False) as counter:
        trainer._backward(views, labels, indices)
    trainer.optimizer.zero_grad(set_to_none=True)
    return f"{counter.get_total_flops() / np.median(seconds[:, 0]) / peak:.1%}" if peak else "rate not known"


def objective_cost(arguments: argparse.Namespace, device: torch.device, folder: Path) -> list[str]:
    """A step of the full objective against a cross-entropy step, both on the same two views of a batch, and the peak
    memory of each in a process of its own."""
    rows = []
    for backbone, size, batch in CUDA_CASES if device.type == "cuda" else OBJECTIVE_CASES:
        images = images_in_memory(16 * batch, size)
        two = {"augment.views": 2}
        cross_entropy = build_recipe(recipe_of(backbone, size, batch).model_dump(mode="json"), two)
        full = build_recipe(cross_entropy.model_dump(mode="json"), {"loss.name": "schane"})
        trainers = {recipe.loss.name: trainer_of(recipe, images, folder, device) for recipe in (cross_entropy, full)}
        named = {name: ours(trainer, repeated(iter(trainer._loader()))) for name, trainer in trainers.items()}
        seconds = turns(named, arguments.rounds, arguments.steps, device)
        times = [f"{1e3 * np.median(seconds[name][:, 0]):.0f}" for name in ("schane", "ce")]
        peaks = [peak_and_rest(backbone, size, batch, 0, loss)[0] for loss in ("schane", "ce")]
        memory = [*(f"{peak:,.0f}" for peak in peaks), f"{peaks[0] / peaks[1]:.2f}"]
        cells = [backbone, str(size), str(2 * batch), *times, *ratio(seconds["schane"], seconds["ce"]), *memory]
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    return rows


def caching_cost(arguments: argparse.Namespace, device: torch.device, folder: Path) -> list[str]:
    """A step of the full objective in chunks against the same batch whole."""
    rows = []
    backbone, size, batch, chunk = ("vit_tiny_patch16_224", 96, 64, 16)
    images = images_in_memory(4 * batch, size)
    whole = build_recipe(
        recipe_of(backbone, size, batch).model_dump(mode="json"), {"augment.views": 2, "loss.name": "schane"}
    )
    chunked = build_recipe(whole.model_dump(mode="json"), {"train.chunk_size": chunk})
    named = {}
    for name, recipe in (("whole", whole), ("chunks", chunked)):
        place = folder / name
        place.mkdir()
        trainer = trainer_of(recipe, images, place, device)
        named[name] = ours(trainer, repeated(iter(trainer._loader())))
    seconds = turns(named, arguments.rounds, max(arguments.steps // 2, 1), device)
    times = [f"{1e3 * np.median(seconds[name][:, 0]):.0f}" for name in ("chunks", "whole")]
    cells = [backbone, str(size), str(batch), str(chunk), *times, *ratio(seconds["chunks"], seconds["whole"])]
    rows.append(f"| {' | '.join(cells)} |")
    print(rows[-1], flush=True)
    return rows


OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "activations again": {"train.checkpoint_activations": True},
    "chunks": {"train.chunk_size": 8},
    "chunks, activations again": {"train.chunk_size": 8, "train.checkpoint_activations": True},
    "LoRA of rank 8": {"model.lora_rank": 8},
    "heads alone": {"train.head_epochs": 1000},
}


def option_recipe(backbone: str, size: int, batch: int, overrides: dict[str, object], folder: Path) -> Recipe:
    """The full objective on two views, from a file of weights, since adapters are not for random ones."""
    file = folder / f"{backbone}.pt"
    if not file.exists():
        recipe = recipe_of(backbone, size, batch)
        torch.save(build_model(recipe.model, CLASSES, size).backbone.state_dict(), file)
    shared = {"loss.name": "schane", "augment.views": 2, "model.weights": str(file), "train.batchnorm": "running"}
    return build_recipe(recipe_of(backbone, size, batch).model_dump(mode="json"), {**shared, **overrides})


def option_rows(arguments: argparse.Namespace, device: torch.device, folder: Path) -> list[str]:
    """Each option's step over the plain one, and the peak memory of each above what rests before the first step."""
    backbone, size, batch = ("vit_tiny_patch16_224", 96, 32)
    images, named = images_in_memory(4 * batch, size), {}
    for name, overrides in OPTIONS.items():
        place = folder / name.replace(" ", "-")
        place.mkdir()
        trainer = trainer_of(option_recipe(backbone, size, batch, overrides, folder), images, place, device)
        named[name] = ours(trainer, repeated(iter(trainer._loader())))
    seconds = turns(named, arguments.rounds, arguments.steps, device)
    cases = [(name, size, batch, overrides, 2) for name, overrides in OPTIONS.items()]
    cases.append(("LoRA of rank 8, chunks of 64", size, 1024, {"model.lora_rank": 8, "train.chunk_size": 64}, 1))
    rows, least = [], None
    for name, side, count, overrides, steps in cases:
        peak, resting = option_memory(backbone, side, count, overrides, steps)
        least = least or peak - resting
        time_cells = ["", "", ""]
        if name in seconds:
            time_cells = [f"{1e3 * np.median(seconds[name][:, 0]):.0f}", *ratio(seconds[name], seconds["plain"])]
        memory = (f"{peak:,.0f}", f"{peak - resting:,.0f}", f"{(peak - resting) / least:.2f}")
        rows.append(f"| {' | '.join((name, str(count), *time_cells, *memory))} |")
        print(rows[-1], flush=True)
    return rows


def option_memory(
    backbone: str, size: int, batch: int, overrides: dict[str, object], steps: int
) -> tuple[float, float]:
    """The peak and the resting memory in MiB of some steps, in a process of its own."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    asked = json.dumps([backbone, size, batch, overrides, steps])
    command = [sys.executable, __file__, "--option-memory", asked]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    return float(said[0]), float(said[1])


def print_option_memory(backbone: str, size: int, batch: int, overrides: dict[str, object], steps: int) -> None:
    """What `option_memory` reads."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as place:
        recipe = option_recipe(backbone, size, batch, overrides, Path(place))
        trainer = trainer_of(recipe, images_in_memory(batch, size), Path(place), device)
        print_steps_memory(trainer, batch, size, steps, device)


def print_steps_memory(trainer: Trainer, batch: int, size: int, steps: int, device: torch.device) -> None:
    """Peak and resting memory in MiB of `steps` steps on one batch of noise."""
    views, labels = torch.randint(0, 256, (batch, 2, 3, size, size), dtype=torch.uint8), torch.arange(batch) % 10
    resting = _memory(device, peak=False)
    for _ in range(steps):
        trainer._training_step(views, labels, torch.arange(batch))
    print(_memory(device, peak=True), resting)


def memory_of(backbone: str, size: int, batch: int, chunk: int | None, loss: str) -> None:
    """Print the peak and the resting memory in MiB of three steps; run in its own process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    values = recipe_of(backbone, size, batch, chunk_size=chunk).model_dump(mode="json")
    recipe = build_recipe(values, {"loss.name": loss, "augment.views": 2})
    images = images_in_memory(batch, size)
    with tempfile.TemporaryDirectory() as place:
        print_steps_memory(trainer_of(recipe, images, Path(place), device), batch, size, 3, device)


def _memory(device: torch.device, *, peak: bool) -> float:
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    if peak:  # not ru_maxrss, which a process inherits from the one that started it
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def memory_rows(backbone: str, size: int) -> list[str]:
    """Peak memory at batch 64, and at 1,024 in chunks of 64."""
    rows, first = [], None
    for batch, chunk in ((64, 0), (1024, 64)):
        peak, resting = peak_and_rest(backbone, size, batch, chunk, "schane")
        first = first or (peak, peak - resting)
        cells = (backbone, size, batch, chunk or "whole", f"{peak:,.0f}", f"{peak / first[0]:.2f}",
                 f"{peak - resting:,.0f}", f"{(peak - resting) / first[1]:.2f}")  # fmt: skip
        rows.append(f"| {' | '.join(map(str, cells))} |")
        print(rows[-1], flush=True)
    return rows


def peak_and_rest(backbone: str, size: int, batch: int, chunk: int, loss: str) -> tuple[float, float]:
    """What `memory_of` prints in a process of its own; `chunk` 0: the batch whole."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed tensors go back to the system
    command = [sys.executable, __file__, "--memory-of", backbone, str(size), str(batch), str(chunk), loss]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    return float(said[0]), float(said[1])


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())


def report(arguments: argparse.Namespace, device: torch.device, tables: list[list[str]], load: float) -> str:
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "timm"))
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{cpu_name()}, {os.cpu_count()} cores"
    speed, objective, caching, memory = tables
    return "\n".join(
        [
            "# The training core against timm's",
            "",
            f"{where}; {torch.get_num_threads()} thread, Python {platform.python_version()}, {packages}; "
            f"{date.today()}.",
            f"`python benchmarks/train.py --rounds {arguments.rounds} --steps {arguments.steps}`. Load average of the "
            f"machine {load:.1f} before, {os.getloadavg()[0]:.1f} after (other work included). Ratios: median (lowest "
            "to highest) over interleaved rounds in one process.",
            "",
            "Cross-entropy, AdamW, one view (random crop and flip), images of noise in memory. Ratio: schane's images "
            "a second over timm's; target 1.0. `one batch`: the same batch again and again, the loop without a loader.",
            "",
            "| backbone | px | batch | from | schane img/s | timm img/s | ratio, wall | ratio, processor time | share "
            "of bf16 peak |",
            "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
            *speed,
            "",
            "## A step of the full objective over a cross-entropy step, on the same forwarded images (target 1.05)",
            "",
            "| backbone | px | images | schane ms | ce ms | ratio, wall | ratio, processor time | schane peak MiB | ce "
            "peak MiB | ratio |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *objective,
            "",
            "## Time of gradient caching: a step in chunks over the same step whole (one more forward pass)",
            "",
            "| backbone | px | batch | chunk | chunks ms | whole ms | ratio, wall | ratio, processor time |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *caching,
            "",
            "## Peak memory of gradient caching (target 1.3 times batch 64)",
            "",
            "Three AdamW steps of the full objective, two views, in a process of its own. On a CPU the peak is the "
            "resident set's, freed tensors given back to the system; `of steps` is above what rests before "
            "the first step (imports, model, the batch's raw pixels). On CUDA it is max_memory_allocated.",
            "",
            "| backbone | px | batch | chunk | peak MiB | ratio | of steps MiB | ratio |",
            "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
            *memory,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="steps in a block")
    parser.add_argument("--markdown", type=Path, help="write the tables here too")
    parser.add_argument("--options", action="store_true", help="time and memory of the options alone")
    parser.add_argument("--memory-of", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--option-memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        backbone, size, batch, chunk, loss = arguments.memory_of
        return memory_of(backbone, int(size), int(batch), int(chunk) or None, loss)
    if arguments.option_memory:
        return print_option_memory(*json.loads(arguments.option_memory))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        if arguments.options:
            option_rows(arguments, device, Path(place))
            return None
        tables = [
            against_timm(arguments, device, Path(place)),
            objective_cost(arguments, device, Path(place)),
            caching_cost(arguments, device, Path(place)),
            memory_rows("vit_tiny_patch16_224", 96),
        ]
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(report(arguments, device, tables, load))


if __name__ == "__main__":
    main()
