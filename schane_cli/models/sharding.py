"""FSDP2: a backbone that does not fit on one device, its tensors split over all processes.

Checkpoints still hold whole tensors, so that they can be read by one process, by timm and by `schane export`.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from schane_cli.distributed import world_size


def shard(model: nn.Module, backbone: nn.Module, device: torch.device) -> None:
    """Split the parameters of `model`, in place: each block of the backbone is a unit, and everything else is one.

    A unit's parameters are whole only while it computes. Blocks are the members of the backbone's own lists.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    for child in backbone.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            for block in child:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on it."""
    return isinstance(model, FSDPModule)


def share_buffers(model: nn.Module) -> None:
    """The first process's running statistics, on all of them (as DDP does before each forward pass)."""
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)


def whole(value: Any) -> Any:
    """`value`, a tensor or a tree of dicts and lists, with whole tensors for split ones; called by every process."""
    if isinstance(value, DTensor):
        return value.full_tensor().detach().cpu()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


def split_like(value: Any, like: Any) -> Any:
    """A whole tensor split as `like` is, where that is a split one of its shape; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def split_state(state: dict[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """A whole state dict, split as the module's own is."""
    own = module.state_dict()
    return {key: split_like(value, own.get(key)) for key, value in state.items()}


def split_optimizer_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A whole state dict of an optimizer, its moments split as their parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    split = {
        number: {key: split_like(value, parameters[number]) for key, value in moments.items()}
        for number, moments in state["state"].items()
    }
    return {**state, "state": split}
