"""Images per second of the training loader against timm's and torchvision's, at the same transforms.

    python benchmarks/loader.py [--rounds 5] [--images 384] [--markdown results/benchmarks/loader.md]
    python benchmarks/loader.py --scan [--images 384]
    python benchmarks/loader.py --policies [--rounds 5] [--images 384]
    python benchmarks/loader.py --before CHECKOUT [--rounds 5] [--images 384]

Two sets: JPEG files of 500 x 375 pixels cut to 224 px, and 32 px images (in memory for schane, PNG files for the
others). Peers: timm's create_loader (its uint8 batches, before normalisation) and torchvision's ImageFolder with v2
transforms in a DataLoader. For two views a peer either passes over the set twice ("2 passes", all that its own
options offer) or wraps its transform by hand to cut both from one decoded image ("wrapped"). Contenders run in turn,
round by round, each with fresh workers, whose start counts; the table gives the median over rounds, and the median
of the ratios within a round. `--before` does the same with the schane of another checkout (`git worktree add`), each
version in a process of its own that stays. `--scan` times what finds equal images in a set of files against decoding
it, in turn. `--policies` takes one view with crop, flip and one policy: RandAugment (at a magnitude without spread:
timm's own fails under Pillow 13 where the spread reaches 10), AugMix and 3-Augment against timm, TrivialAugmentWide
against torchvision.
"""

import argparse
import gc
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from schane_cli.datasets.load import load_splits
from schane_cli.images.content import with_content
from schane_cli.images.imageset import Files, ImageSet, Names
from schane_cli.images.loader import StepSampler, train_loader, train_transform
from schane_cli.images.memory import read_all
from schane_cli.images.transforms import recolor, uniforms, view_keys
from schane_cli.recipe import AugmentRecipe, DataRecipe

BATCH = 64
AUGMENT = AugmentRecipe()
VERSION = """
import gc, os, sys, time
from pathlib import Path
import numpy as np, torch
try:
    from schane_cli.datasets.load import load_splits
    from schane_cli.images.imageset import ImageSet
    from schane_cli.images.loader import StepSampler, train_loader, train_transform
except ImportError:
    from schane_cli.augment import StepSampler, train_loader, train_transform
    from schane_cli.data import ImageSet, load_splits
from schane_cli.recipe import AugmentRecipe, DataRecipe
torch.set_num_threads(1)
jpeg, png = map(Path, sys.argv[1:])
files = sorted(jpeg.rglob("*.jpg"))
labels = np.array([int(file.parent.name) for file in files])
ids = tuple(str(file.relative_to(jpeg)) for file in files)
sets = {
    224: ImageSet("jpeg", "train", files, labels, ("0", "1"), ids),
    32: load_splits(DataRecipe(dataset=f"folder:{png}", val_fraction=0.01, test_fraction=0.01)).train,
}
for line in sys.stdin:
    size, views, workers = map(int, line.split())
    gc.collect()
    started, busy, count = time.perf_counter(), sum(os.times()[:4]), 0
    sampler = StepSampler(sets[size].labels, batch_size=64, epochs=1, seed=0)
    transform = train_transform(AugmentRecipe(), size)
    loader = train_loader(sets[size], sampler, transform, views=views, workers=workers, pin_memory=False)
    for pixels, _, _ in loader:
        count += len(pixels) * views
    del loader, pixels
    print(count / (time.perf_counter() - started), count / (sum(os.times()[:4]) - busy), flush=True)
"""
POLICIES = ("rand-m9-inc1", "augmix-m3", "3a", "ta_wide")


class Twice:
    """Two views of one decoded image: what users of the peers write by hand."""

    def __init__(self, transform: Callable) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> tuple:
        return self.transform(image), self.transform(image)


def write_images(folder: Path, count: int, size: tuple[int, int], suffix: str) -> None:
    """`count` random cuts of two real photographs, in two class folders."""
    generator = np.random.default_rng(0)
    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    for number in range(count):
        label = number % 2
        scale = generator.uniform(0.5, 0.9)
        width, height = int(640 * scale), int(427 * scale)
        left, top = int(generator.integers(640 - width + 1)), int(generator.integers(427 - height + 1))
        cut = photographs[label].resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        path = folder / str(label) / f"{number:04d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        cut.save(path, **({"quality": 90} if suffix == ".jpg" else {}))


