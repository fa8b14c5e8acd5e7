"""Time and memory of the contrastive losses against their peers; the table of results/benchmarks/loss.md.

    python benchmarks/loss.py                          ours, the anchor loop and the bare product
    python benchmarks/loss.py --peers                  pytorch-metric-learning's SupConLoss too (pip install it first)
    python benchmarks/loss.py --release PATH           the anchor loop is the release's own, from a checkout
    python benchmarks/loss.py --memory                 peak memory, in processes of their own

Everything is forward + backward, in one process, one after the other in every round, so that what disturbs one
disturbs all; a time is the median over rounds, a ratio the median of the rounds' ratios. On CUDA the sizes, the peers
and the floor of the device are those of a GPU.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from schane_cli.losses.contrastive import SchaneLoss, SupConLoss

TEMPERATURE = 0.5
Run = Callable[[], None]


def anchor_loop(projection: Tensor, labels: Tensor) -> Tensor:
    """The objective with Python loops over anchors in the order of work of the release: one loop picks each anchor's
    negatives, one makes their weights, one sums. Hardness 1."""
    z = torch.nn.functional.normalize(projection, dim=1)
    similarity = torch.exp(z @ z.T / TEMPERATURE)
    same = labels[:, None] == labels
    others = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (similarity * others).sum(1) / others.sum(1)
    negatives = [similarity[i].masked_select(~same[i]) for i in range(len(z))]
    weights = [row.log().exp() for row in negatives]
    weighted = [(w * row).sum() / w.mean() for w, row in zip(weights, negatives, strict=True)]
    return -torch.log(positive / (positive + torch.stack(weighted))).mean()


def release_loop(checkout: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """The release's `SCHaNe` from a checkout of GLA-IR/SCHaNe, fed two views as it wants them."""
    spec = importlib.util.spec_from_file_location("release_losses", checkout / "CL_tools" / "losses.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"no CL_tools/losses.py under {checkout}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def loss(projection: Tensor, labels: Tensor) -> Tensor:
        views = torch.stack(torch.nn.functional.normalize(projection, dim=1).chunk(2), 1)
        half = len(labels) // 2
        device = str(projection.device)
        return module.SCHaNe(views, 0.1, half, 1.0, "hard", TEMPERATURE, labels[:half], device)

    return loss


def step(loss: Callable[[Tensor, Tensor], Tensor], projection: Tensor, labels: Tensor) -> Run:
    def run() -> None:
        projection.grad = None
        loss(projection, labels).backward()
        if projection.is_cuda:
            torch.cuda.synchronize()

    return run


def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run in every round, after one round of warming up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:
                times[name].append(time.perf_counter() - start)
    return times


def batch(n: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(100, (n // 2,)).repeat(2)
    return torch.randn(n, d, device=device, requires_grad=True), labels.to(device)


def bare(projection: Tensor, labels: Tensor) -> Tensor:
    return (projection @ projection.T).sum()


def peers(options: argparse.Namespace) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    ours = {"schane": SchaneLoss(temperature=TEMPERATURE), "supcon": SupConLoss(temperature=TEMPERATURE)}
    runs: dict[str, Callable[[Tensor, Tensor], Tensor]] = {**ours, "bare z @ z.T": bare}
    if options.peers:
        from pytorch_metric_learning.losses import SupConLoss as PmlSupCon

        runs["PML SupCon"] = PmlSupCon(temperature=TEMPERATURE)
    if options.device == "cuda":
        dense = SchaneLoss(temperature=TEMPERATURE, backend="dense", check_finite=False)
        runs |= {
            "schane tf32": SchaneLoss(temperature=TEMPERATURE, allow_tf32=True),
            "dense eager": dense,
            "dense compiled": torch.compile(dense),
        }
    return runs


def table(n: int, d: int, runs: dict[str, Callable[[Tensor, Tensor], Tensor]], options: argparse.Namespace) -> None:
    """Prints one row per run: median milliseconds, and our time over its time, round by round."""
    projection, labels = batch(n, d, options.device)
    times = measure({name: step(run, projection, labels) for name, run in runs.items()}, options.rounds)
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["schane"], seconds, strict=True))
        least = min(times["schane"]) / min(seconds)
        memory = f"{cuda_megabytes(step(runs[name], projection, labels)):.0f}" if options.device == "cuda" else ""
        milliseconds = 1e3 * statistics.median(seconds)
        print(f"| {n:,} | {d} | {name} | {milliseconds:.1f} | {ratio:.3f} | {least:.3f} | {memory} |", flush=True)


def cuda_megabytes(run: Run) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


PEAK = """
import sys, torch
from schane_cli.losses import SchaneLoss, SupConLoss
name, n, d, temperature = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
def high_water():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
criterion = {"schane": SchaneLoss, "supcon": SupConLoss}[name](temperature=temperature, backend="tiled")
z, labels = torch.randn(n, d, requires_grad=True), torch.arange(n) % 1000
warm = torch.randn(2048, d, requires_grad=True)
criterion(warm, labels[:2048]).backward()
peaks = []
for _ in range(2 if n > 10000 else 4):
    z.grad = torch.zeros_like(z)
    open("/proc/self/clear_refs", "w").write("5")
    before = high_water()
    criterion(z, labels).backward()
    peaks.append((high_water() - before) / 1024)
print(min(peaks))
"""


def memory_table() -> None:
    """Peak resident memory over inputs and their gradient, of forward + backward on CPU (Linux)."""
    print("| n | d | temperature | loss | MiB over the inputs |\n|---|---|---|---|---|")
    cases = [("schane", 8192, 128, 0.5), ("schane", 8192, 128, 0.01), ("supcon", 8192, 128, 0.5)]
    cases += [("schane", 65536, 128, 0.5)]
    for case in cases:
        words = [str(value) for value in case]
        # a fixed threshold: else glibc keeps freed tensors in its heap, and they count as there before
        fixed = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        run = subprocess.run(
            [sys.executable, "-c", PEAK, *words], capture_output=True, text=True, check=True, env=fixed
        )
        name, n, d, temperature = case
        print(f"| {n:,} | {d} | {temperature} | {name} | {float(run.stdout):.0f} |", flush=True)


def gpu_floor(n: int, d: int) -> None:
    """What an H200-class device must at least spend: its own measured matrix rate, and 3 products of 2 n n d flops."""
    a = torch.randn(8192, 8192, device="cuda")
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        seconds = statistics.median(measure({"mm": lambda: (a @ a, torch.cuda.synchronize())[0]}, 5)["mm"])
        rate = 2 * 8192**3 / seconds
        floor = 1e3 * 3 * 2 * n * n * d / rate
        name = "TF32" if allowed else "fp32"
        print(f"n = {n:,}, d = {d}: {name} products at {rate / 1e12:.0f} TFLOP/s: floor {floor:.1f} ms")
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"exponentials: {3 * n * n:.2e} at hardness 1; bytes moved at least: {6 * n * d * 4 / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="measure pytorch-metric-learning too")
    parser.add_argument("--release", type=Path, help="checkout of GLA-IR/SCHaNe whose own loop to measure")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time (CPU)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{platform.processor() or platform.machine()}, {device}, torch {torch.__version__}, {time.strftime('%F')}\n")
    if options.memory:
        return memory_table()
    print("| n | d | forward + backward of | ms | schane / this | by the least times | MiB |\n" + "|---" * 7 + "|")
    if options.device == "cuda":
        return gpu_tables(options)
    loop = release_loop(options.release) if options.release else anchor_loop
    schane = SchaneLoss(temperature=TEMPERATURE)
    table(2048, 128, {"schane": schane, "anchor loop": loop}, options)
    for d in (128, 768):
        table(4096, d, peers(options), options)


def gpu_tables(options: argparse.Namespace) -> None:
    for n in (2048, 8192, 32768):
        table(n, 128, peers(options), options)
    lean = {name: run for name, run in peers(options).items() if name in ("schane", "schane tf32", "supcon")}
    table(65536, 128, lean, options)
    options.rounds = 1
    table(1048576, 128, {"schane": lean["schane"]}, options)
    gpu_floor(65536, 128)


if __name__ == "__main__":
    main()
