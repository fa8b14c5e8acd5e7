"""What a model sees of an image when it is evaluated: timm's own preprocessing, to the pixel."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import floor
from typing import Any, Literal

import torch
from PIL import Image
from timm.data import create_transform

EvalTransform = Callable[[torch.Tensor], torch.Tensor]  # uint8 (3, H, W) -> uint8 (3, S, S)


@dataclass(frozen=True)
class InputSpec:
    """How an image file becomes the backbone's input, in timm's terms (timm.data.resolve_data_config).

    `size`: side of the square input, pixels. `mean`, `std`: per channel, of values in [0, 1]. `crop_pct`: the short
    side is resized to size / crop_pct before the crop. `crop_mode`: center, squash (both sides are resized, the aspect
    ratio is lost) or border (the long side is resized, the rest is filled with the mean).
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    rounding: Literal["floor", "round"] = "floor"  # of size / crop_pct; schane 0.1.0 rounded where timm takes the floor

    @property
    def timm_crop_pct(self) -> float:
        """The crop share with which timm, which takes the floor, resizes to the same side."""
        side = self.size / self.crop_pct
        resized = round(side) if self.rounding == "round" else floor(side)
        return self.crop_pct if floor(side) == resized else self.size / (resized + 0.5)


def timm_input(config: Mapping[str, Any], size: int) -> InputSpec:
    """The preprocessing of timm's data configuration (`timm.data.resolve_data_config`), for images of `size` pixels."""
    return InputSpec(
        size,
        tuple(config["mean"]),
        tuple(config["std"]),
        float(config["crop_pct"]),
        config["interpolation"],
        config["crop_mode"],
    )


def stored_input(values: Mapping[str, Any]) -> InputSpec:
    """The preprocessing that a checkpoint was trained with; one of 0.1.0 names no interpolation and was rounded."""
    values = {"interpolation": "bicubic", "crop_mode": "center", "rounding": "round", **values}
    return replace(timm_input(values, values["size"]), rounding=values["rounding"])


def eval_transform(spec: InputSpec) -> EvalTransform:
    """uint8 (3, H, W) -> uint8 (3, S, S): timm's evaluation transform, up to but without the normalisation.

    It resizes by PIL as timm does: torchvision's resize of tensors is faster, but differs by up to 7 of 255, which is
    enough to change predictions.
    """
    transform = create_transform(
        input_size=(3, spec.size, spec.size),
        is_training=False,
        use_prefetcher=True,  # stop before the normalisation
        interpolation=spec.interpolation,
        mean=spec.mean,  # fills the border
        crop_pct=spec.timm_crop_pct,
        crop_mode=spec.crop_mode,
    )

    def as_timm_does(image: torch.Tensor) -> torch.Tensor:
        return transform(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))

    return as_timm_does