def schane(images: ImageSet, size: int, views: int, workers: int, augment: AugmentRecipe = AUGMENT) -> int:
    sampler = StepSampler(images.labels, batch_size=BATCH, epochs=1, seed=0)
    transform = train_transform(augment, size)
    return sum(
        len(labels) * pixels.shape[1]
        for pixels, labels, _ in train_loader(
            images, sampler, transform, views=views, workers=workers, pin_memory=False
        )
    )


def torchvision_folder(folder: Path, size: int, views: int, workers: int, wrapped: bool, trivial: bool = False) -> int:
    colours = [
        v2.RandomApply([v2.ColorJitter(*AUGMENT.color_jitter)], p=AUGMENT.color_jitter_p),
        v2.RandomGrayscale(AUGMENT.grayscale),
    ]
    steps = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=AUGMENT.crop_scale, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            *([v2.TrivialAugmentWide()] if trivial else colours),
            v2.PILToTensor(),
        ]
    )
    dataset = ImageFolder(str(folder), Twice(steps) if wrapped else steps)
    count = 0
    for _ in range(1 if wrapped else views):
        for pixels, labels in DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True):
            count += len(labels) * (len(pixels) if wrapped else 1)
    return count


def timm_loader(folder: Path, size: int, views: int, workers: int, wrapped: bool, policy: str | None = None) -> int:
    dataset = create_dataset("", root=str(folder), is_training=True)
    loader = create_loader(
        dataset,
        input_size=(3, size, size),
        batch_size=BATCH,
        is_training=True,
        scale=AUGMENT.crop_scale,
        color_jitter=AUGMENT.color_jitter if policy is None else None,
        color_jitter_prob=AUGMENT.color_jitter_p,
        grayscale_prob=AUGMENT.grayscale if policy is None else 0.0,
        auto_augment=policy,
        interpolation="bicubic",
        num_workers=workers,
        device=torch.device("cpu"),
        persistent_workers=False,
    )
    if wrapped:
        dataset.transform = Twice(dataset.transform)
    return sum(len(pixels) for _ in range(1 if wrapped else views) for pixels, _ in loader.loader)


def contenders(folder: Path, images: ImageSet, size: int, views: int, workers: int) -> dict[str, Callable[[], int]]:
    named: dict[str, Callable[[], int]] = {"schane": lambda: schane(images, size, views, workers)}
    for wrapped in (False, True) if views == 2 else (False,):
        kind = "" if views == 1 else ", wrapped" if wrapped else ", 2 passes"
        named[f"torchvision{kind}"] = lambda w=wrapped: torchvision_folder(folder, size, views, workers, w)
        named[f"timm{kind}"] = lambda w=wrapped: timm_loader(folder, size, views, workers, w)
    return named


def measure(named: dict[str, Callable[[], int]], rounds: int) -> dict[str, np.ndarray]:
    """(rounds, 2) of each contender, in turn within a round: views per second, and views per second of processor time.

    The second is what the work costs, workers included, and holds still where others use the machine too.
    """
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in named}
    for _ in range(rounds):
        for name, run in named.items():
            started, busy = time.perf_counter(), sum(os.times()[:4])
            count = run()
            gc.collect()  # ends the workers, whose processor time counts from then on
            rates[name].append((count / (time.perf_counter() - started), count / (sum(os.times()[:4]) - busy)))
    return {name: np.array(values) for name, values in rates.items()}


def shares(images: ImageSet, size: int, views: int, suffix: str) -> str:
    """Where one image's processor time goes, on one thread without workers."""
    count = 64
    images.read(0)  # the first one loads the decoder
    started = time.process_time()
    decoded = [images.read(i) for i in range(count)]
    decode = time.process_time() - started
    plain = train_transform(AUGMENT.model_copy(update={"color_jitter_p": 0.0, "grayscale": 0.0}), size)
    keys = view_keys(0, np.zeros(count, np.int64), np.arange(count), views).reshape(-1)
    both = [image for image in decoded for _ in range(views)]
    started = time.process_time()
    cut = plain.many(both, keys)
    crop = time.process_time() - started
    draws = uniforms(keys, 8)
    factors = np.column_stack([0.6 + 0.8 * draws[:, :3], 0.2 * draws[:, 3] - 0.1])
    started = time.process_time()
    recolor(cut, factors, draws[:, 4:].argsort(1), draws[:, 0] < 0.8, draws[:, 1] < 0.2)
    colour = time.process_time() - started
    total = decode + crop + colour
    parts = (("decode", decode), ("crop and flip", crop), ("colour", colour))
    said = ", ".join(f"{name} {1e3 * seconds / count:.2f} ms ({seconds / total:.0%})" for name, seconds in parts)
    return f"- {size} px, {views} view{'s' * (views > 1)} of an image ({suffix}): {said}"


