"""Corruptions: repeatable, within range, and worse with severity."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from schane_cli.images.corruptions import CORRUPTIONS, SEVERITIES, corrupt


@pytest.fixture(scope="module", params=[32, 64])
def photograph(request: pytest.FixtureRequest) -> np.ndarray:
    whole = Image.fromarray(load_sample_images().images[0]).crop((100, 0, 527, 427))
    return np.asarray(whole.resize((request.param, request.param), Image.Resampling.LANCZOS))


def test_there_are_a_dozen_kinds_or_more() -> None:
    assert len(CORRUPTIONS) >= 12
    assert all(len(strengths) == len(SEVERITIES) == 5 for _, strengths in CORRUPTIONS.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_repeats_and_grows_with_severity(photograph: np.ndarray, name: str) -> None:
    before = photograph.copy()
    damaged = [corrupt(photograph, name, severity, 3) for severity in SEVERITIES]
    assert np.array_equal(photograph, before)
    for severity, image in zip(SEVERITIES, damaged, strict=True):
        assert image.dtype == np.uint8
        assert image.shape == photograph.shape
        assert np.array_equal(image, corrupt(photograph, name, severity, 3))
    errors = [np.square(image.astype(float) - photograph).mean() for image in damaged]
    assert errors[0] > 1
    assert errors == sorted(errors)


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog"])
def test_each_image_is_damaged_in_its_own_way(photograph: np.ndarray, name: str) -> None:
    assert not np.array_equal(corrupt(photograph, name, 5, 0), corrupt(photograph, name, 5, 1))


def test_known_cases() -> None:
    half = np.full((32, 32, 3), 128, np.uint8)
    assert np.array_equal(corrupt(half, "gaussian_blur", 5, 0), half)
    assert np.array_equal(corrupt(half, "contrast", 5, 0), half)
    assert (corrupt(half, "brightness", 1, 0) == round(128 + 0.08 * 255)).all()
    assert np.std(corrupt(half, "gaussian_noise", 3, 0) / 255) == pytest.approx(0.08, rel=0.05)
