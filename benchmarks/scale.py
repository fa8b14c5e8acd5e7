"""A folder of very many images: seconds to the first batch and memory, against torchvision's and timm's loaders.

    python benchmarks/scale.py [--images 100000] [--rounds 3] [--place /tmp] [--markdown results/benchmarks/scale.md]
    python benchmarks/scale.py --commands ...    # data check, eval, predict and embed on the same links

The folder is made of hard links to 2,000 different PNG files of 32 x 32 pixels, in 100 classes below train, with one
image in fifty below val and as many below test: it takes no disk, and the system has all files in its cache. Each
figure is that of a fresh process; the contenders take turns. The peers: torchvision's ImageFolder in a DataLoader, and
timm's create_dataset and create_loader, which scan the train folder alone; schane scans all three, and looks for equal
images. The same images are also read from 1,088 shards, which are hard links to eight.
"""

import argparse
import io
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, DISTINCT, BATCH, WORKERS = 100, 2000, 64, 1
SHARDS, DISTINCT_SHARDS = 1088, 8
SHARES = {"train": 0.96, "val": 0.02, "test": 0.02}


def write_links(folder: Path, count: int) -> None:
    """`count` hard links to DISTINCT pictures, which are noise."""
    from PIL import Image

    generator = np.random.default_rng(0)
    (folder / "distinct").mkdir(parents=True)
    for number in range(DISTINCT):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "distinct" / f"{number}.png")
    number = 0
    for split, share in SHARES.items():
        for label in range(CLASSES):
            below = folder / "set" / split / f"n{label:08d}"
            below.mkdir(parents=True)
            for _ in range(round(count * share / CLASSES)):
                os.link(folder / "distinct" / f"{number % DISTINCT}.png", below / f"n{label:08d}_{number}.png")
                number += 1


def write_shards(folder: Path, count: int) -> None:
    """SHARDS hard links to DISTINCT_SHARDS tar files of the pictures, with `count` images in all, or a few fewer."""
    pictures = sorted((folder / "distinct").glob("*.png"))
    (folder / "shards").mkdir()
    number = 0
    for shard in range(DISTINCT_SHARDS):
        with tarfile.open(folder / "distinct" / f"{shard}.tar", "w") as tar:
            for _ in range(count // SHARDS):
                label = str(number % CLASSES).encode()
                for suffix, data in ((".png", pictures[number % DISTINCT].read_bytes()), (".cls", label)):
                    member = tarfile.TarInfo(f"{number:09d}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                number += 1
    ends = np.cumsum([round(share * SHARDS) for share in SHARES.values()])
    for shard in range(SHARDS):
        split = list(SHARES)[min(int(np.searchsorted(ends, shard, side="right")), len(SHARES) - 1)]
        os.link(folder / "distinct" / f"{shard % DISTINCT_SHARDS}.tar", folder / "shards" / f"{split}-{shard:06d}.tar")


def memory(process: int | str = "self") -> dict[str, int]:
    """Bytes that a process has, and has of its own, and the most it had."""
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = {line.partition(":")[0]: line.split()[1] for line in status if line.startswith(("VmRSS", "VmHWM"))}
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    own = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
    return {"now": int(fields["VmRSS"]) * 1024, "peak": int(fields["VmHWM"]) * 1024, "own": own * 1024}


def children() -> list[int]:
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(child) for child in found]


def said(started: float, **values: Any) -> None:
    """Print what a process measured: seconds since it was started, its memory and the memory of its loader process."""
    workers = [memory(child)["own"] for child in children()]
    print(json.dumps({"first": time.time() - started, **memory(), "worker": max(workers, default=0), **values}))
    sys.stdout.flush()


def child_torchvision(started: float, source: str, _: Path) -> None:
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    before, began = memory()["now"], time.time()
    dataset = ImageFolder(f"{source.removeprefix('folder:')}/train", v2.PILToTensor())
    scan = time.time() - began
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS)
    batches = iter(loader)
    next(batches)
    said(started, scan=scan, listed=memory()["now"] - before)


