"""Low-rank adapters (recipe keys model.lora_rank and model.lora_targets), by peft.

LoRA (Hu et al. 2021, arXiv:2106.09685): a layer W of pretrained weights stays as it is, and W + B A is used in its
place, with A (rank, in) drawn at random and B (out, rank) zero. Adapters and heads train, nothing else. The scale
alpha / rank is 1, as in the paper. A checkpoint holds adapters and heads alone, and a hash of the weights that they
belong to; whoever loads it takes these weights from where the run took them, and adds B A to them, so that all that
follows (eval, predict, embed, export) sees an ordinary backbone.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from hashlib import sha256
from re import escape
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import nn

from schane_cli.errors import BadRequest, nearest, require_package
from schane_cli.models.backbone import classifier_keys, classifier_modules


def adaptable_layers(backbone: Any, image_size: int) -> list[str]:
    """Names of the linear and 1x1 layers that an adapter can stand in for, the classifier left out.

    Only layers that a forward pass calls: some backbones take a layer's weight and multiply by themselves, past any
    adapter. Layers that change their weight before they use it (standardised convolutions) could not be merged.
    """
    heads = {id(part) for module in classifier_modules(backbone) for part in module.modules()}
    layers = {
        name: module
        for name, module in backbone.named_modules()
        if id(module) not in heads and (type(module) is nn.Linear or _is_pointwise(module))
    }
    called: set[str] = set()
    handles = [
        layer.register_forward_pre_hook(lambda module, inputs, name=name: called.add(name))
        for name, layer in layers.items()
    ]
    try:
        _pass(backbone, image_size)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in layers if name in called]


def _is_pointwise(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or type(module) not in {nn.Conv2d, Conv2dSame}:
        return False
    return module.kernel_size == (1, 1) and module.groups == 1


@torch.no_grad()
def _pass(backbone: Any, image_size: int) -> None:
    training, device = backbone.training, next(backbone.parameters()).device
    backbone.eval()
    with torch.random.fork_rng(devices=[]):
        backbone(torch.zeros(2, 3, image_size, image_size, device=device))
    backbone.train(training)


def chosen_layers(names: Iterable[str], patterns: Iterable[str], architecture: str) -> list[str]:
    """The layers that the patterns of `model.lora_targets` name: `*` all, `qkv` or `blocks.*.fc1` the ends of names.

    Raises:
        BadRequest: a pattern that names none (the nearest names are given), or a backbone without such layers.
    """
    known = list(names)
    if not known:
        raise BadRequest(f"model.lora_rank: {architecture} has no linear or 1x1 layers that LoRA could adapt")
    chosen: set[str] = set()
    for pattern in patterns:
        matched = [name for name in known if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        if not matched:
            ends = dict.fromkeys(name.rpartition(".")[2] for name in known)
            near = nearest(pattern, [*ends, *known])
            raise BadRequest(
                f"model.lora_targets: {pattern!r} names no linear or 1x1 layer of {architecture}{near}; their names "
                f"end in {', '.join(list(ends)[:8])}"
            )
        chosen |= set(matched)
    return [name for name in known if name in chosen]


def add_lora(backbone: Any, rank: int, patterns: Iterable[str], image_size: int) -> str:
    """Add adapters to the backbone, in place, and freeze all other weights but the classifier's; returns a sentence.

    Raises:
        BadRequest: peft is not installed, or the patterns name no layer.
    """
    require_package("model.lora_rank needs peft", "lora", "peft")
    from peft import LoraConfig, inject_adapter_in_model

    base = base_sha256(backbone)
    names = chosen_layers(adaptable_layers(backbone, image_size), patterns, backbone.default_cfg["architecture"])
    exactly = "|".join(map(escape, names))
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=f"(?:{exactly})")
    inject_adapter_in_model(config, backbone)
    for module in classifier_modules(backbone):
        module.requires_grad_(True)
    backbone.lora_base_sha256 = base
    parameters = list(backbone.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in parameters)
    return f"LoRA of rank {rank} on {len(names)} layers: {trained / 1e6:.2f} M of {total / 1e6:.2f} M weights train"


def has_lora(backbone: Any) -> bool:
    """Whether `add_lora` was called on it."""
    return hasattr(backbone, "lora_base_sha256")


def base_sha256(backbone: Any) -> str:
    """A hash of the weights that adapters are added to: all tensors but the classifier's."""
    digest, heads = sha256(), classifier_keys(backbone)
    for key, tensor in backbone.state_dict().items():
        if key not in heads:
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def lora_keys(backbone: Any) -> set[str]:
    """Names of the tensors that a checkpoint of adapters holds: theirs and the classifier's."""
    return {key for key in backbone.state_dict() if ".lora_" in key} | classifier_keys(backbone)


def merge_lora(backbone: Any) -> None:
    """Add every B A to its layer's weight and take the adapters away: timm's own model and names, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            backbone.set_submodule(name, module.get_base_layer())
    del backbone.peft_config, backbone.lora_base_sha256
    backbone.requires_grad_(True)