def compare(folder: Path, images: ImageSet, size: int, label: str, rounds: int) -> tuple[list[str], list[str]]:
    rows, where = [], []
    for views in (1, 2):
        where.append(shares(images, size, views, label))
        for workers in (1, 2):
            rates = measure(contenders(folder, images, size, views, workers), rounds)
            ours = rates["schane"]
            for name, values in rates.items():
                ratio, least = np.median(ours / values, axis=0), np.min(ours / values, axis=0)
                said = [f"{a:.2f} ({b:.2f})" if name != "schane" else "" for a, b in zip(ratio, least, strict=True)]
                wall, busy = np.median(values, axis=0)
                cells = (label, size, views, workers, name, f"{wall:,.0f}", said[0], f"{busy:,.0f}", said[1])
                rows.append(f"| {' | '.join(map(str, cells))} |")
                print(rows[-1], flush=True)
    return rows, where


def compare_policies(folder: Path, images: ImageSet, size: int, label: str, rounds: int) -> list[str]:
    """One view by each policy, one worker, against the library whose policy it is."""
    rows = []
    for policy in POLICIES:
        augment = AUGMENT.model_copy(update={"policy": policy, "color_jitter_p": 0.0, "grayscale": 0.0})
        trivial = policy == "ta_wide"
        peer: Callable[[], int] = lambda p=policy: timm_loader(folder, size, 1, 1, False, p)  # noqa: E731
        if trivial:
            peer = lambda: torchvision_folder(folder, size, 1, 1, False, trivial=True)  # noqa: E731
        rates = measure({"schane": lambda a=augment: schane(images, size, 1, 1, a), "peer": peer}, rounds)
        ours, theirs = rates["schane"], rates["peer"]
        ratio, least = np.median(ours / theirs, axis=0), np.min(ours / theirs, axis=0)
        (wall, busy), (wall_peer, busy_peer) = np.median(ours, axis=0), np.median(theirs, axis=0)
        cells = (label, size, policy, "torchvision" if trivial else "timm", f"{wall:,.0f}", f"{wall_peer:,.0f}",
                 f"{ratio[0]:.2f} ({least[0]:.2f})", f"{busy:,.0f}", f"{busy_peer:,.0f}",
                 f"{ratio[1]:.2f} ({least[1]:.2f})")  # fmt: skip
        rows.append(f"| {' | '.join(map(str, cells))} |")
        print(rows[-1], flush=True)
    return rows


def scan(images: ImageSet, rounds: int) -> str:
    """What the search for equal images costs against decoding all images on as many threads, by processor time."""
    ratios = []
    for _ in range(rounds):
        started = time.process_time()
        with_content({"all": images}, lambda _: None)
        scanned = time.process_time() - started
        started = time.process_time()
        for _ in read_all(images):
            pass
        ratios.append(scanned / (time.process_time() - started))
    each = 1e6 * scanned / len(images)
    return (
        f"- equal images among {len(images)} JPEG files: {each:.0f} us an image, {np.median(ratios):.3f} of decoding "
        f"(median of {rounds} rounds; at most {max(ratios):.3f})"
    )


@contextmanager
def version(checkout: Path, jpeg: Path, png: Path) -> Iterator[Callable[[int, int, int], list[float]]]:
    """The loader of a checkout in its own process: (size, views, workers) -> views per second, and per CPU second."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    command = [sys.executable, "-c", VERSION, str(jpeg), str(png)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=jpeg
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def one_pass(size: int, views: int, workers: int) -> list[float]:
            asked.write(f"{size} {views} {workers}\n")
            asked.flush()
            return [float(value) for value in answers.readline().split()]

        yield one_pass
        asked.close()


def _in_turn(now: Callable, then: Callable, number: int, pass_: tuple[int, int, int]) -> list[list[float]]:
    """Both versions' speeds, the later one measured first in every other round."""
    measured = {one: one(*pass_) for one in ((now, then) if number % 2 else (then, now))}
    return [measured[now], measured[then]]


