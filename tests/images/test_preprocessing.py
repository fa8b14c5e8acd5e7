"""The model sees of an image what timm shows it."""

from dataclasses import asdict
from functools import cache

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import v2

from schane_cli.images.preprocessing import InputSpec, eval_transform, stored_input, timm_input

BACKBONES = [  # every interpolation, crop mode and unusual crop share of timm's weights
    "resnet18.a1_in1k",
    "resnet50.tv_in1k",
    "resnet50.a1_in1k",
    "mobilenetv2_100.ra_in1k",
    "mobilenetv3_small_050.lamb_in1k",
    "tf_efficientnet_lite0.in1k",
    "tf_efficientnet_b1.ns_jft_in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_clip_224.openai",
    "vit_small_patch14_dinov2.lvd142m",
    "convnext_tiny.fb_in22k",
    "beit3_base_patch16_224.pt",
    "inception_v3.tv_in1k",
    "dla34.in1k",
    "xcit_nano_12_p8_224.fb_in1k",
    "densenet121.ra_in1k",
    "regnety_002.pycls_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "deepseek_vit_412m.deepseek_v4_flash_vision_exp",
    "vgg11.tv_in1k",
]


@cache
def _images(count: int) -> list[np.ndarray]:
    """Cuts of two photographs in every shape from 20 px to whole, tiny ones and noise among them."""
    generator, photographs = np.random.default_rng(0), load_sample_images().images
    images = [*photographs, generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)]
    while len(images) < count:
        photograph = photographs[len(images) % 2]
        height, width = (int(generator.integers(20, side)) for side in photograph.shape[:2])
        top, left = (int(generator.integers(0, side - length))
                     for side, length in zip(photograph.shape, (height, width), strict=False))  # fmt: skip
        images.append(photograph[top : top + height, left : left + width].copy())
    return images


@pytest.mark.parametrize("backbone", BACKBONES)
def test_evaluation_pixels_are_those_of_timm_to_the_last_bit(backbone: str) -> None:
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(backbone).to_dict())
    size = min(config["input_size"][-1], 96)  # enough to tell interpolations apart, quick enough to test
    config["input_size"] = (3, size, size)
    theirs, ours = create_transform(**config, is_training=False), eval_transform(timm_input(config, size))
    normalise = v2.Normalize(config["mean"], config["std"])
    for image in _images(50):
        expected = theirs(Image.fromarray(image))
        pixels = ours(torch.from_numpy(image.copy()).permute(2, 0, 1))
        assert pixels.shape == (3, size, size)
        assert pixels.dtype == torch.uint8
        assert (normalise(pixels / 255) - expected).abs().max() < 1e-6


def test_a_checkpoint_of_0_1_0_keeps_its_rounded_size_and_bicubic_resize() -> None:
    old = stored_input({"size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_pct": 0.95})
    assert (old.interpolation, old.crop_mode, old.rounding) == ("bicubic", "center", "round")
    image = _images(1)[0]  # 224 / 0.95 is 235.8
    expected = v2.CenterCrop(224)(Image.fromarray(image).resize((int(236 * 640 / 427), 236), Image.Resampling.BICUBIC))
    assert np.array_equal(
        eval_transform(old)(torch.from_numpy(image.copy()).permute(2, 0, 1)).permute(1, 2, 0), expected
    )


@pytest.mark.parametrize("rounding", ["floor", "round"])
def test_preprocessing_survives_a_checkpoint(rounding: str) -> None:
    spec = InputSpec(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.95, "bilinear", "squash", rounding)
    assert stored_input(asdict(spec)) == spec