def child_timm(started: float, source: str, _: Path) -> None:
    import torch
    from timm.data import create_dataset, create_loader

    before, began = memory()["now"], time.time()
    dataset = create_dataset("", root=f"{source.removeprefix('folder:')}/train", is_training=True)
    scan = time.time() - began
    device = torch.device("cpu")
    loader = create_loader(
        dataset, (3, 32, 32), BATCH, is_training=True, num_workers=WORKERS, device=device, use_prefetcher=False
    )
    batches = iter(loader)
    next(batches)
    said(started, scan=scan, listed=memory()["now"] - before)


def child_schane(started: float, source: str, place: Path) -> None:
    """A run that measures itself after its second step and is stopped then, or resumed where it was stopped before."""
    from schane_cli.cli import main
    from schane_cli.datasets import load
    from schane_cli.training import hooks

    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            before, began = memory()["now"], time.time()
            result = function(*arguments, **named)
            seconds[name] = time.time() - began
            seconds[f"{name} bytes"] = memory()["now"] - before
            return result

        return call

    import schane_cli.commands.finetune as command

    load.with_content = timed("compare", load.with_content)
    load.read_source = timed("list", load.read_source)
    command.load_splits = timed("load", command.load_splits)  # type: ignore[attr-defined]
    steps: list[int] = []

    def stop(progress: hooks.Progress) -> None:
        steps.append(progress.step)
        if len(steps) == 1:
            total = seconds.get("load", 0.0)
            said(started, scan=total, compare=seconds.get("compare", 0.0), listed=seconds.get("load bytes", 0))
        if len(steps) == 2:
            signal.raise_signal(signal.SIGTERM)

    run = place / "run"
    new = ["--dataset", source, "--data-root", str(place / "root"), "--backbone", "test_resnet",
           "--init", "random", "--epochs", "1", "--batch-size", str(BATCH), "--set", "data.image_size=32",
           "--set", f"data.workers={WORKERS}", "--set", "train.warmup_epochs=0", "--device", "cpu",
           "--out", str(run)]  # fmt: skip
    arguments = ["--resume", str(run)] if (run / "checkpoints" / "last.pt").exists() else new
    with hooks.on_step(stop):
        main(["finetune", *arguments])


def finish(arguments: list[str], *, code: int = 0) -> None:
    """A whole command, which must end with this exit code."""
    from schane_cli.cli import main

    try:
        main(arguments)
    except SystemExit as ended:
        if (ended.code or 0) != code:
            raise


def child_run(started: float, source: str, place: Path) -> None:
    """A run of one epoch, for the commands that take one."""
    data = ["--dataset", source, "--data-root", str(place / "root"), "--set", "data.image_size=32"]
    model = ["--backbone", "test_resnet", "--init", "random", "--epochs", "1", "--set", "train.warmup_epochs=0"]
    finish(["finetune", *data, *model, "--device", "cpu", "--out", str(place / "run")])
    said(started)


def child_command(started: float, source: str, place: Path, name: str) -> None:
    """A whole command on all images of train: its seconds, and the most memory that it and its loader processes had."""
    run, out = str(place / "run"), ["--device", "cpu", "--out", tempfile.mkdtemp(dir=place) + "/out"]
    data = ["--dataset", source, "--data-root", str(place / "root"), "--split", "train"]
    finish(
        {
            "data check": ["data", "check", source, "--data-root", str(place / "root")],
            "eval": ["eval", run, *data, *out],
            "predict": ["predict", run, f"{source.removeprefix('folder:')}/train", *out],
            "embed": ["embed", run, *data, "--points", "2000", *out],
        }[name],
        code=int(name == "data check"),  # which says that the links of one picture are in two splits
    )
    own, others = (resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"first": time.time() - started, "peak": own, "worker": others}))


COMMANDS = ("data check", "eval", "predict", "embed")
CHILDREN = {name.removeprefix("child_"): value for name, value in globals().items() if name.startswith("child_")}


def run(name: str, source: str, place: Path, *more: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, str(time.time()), source, str(place), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=place)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{name} failed: {done.stdout[-500:]} {done.stderr[-2000:]}")
    values: dict[str, float] = json.loads(lines[-1])
    print(name, *more, {key: round(value, 2) for key, value in values.items()}, flush=True)
    return values