def compare_versions(before: Path, jpeg: Path, png: Path, rounds: int) -> list[str]:
    """Rows of views per second of processor time, of this checkout and an earlier one, in turn after a first round.

    Each row: the best of the rounds, which other work on the machine disturbed least, of both; their ratio; and the
    median (lowest to highest) of the rounds' ratios.
    """
    rows = []
    with version(Path(__file__).parents[1], jpeg, png) as now, version(before, jpeg, png) as then:
        for size, views, workers in ((s, v, w) for s in (224, 32) for v in (1, 2) for w in (0, 1)):
            pairs = np.array([_in_turn(now, then, number, (size, views, workers)) for number in range(rounds + 1)])[1:]
            busy = pairs[:, :, 1]
            best, ratios = busy.max(axis=0), busy[:, 0] / busy[:, 1]
            cells = ("JPEG files" if size == 224 else "in memory", size, views, workers, f"{best[0]:,.0f}",
                     f"{best[1]:,.0f}", f"{best[0] / best[1]:.2f}",
                     f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})")  # fmt: skip
            rows.append(f"| {' | '.join(map(str, cells))} |")
            print(rows[-1], flush=True)
    return rows


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())


def report(rows: list[str], where: list[str], rounds: int, count: int, load: tuple[float, float]) -> str:
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "timm", "pillow"))
    return "\n".join(
        [
            "# The training loader against timm's and torchvision's",
            "",
            f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}; {date.today()};",
            f"`python benchmarks/loader.py --rounds {rounds} --images {count}`. Views per second, median of {rounds} "
            "interleaved rounds;",
            "ratio: schane over that loader, median (lowest) of the rounds' ratios. Batches of 64 uint8 images,",
            "workers' start included. Load of the machine before and after, other work included: "
            f"{load[0]:.1f}, {load[1]:.1f}.",
            "",
            "| set | px | views | workers | loader | views/s | ratio | views/CPU s | ratio |",
            "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            "Where an image's processor time goes in schane, one thread:",
            "",
            *where,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=384, help="images of the 224 px set; the 32 px set has 8x")
    parser.add_argument("--scan", action="store_true", help="time the search for equal images alone")
    parser.add_argument("--policies", action="store_true", help="time the augmentation policies alone")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="compare with the loader of this checkout")
    parser.add_argument("--markdown", type=Path, help="write the table here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows, where = [], []
    with tempfile.TemporaryDirectory() as place:
        jpeg, png = Path(place) / "jpeg", Path(place) / "png"
        write_images(jpeg, arguments.images, (500, 375), ".jpg")
        write_images(png, 8 * arguments.images, (32, 32), ".png")
        if arguments.before:
            compare_versions(arguments.before, jpeg, png, arguments.rounds)
            return
        files = sorted(jpeg.rglob("*.jpg"))
        labels = np.array([int(path.parent.name) for path in files])
        names = Names(str(file.relative_to(jpeg)) for file in files)
        streamed = ImageSet("jpeg", "train", Files(jpeg, names), labels, ("0", "1"), names)
        if not arguments.policies:
            where.append(scan(streamed, arguments.rounds))
        if arguments.scan:
            print(where[0])
            return
        recipe = DataRecipe(dataset=f"folder:{png}", val_fraction=0.01, test_fraction=0.01)
        in_memory = load_splits(recipe).train
        for folder, images, size, label in ((jpeg, streamed, 224, "JPEG files"), (png, in_memory, 32, "in memory")):
            if arguments.policies:
                compare_policies(folder, images, size, label, arguments.rounds)
                continue
            more_rows, more_where = compare(folder, images, size, label, arguments.rounds)
            rows, where = rows + more_rows, where + more_where
    if arguments.policies:
        return
    text = report(rows, where, arguments.rounds, arguments.images, (load, os.getloadavg()[0]))
    print("\n".join(where))
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
