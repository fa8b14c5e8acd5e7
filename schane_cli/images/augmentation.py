"""Strong augmentation of a view: timm's and torchvision's policies, blur, solarize and erasing.

Those policies draw their numbers from the global streams of Python, numpy and torch. Here each view has these streams
seeded by its own key and then put back, so that a view stays a function of its key alone, whichever process makes it.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    gaussian_blur,
    rand_augment_transform,
)
from timm.data.auto_augment import posterize as timm_posterize
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from schane_cli.errors import BadRequest
from schane_cli.recipe import AugmentRecipe
from schane_cli.timm_names import TRIVIAL_AUGMENT, require_policy

Picture = Image.Image
Policy = Callable[[Picture], Picture]

_FILL = (128, 128, 128)
_TRIALS = 32
_BLUR_SIGMA = (0.1, 2.0)  # pixels; SimCLR, BYOL and DINO draw from this range
_SOLARIZE_FROM = 128  # of 255; BYOL's threshold
_ERASED_AREA, _ERASED_ASPECT, _ERASE_ATTEMPTS = (0.02, 1 / 3), (0.3, 1 / 0.3), 10  # timm's defaults


def check_policies(augment: AugmentRecipe) -> None:
    """BadRequest for an `augment.policy`, or one of `augment.second`, that timm and torchvision do not have.

    A policy is also tried on a small picture: some that can be parsed cannot be run (more operations without
    replacement than there are).
    """
    for key, views in (("augment.policy", augment), ("augment.second.policy", augment.second_view)):
        if views is None or views.policy == "none":
            continue
        policy = make_policy(views.policy, 8, key)
        picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
        try:
            with streams_put_back():
                for number in range(_TRIALS):
                    seed_streams(number)
                    policy(picture)
        except (ValueError, TypeError, OSError, ArithmeticError) as error:
            raise BadRequest(f"{key}: {views.policy!r} cannot be run: {error}") from None


def make_policy(name: str, size: int, key: str = "augment.policy") -> Policy:
    """The policy called `name`, for pictures of `size` pixels, as timm's `create_transform` and torchvision make it.

    Raises:
        BadRequest: a policy, or an option of one, that they do not know; it names `key`.
    """
    if name == TRIVIAL_AUGMENT:
        return v2.TrivialAugmentWide()
    require_policy(name, key)
    make: Any = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}.get(
        name.partition("-")[0], auto_augment_transform
    )
    settings = {
        "translate_const": int(size * 0.45),
        "img_mean": _FILL,
        "interpolation": Image.Resampling.BICUBIC,
        **({"translate_pct": 0.3} if name.startswith("augmix") else {}),
    }
    try:
        policy: Policy = make(name, settings)
    except (AssertionError, ValueError) as error:
        raise BadRequest(f"{key}: timm refuses {name!r} ({error})") from None
    for operation in _operations(policy):
        if operation.aug_fn is timm_posterize:
            operation.aug_fn = _posterize
    return policy


def _operations(policy: Any) -> list[Any]:
    """timm's AugmentOp objects: RandAugment and AugMix hold a list, AutoAugment a list of lists."""
    if hasattr(policy, "ops"):
        return list(policy.ops)
    return [operation for sub_policy in policy.policy for operation in sub_policy]


def _posterize(picture: Picture, bits_to_keep: int, **_: Any) -> Picture:
    """timm's posterize, of which 0 bits leave black. Pillow 13 refuses 0 bits, which timm asks for at magnitude 10:
    rand-m9-mstd0.5-inc1 draws it for about one picture in 650."""
    return timm_posterize(picture, bits_to_keep) if bits_to_keep > 0 else Image.new("RGB", picture.size)


@contextmanager
def streams_put_back() -> Iterator[None]:
    """While inside, the global random streams of Python, numpy and torch's CPU may be seeded; then they are restored.

    Not `torch.manual_seed`: it would seed the GPUs too.
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def seed_streams(key: int) -> None:
    """Seed the three global streams by a 64-bit key; to be called within `streams_put_back`."""
    random.seed(key)
    np.random.seed([key >> 32, key & 0xFFFFFFFF])
    torch.default_generator.manual_seed(key)


def apply_policy(views: torch.Tensor, policy: Policy, keys: Sequence[int]) -> None:
    """One policy on each of the uint8 views (n, 3, S, S), in place, by numbers drawn from its key (n of 64 bits)."""
    with streams_put_back():
        for view, key in zip(views, keys, strict=True):
            seed_streams(key)
            _put(view, policy(_picture(view)))


def blur(view: torch.Tensor, draw: float) -> None:
    """Gaussian blur by timm's kernel (PIL's) of a uint8 view (3, S, S), in place; `draw` in [0, 1) gives sigma, which
    is uniform in 0.1 to 2 pixels."""
    low, high = _BLUR_SIGMA
    _put(view, gaussian_blur(_picture(view), low + (high - low) * draw))


def solarize(view: torch.Tensor) -> None:
    """Invert the values of a uint8 view (3, S, S) from 128 on, in place."""
    view.copy_(tv.solarize_image(view, _SOLARIZE_FROM))


def erase(view: torch.Tensor, draws: np.ndarray, key: int) -> None:
    """Fill one random box of a uint8 view (3, S, S) with noise, in place.

    Random erasing (Zhong et al., arXiv:1708.04896) with timm's boxes: area uniform in 2 % to a third of the view, log
    aspect ratio uniform in 0.3 to 1/0.3, the first of ten that fits. `draws` is (22,), uniform; the noise, drawn from
    the view's key, is uniform over 0 to 255 for each pixel and channel, as in the paper (timm's is normal).
    """
    top, left, height, width = erased_box(draws, view.shape[1], view.shape[2])
    if height and width:
        noise = np.random.default_rng(key).integers(0, 256, (3, height, width), dtype=np.uint8)
        view[:, top : top + height, left : left + width] = torch.from_numpy(noise)


def erased_box(draws: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the box that `draws` (22,) erase; height and width 0 where none of ten fits."""
    (low, high), aspects = _ERASED_AREA, np.log(_ERASED_ASPECT)
    area = height * width * (low + (high - low) * draws[:_ERASE_ATTEMPTS])
    aspect = np.exp(aspects[0] + (aspects[1] - aspects[0]) * draws[_ERASE_ATTEMPTS : 2 * _ERASE_ATTEMPTS])
    tall, wide = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fitting = np.flatnonzero((tall < height) & (wide < width))
    if not len(fitting):
        return 0, 0, 0, 0
    box_height, box_width = int(tall[fitting[0]]), int(wide[fitting[0]])
    top, left = draws[-2] * (height - box_height + 1), draws[-1] * (width - box_width + 1)
    return int(top), int(left), box_height, box_width


def _picture(view: torch.Tensor) -> Picture:
    return Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())


def _put(view: torch.Tensor, picture: Picture) -> None:
    view.copy_(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
