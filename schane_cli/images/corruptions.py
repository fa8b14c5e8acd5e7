"""Fourteen deterministic image corruptions at five severities, usable from 32 px up.

The kinds are those of ImageNet-C and CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking neural network robustness to
common corruptions and perturbations", ICLR 2019, arXiv:1903.12261) that need no photographs of frost or water. The
strengths are this module's own, not theirs: lengths scale with the image's side, so that a severity means the same at
32 px as at 224. Results are therefore not comparable with published mCE.
"""

import io
from collections.abc import Callable
from zlib import crc32

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image

SEVERITIES = (1, 2, 3, 4, 5)
Floats = NDArray[np.float32]
Corruption = Callable[[Floats, float, np.random.Generator], Floats]


def _gaussian_noise(image: Floats, sigma: float, rng: np.random.Generator) -> Floats:
    return image + rng.normal(0, sigma, image.shape).astype(np.float32)


def _shot_noise(image: Floats, photons: float, rng: np.random.Generator) -> Floats:
    return (rng.poisson(np.clip(image, 0, 1) * photons) / photons).astype(np.float32)


def _impulse_noise(image: Floats, share: float, rng: np.random.Generator) -> Floats:
    hit = rng.random(image.shape) < share
    return np.where(hit, rng.integers(0, 2, image.shape), image).astype(np.float32)


def _speckle_noise(image: Floats, sigma: float, rng: np.random.Generator) -> Floats:
    return image * (1 + rng.normal(0, sigma, image.shape).astype(np.float32))


def _gaussian_blur(image: Floats, radius: float, _: np.random.Generator) -> Floats:
    sigma = radius * _scale(image)
    return np.asarray(scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest"), np.float32)


def _defocus_blur(image: Floats, radius: float, _: np.random.Generator) -> Floats:
    r = radius * _scale(image)
    reach = int(np.ceil(r)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = np.clip(r + 0.5 - np.hypot(x, y), 0, 1)  # soft at the rim: a disk of one pixel has one too
    return _convolve(image, disk)


def _motion_blur(image: Floats, length: float, rng: np.random.Generator) -> Floats:
    half = length * _scale(image) / 2
    reach = int(np.ceil(half)) + 1
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return _convolve(image, np.clip(1 - np.abs(across), 0, 1) * np.clip(half + 0.5 - np.abs(along), 0, 1))


def _zoom_blur(image: Floats, most: float, _: np.random.Generator) -> Floats:
    side_y, side_x = image.shape[:2]
    total = image.copy()
    factors = np.linspace(1, 1 + most, 7)[1:]
    for factor in factors:
        large = scipy.ndimage.zoom(image, (factor, factor, 1), order=1)
        top, left = (large.shape[0] - side_y) // 2, (large.shape[1] - side_x) // 2
        total += large[top : top + side_y, left : left + side_x]
    return np.asarray(total / (len(factors) + 1), np.float32)


def _fog(image: Floats, thickness: float, rng: np.random.Generator) -> Floats:
    cloud = np.zeros(image.shape[:2], np.float32)
    for octave in range(4):
        cloud += _smooth_noise(image.shape[:2], 2 ** (octave + 1), rng) * 2.0**-octave
    cloud = 0.4 + 0.6 * (cloud - cloud.min()) / max(float(np.ptp(cloud)), 1e-6)
    return (image + thickness * cloud[..., None]) / (1 + thickness)


def _brightness(image: Floats, shift: float, _: np.random.Generator) -> Floats:
    return image + np.float32(shift)


def _contrast(image: Floats, kept: float, _: np.random.Generator) -> Floats:
    mean = image.mean((0, 1), keepdims=True)
    return (image - mean) * np.float32(kept) + mean


def _desaturate(image: Floats, kept: float, _: np.random.Generator) -> Floats:
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    return grey[..., None] + np.float32(kept) * (image - grey[..., None])


def _pixelate(image: Floats, kept: float, _: np.random.Generator) -> Floats:
    picture, size = _to_pil(image), (image.shape[1], image.shape[0])
    small = picture.resize([max(2, round(side * kept)) for side in size], Image.Resampling.BOX)
    return _from_pil(small.resize(size, Image.Resampling.NEAREST))


def _jpeg(image: Floats, quality: float, _: np.random.Generator) -> Floats:
    buffer = io.BytesIO()
    _to_pil(image).save(buffer, "jpeg", quality=int(quality))
    return _from_pil(Image.open(buffer))


# name -> (what it does, its strength at each severity); lengths in pixels of a 32 px image
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float, float, float]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.10, 0.12)),
    "shot_noise": (_shot_noise, (300, 120, 70, 45, 30)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.04, 0.07, 0.11)),
    "speckle_noise": (_speckle_noise, (0.06, 0.12, 0.20, 0.28, 0.36)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.8, 1.0, 1.5)),
    "defocus_blur": (_defocus_blur, (0.6, 0.9, 1.2, 1.6, 2.2)),
    "motion_blur": (_motion_blur, (1.5, 2.5, 3.5, 5.0, 7.0)),
    "zoom_blur": (_zoom_blur, (0.06, 0.11, 0.16, 0.24, 0.33)),
    "fog": (_fog, (0.3, 0.6, 1.0, 1.5, 2.2)),
    "brightness": (_brightness, (0.08, 0.16, 0.24, 0.32, 0.42)),
    "contrast": (_contrast, (0.75, 0.55, 0.4, 0.25, 0.15)),
    "desaturate": (_desaturate, (0.7, 0.5, 0.3, 0.15, 0.0)),
    "pixelate": (_pixelate, (0.85, 0.7, 0.55, 0.45, 0.35)),
    "jpeg": (_jpeg, (60, 35, 22, 14, 8)),
}


def corrupt(pixels: NDArray[np.uint8], name: str, severity: int, index: int) -> NDArray[np.uint8]:
    """Image `index` as it comes out of a corruption, the same on every call and machine: uint8 (H, W, 3) to the same.

    `severity` is 1 to 5. Anything random (noise, direction, clouds) is drawn from (name, index), so that a higher
    severity is more of the same corruption.
    """
    act, strengths = CORRUPTIONS[name]
    rng = np.random.default_rng((crc32(name.encode()), index))
    image: Floats = pixels.astype(np.float32) / np.float32(255)
    damaged = act(image, strengths[severity - 1], rng)
    return np.rint(np.clip(damaged, 0, 1) * 255).astype(np.uint8)


def _scale(image: Floats) -> float:
    return min(image.shape[:2]) / 32


def _convolve(image: Floats, kernel: NDArray[np.float64]) -> Floats:
    reach = kernel.shape[0] // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    kernel = (kernel / kernel.sum())[..., None]
    return scipy.signal.fftconvolve(padded, kernel, mode="valid", axes=(0, 1)).astype(np.float32)


def _smooth_noise(shape: tuple[int, ...], cells: int, rng: np.random.Generator) -> Floats:
    """A random field in [0, 1] that changes over about `cells` cells per side."""
    coarse = Image.fromarray(rng.random((cells + 1, cells + 1), dtype=np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), np.float32)


def _to_pil(image: Floats) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))


def _from_pil(image: Image.Image) -> Floats:
    return np.asarray(image, np.float32) / np.float32(255)
