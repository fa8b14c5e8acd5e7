"""The self-tests of `schane doctor`: each returns whether it passed (None: a measurement) and a sentence."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schane_cli.features.extract import autocast
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import StepSampler, train_loader, train_transform, worker_count
from schane_cli.losses import SchaneLoss
from schane_cli.models.model import build_model, place
from schane_cli.recipe import Recipe, build_recipe
from schane_cli.terminal import Terminal
from schane_cli.training.gradient import Batch, cached_backward, chunk_backward, whole_backward
from schane_cli.training.interruption import Interrupted
from schane_cli.training.job import prepare, train
from schane_cli.training.objective import Objective

LOSS_TOLERANCE = 1e-4  # relative, of values and gradients in fp32 against the double loop in fp64
CACHING_TOLERANCE = 1e-4  # relative to the largest entry of the whole batch's gradient
TINY = {
    "data.image_size": 32,
    "data.workers": 0,
    "model.backbone": "test_vit",
    "model.weights": "random",
    "model.drop_path": 0.1,
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.warmup_epochs": 0,
    "train.amp": "off",
}


def losses_agree(device: torch.device) -> tuple[bool, str]:
    """Every backend of the loss against a double loop over anchors and pairs, in value and gradient."""
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(48, 16, generator=generator), torch.arange(48) % 5
    expected = _value_and_gradient(partial(double_loop, temperature=0.3, hardness=1.5), rows.double(), labels)
    differences = {}
    for backend in ("dense", "tiled", *(["triton"] if device.type == "cuda" else [])):
        criterion = SchaneLoss(temperature=0.3, hardness=1.5, backend=backend)  # type: ignore[arg-type]
        given = _value_and_gradient(criterion, rows.to(device), labels.to(device))
        differences[backend] = max(_relative(a, b) for a, b in zip(given, expected, strict=True))
    text = ", ".join(f"{name} {value:.0e}" for name, value in differences.items())
    return max(differences.values()) <= LOSS_TOLERANCE, f"relative difference from the double loop: {text}"


def double_loop(projection: Tensor, labels: Tensor, *, temperature: float, hardness: float) -> Tensor:
    """L_SCHaNe of projections (n, d), written as arXiv:2308.14893 prints it, anchor by anchor."""
    unit = F.normalize(projection, dim=1)
    losses = []
    for i in range(len(unit)):
        similarity = unit @ unit[i]
        positive = (labels == labels[i]) & (torch.arange(len(labels)) != i)
        negative = labels != labels[i]
        weights = (hardness * similarity[negative] / temperature).exp()
        weights = weights / weights.mean()
        negatives = (weights * (similarity[negative] / temperature).exp()).sum()
        positives = (similarity[positive] / temperature).exp().mean()
        losses.append(-(positives / (positives + negatives)).log())
    return torch.stack(losses).mean()


def _value_and_gradient(loss: Callable[[Tensor, Tensor], Tensor], rows: Tensor, labels: Tensor) -> list[Tensor]:
    rows = rows.clone().requires_grad_()
    value = loss(rows, labels)
    value.backward()
    assert rows.grad is not None
    return [value.detach(), rows.grad]


def _relative(given: Tensor, expected: Tensor) -> float:
    return float((given.double().cpu() - expected).abs().max() / expected.abs().max())


def caching_is_exact(device: torch.device) -> tuple[bool, str]:
    """The gradient of a batch in chunks against that of the whole batch, drop path included."""
    recipe = build_recipe({}, TINY | {"model.drop_path": 0.0})
    torch.manual_seed(0)
    model = place(build_model(recipe.model, 4, 32), device).train()
    objective = Objective(recipe.loss, torch.ones(4), recipe.model.projection_dim)
    labels = torch.arange(8).repeat(2).to(device) % 4
    rows = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    batch = Batch(rows, labels, torch.arange(8).repeat(2).to(device), None)
    whole = _gradients(model, partial(whole_backward, model, objective, batch))
    chunks = partial(
        cached_backward, model, objective, batch, chunk_rows=5, model=model, device=device, unsynchronised=_nothing
    )
    difference = _relative(_gradients(model, chunks), whole.double().cpu())
    return difference <= CACHING_TOLERANCE, f"chunks of 5 of 16 rows differ from the whole batch by {difference:.0e}"


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _gradients(model: torch.nn.Module, backward: Callable[[], Any]) -> Tensor:
    model.zero_grad(set_to_none=True)
    backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def resume_is_exact(device: torch.device) -> tuple[bool, str]:
    """A run stopped by SIGTERM after its first epoch and resumed, against one never stopped: equal bit for bit."""
    with tempfile.TemporaryDirectory(prefix="schane-doctor-") as folder:
        recipe = build_recipe({}, TINY | {"device": str(device)})
        whole = _train(recipe, Path(folder) / "whole")
        stopped = Path(folder) / "stopped"
        try:
            _train(recipe, stopped, stop_after=1)
        except Interrupted:
            pass
        else:
            return False, "SIGTERM did not stop the run"
        resumed = _train(recipe, stopped, resume=True)
    equal = all(torch.equal(whole[key], resumed[key]) for key in whole)
    return (
        equal,
        "a stopped and resumed run ends with the same weights" if equal else "a resumed run ends with other weights",
    )


def _train(recipe: Recipe, out: Path, *, stop_after: int | None = None, resume: bool = False) -> Mapping[str, Tensor]:
    images = _noise(64, 32)
    job = prepare(
        recipe, images, images, "finetune", out=out, terminal=Terminal(quiet=True), resume=out if resume else None
    )
    epochs = iter(range(1, recipe.train.epochs + 2))

    def validate(model: Any) -> tuple[float, float]:
        if next(epochs) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.5, 1.0

    job.validate = validate
    train(job)
    return {key: value.clone() for key, value in job.model.state_dict().items()}


def _noise(count: int, size: int, classes: int = 4) -> ImageSet:
    """`count` pictures of noise, `size` pixels square, held in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    names = tuple(map(str, range(classes)))
    return ImageSet("noise", "train", pixels, np.arange(count) % classes, names, tuple(map(str, range(count))))


