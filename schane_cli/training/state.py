"""What a training run carries from step to step, to and from the plain values of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3

from schane_cli.distributed import rank, world_size
from schane_cli.errors import BadRequest
from schane_cli.models.checkpoint import restore
from schane_cli.models.model import SchaneModel
from schane_cli.models.sharding import split_optimizer_state, whole
from schane_cli.training.objective import Objective
from schane_cli.training.random_state import random_state, set_random_state


@dataclass
class Parts:
    """The parts of a run that hold tensors from step to step, and the device whose random numbers it draws."""

    model: SchaneModel
    objective: Objective
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    device: torch.device


def collect(parts: Parts) -> dict[str, Any]:
    """Optimiser, EMA, objective (its memory) and the random state of every process; called by all of them."""
    states: list[Any] = [random_state(parts.device)]
    if world_size() > 1:
        states = [None] * world_size()
        dist.all_gather_object(states, random_state(parts.device))
    return {
        "optimizer": whole(parts.optimizer.state_dict()),
        "ema": parts.ema.module.state_dict() if parts.ema is not None else None,
        "objective": parts.objective.state_dict(),
        "random": states,
        "world_size": world_size(),
    }


def put_back(parts: Parts, content: dict[str, Any], path: Path) -> None:
    """The state in the checkpoint `content` of `path`; BadRequest where another number of processes made it."""
    training = content["training"]
    if training["world_size"] != world_size():
        raise BadRequest(
            f"this run was made by {training['world_size']} processes and cannot be resumed with {world_size()}: the "
            "random state of each belongs to its place"
        )
    restore(parts.model, content, path)
    try:
        parts.optimizer.load_state_dict(split_optimizer_state(training["optimizer"], parts.optimizer))
        if parts.ema is not None:
            parts.ema.module.load_state_dict(training["ema"])
        parts.objective.load_state_dict(training["objective"])
        set_random_state(training["random"][rank()], parts.device)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadRequest(f"{path} cannot be resumed: its training state does not fit the recipe ({reason})") from None
