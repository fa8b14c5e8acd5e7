"""Model and images to embeddings, projections and logits: one pass, in order, sharded over processes."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from schane_cli.distributed import rank, world_size
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import Damage, eval_loader
from schane_cli.images.preprocessing import InputSpec, eval_transform
from schane_cli.models.model import Outputs, SchaneModel
from schane_cli.recipe import TrainRecipe
from schane_cli.terminal import Task

LARGEST_BATCH = 256  # images a pass without gradients; more are no faster


@dataclass(frozen=True)
class Features:
    """Outputs for the n images of a set, float32 on the CPU, row i for image i; labels int64 (n,)."""

    embedding: torch.Tensor  # (n, d)
    projection: torch.Tensor  # (n, p)
    logits: torch.Tensor  # (n, C)
    labels: torch.Tensor  # (n,)


def scoring_batch(settings: TrainRecipe) -> int:
    """Images a pass when a model is scored: what training takes at a time, at most LARGEST_BATCH.

    A logit's last bits depend on how many images share its pass, so whoever scores a model takes this size: then the
    val figures that training records are those of `schane eval`.
    """
    return min(settings.chunk_size or settings.batch_size, LARGEST_BATCH)


def normalise(images: torch.Tensor, spec: InputSpec, device: torch.device) -> torch.Tensor:
    """uint8 (n, 3, S, S) -> float on `device`, by the backbone's own mean and std."""
    mean = torch.tensor(spec.mean, device=device).view(3, 1, 1) * 255
    std = torch.tensor(spec.std, device=device).view(3, 1, 1) * 255
    return images.to(device, non_blocking=True).float().sub_(mean).div_(std)


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """bfloat16 autocast: always for `bfloat16`, on CUDA devices that support it for `auto`, never for `off`."""
    enabled = amp == "bfloat16" or (amp == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def forward(model: nn.Module, pixels: torch.Tensor, spec: InputSpec, device: torch.device, amp: str) -> Outputs:
    """The one forward pass, in training and after it: pixels (n, 3, S, S) in [0, 255] to outputs on `device`."""
    images = normalise(pixels, spec, device)
    with autocast(device, amp):
        return model(images)


def computed(model: nn.Module, pixels: torch.Tensor, spec: InputSpec, device: torch.device, amp: str) -> Outputs:
    """As `forward`, with the outputs in float32 on the CPU."""
    return Outputs(*(tensor.float().cpu() for tensor in forward(model, pixels, spec, device, amp)))


@torch.no_grad()
def extract(
    model: SchaneModel,
    images: ImageSet,
    spec: InputSpec,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    amp: str = "off",
    task: Task | None = None,
    damage: Damage | None = None,
) -> Features:
    """Every image of the set through the model (eval mode) once; `damage` changes what it sees (corruptions.py).

    The batches are the same for any number of processes, and each process takes every world-size-th, so that outputs
    agree bit for bit. All make equally many forward passes, since those of a model that is split over processes wait
    for each other.
    """
    model.eval()
    batches = [np.arange(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]
    own = np.concatenate([np.arange(0), *batches[rank() :: world_size()]])
    loader = eval_loader(
        images,
        eval_transform(spec),
        batch_size=batch_size,
        workers=workers,
        indices=own,
        damage=damage,
    )
    columns: list[torch.Tensor] = []
    done = passes = 0
    for pixels, _, _ in loader:
        outputs = computed(model, pixels, spec, device, amp)
        columns = columns or [part.new_empty(len(own), *part.shape[1:]) for part in outputs]
        for column, part in zip(columns, outputs, strict=True):
            column[done : done + len(part)] = part
        done, passes = done + len(pixels), passes + 1
        if task is not None:
            task.advance(len(pixels) * world_size())
    for _ in range(passes, math.ceil(len(batches) / world_size())):
        computed(model, torch.zeros(1, 3, spec.size, spec.size, dtype=torch.uint8), spec, device, amp)
    embedding, projection, logits = _gather(columns, own, len(images))
    return Features(embedding, projection, logits, torch.from_numpy(images.labels))


def _gather(columns: list[torch.Tensor], own: np.ndarray, total: int) -> list[torch.Tensor]:
    if world_size() == 1:
        return columns
    shares: list = [None] * world_size()
    dist.all_gather_object(shares, (own, columns))
    shares = [share for share in shares if len(share[0])]
    whole = [torch.empty(total, *column.shape[1:]) for column in shares[0][1]]
    for indices, share in shares:
        for place, column in zip(whole, share, strict=True):
            place[torch.from_numpy(indices)] = column
    return whole