def loader_speed() -> tuple[None, str]:
    """Views per second of the default augmentation at 224 px, with the number of workers that a run here would have."""
    recipe = build_recipe({}, {"train.batch_size": 32})
    images = _noise(128, 256)
    workers = worker_count(recipe.data, images)
    sampler = StepSampler(images.labels, batch_size=32, epochs=4, seed=0)
    transform = train_transform(recipe.augment, 224)
    loader = train_loader(images, sampler, transform, views=2, workers=workers, pin_memory=False)
    batches = iter(loader)
    next(batches)  # starts the workers
    started, views = time.perf_counter(), 0
    for pixels, _, _ in batches:
        views += pixels.shape[0] * pixels.shape[1]
        if time.perf_counter() - started > 3:
            break
    rate = views / (time.perf_counter() - started)
    with_workers = "1 worker" if workers == 1 else f"{workers} workers"
    return None, f"{rate:.0f} views/s at 224 px with {with_workers}, from pictures in memory"


def step_speed(device: torch.device, backbone: str, image_size: int) -> tuple[None, str]:
    """Images per second forward and backward through the backbone, 8 at a time."""
    model, optimizer = _trainable(device, backbone, image_size)
    rows = torch.randn(8, 3, image_size, image_size, device=device)
    chunk_backward(partial(_forward, model, device), rows, optimizer)
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < 3:
        chunk_backward(partial(_forward, model, device), rows, optimizer)
        steps += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    rate = 8 * steps / (time.perf_counter() - started)
    return None, f"{rate:.1f} images/s forward and backward, {backbone} at {image_size} px"


def _trainable(device: torch.device, backbone: str, image_size: int) -> tuple[Any, torch.optim.Optimizer]:
    recipe = build_recipe({"model": {"backbone": backbone, "weights": "random"}})
    model = place(build_model(recipe.model, 10, image_size), device).train()
    return model, torch.optim.AdamW(model.parameters())


def _forward(model: Any, device: torch.device, rows: Tensor) -> Any:
    with autocast(device, "auto"):
        return model(rows)


def largest_batch(device: torch.device, backbone: str, image_size: int) -> tuple[None, str]:
    """The most images in one pass, by doubling; not tried on a CPU, where memory is swapped before it runs out."""
    if device.type != "cuda":
        return None, f"not tried on {device.type}; --chunk-size bounds the memory of a step whatever the batch"
    model, optimizer = _trainable(device, backbone, image_size)
    fitting, rows = 0, 8
    while rows <= 4096:
        try:
            chunk_backward(
                partial(_forward, model, device), torch.randn(rows, 3, image_size, image_size, device=device), optimizer
            )
        except torch.OutOfMemoryError:
            break
        fitting, rows = rows, 2 * rows
    torch.cuda.empty_cache()
    return None, f"{fitting} images in one pass of {backbone} at {image_size} px; for more, --chunk-size {fitting}"