def measure(folder: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """What each contender said in each round: schane at its first start, at its second, and resumed."""
    rows: dict[str, list[dict[str, float]]] = {}
    links, shards = f"folder:{folder / 'set'}", f"wds:{folder / 'shards'}"
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as own:
            place = Path(own)
            for name in ("torchvision", "timm"):
                rows.setdefault(name, []).append(run(name, links, place))
            for source, kind in ((links, "schane"), (shards, f"schane, {SHARDS:,} shards")):
                for start in ("first start", "resumed", "second start"):
                    if start == "second start":
                        shutil.rmtree(place / "run")
                    rows.setdefault(f"{kind}, {start}", []).append(run("schane", source, place))
                shutil.rmtree(place / "run")
    return rows


def measure_commands(folder: Path) -> list[str]:
    """A table of whole commands on train of the small folder and of the large one, once each."""
    lines = ["| command | images | s | images per s | peak MiB | peak MiB of a process it starts |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder) as own:
        place = Path(own)
        run("run", f"folder:{folder / 'small' / 'set'}", place)
        for name in COMMANDS:
            for part in ("small", "."):
                source = folder / part / "set"
                n = sum(len(files) for _, _, files in os.walk(source / ("" if name == "data check" else "train")))
                values = run("command", f"folder:{source}", place, name)
                cells = (f"{n:,}", f"{values['first']:.0f}", f"{n / values['first']:.0f}",
                         f"{values['peak'] / 2**20:.0f}", f"{values['worker'] / 2**20:.0f}")  # fmt: skip
                lines.append(f"| `schane {name}` | {' | '.join(cells)} |")
    return lines


def heading(count: int, command: str, load: float) -> list[str]:
    """What was measured, where and when."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "timm"))
    return [
        f"## {count:,} images",
        "",
        f"{model[0].partition(':')[2].strip()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{packages}; {date.today()}; `python benchmarks/scale.py --images {count} {command}`. "
        f"Load average {load:.1f} before, {os.getloadavg()[0]:.1f} after (other work included): seconds are the "
        "machine's share.",
    ]


def report(rows: dict[str, list[dict[str, float]]], count: int) -> list[str]:
    train = round(count * SHARES["train"])
    lines = []
    for name, values in rows.items():
        images = count if name.startswith("schane") else train
        middle = {key: float(np.median([value[key] for value in values])) for key in values[0]}
        cells = (f"{middle['first']:.1f}", f"{middle['scan']:.1f}", f"{middle.get('compare', 0):.1f}",
                 f"{middle['listed'] / images:.0f}", f"{middle['peak'] / 2**20:.0f}",
                 f"{middle['worker'] / 2**20:.0f}")  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    first = [value["scan"] / (peer["scan"] * count / train + value["compare"])
             for value, peer in zip(rows["schane, first start"], rows["torchvision"], strict=True)]  # fmt: skip
    return [
        f"Median of the rounds, contenders in turn, fresh processes, {WORKERS} loader process. First batch (schane: "
        "first training step): seconds since the process started, imports included. Bytes an image: what the process "
        "grew by while the source was read, libraries that this loads included.",
        "",
        "| | first batch, s | source read, s | of it equal images, s | bytes an image | peak MiB | own MiB of the "
        "loader process |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *lines,
        "",
        "Reading the source, at the first start, over ImageFolder's scan (of as many images) plus the search for "
        f"equal images: {np.median(first):.2f} (highest {max(first):.2f}); goal 1.2.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commands", action="store_true", help="whole commands on a tenth of the links and on all")
    parser.add_argument("--place", type=Path, help="where the links are made (default: the system's temporary folder)")
    parser.add_argument("--markdown", type=Path, help="add the table to this file")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, started, source, place, *more = arguments.child
        CHILDREN[name](float(started), source, Path(place), *more)
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.place) as place:
        folder = Path(place)
        write_links(folder, arguments.images)
        if arguments.commands:
            write_links(folder / "small", arguments.images // 10)
            lines, command = measure_commands(folder), "--commands"
        else:
            write_shards(folder, arguments.images)
            lines, command = report(measure(folder, arguments.rounds), arguments.images), f"--rounds {arguments.rounds}"
    text = "\n".join([*heading(arguments.images, command, load), "", *lines, ""])
    print(text)
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        known = arguments.markdown.read_text() if arguments.markdown.exists() else "# A folder of very many images\n"
        arguments.markdown.write_text(f"{known}\n{text}")


if __name__ == "__main__":
    main()
