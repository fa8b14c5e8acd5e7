"""Random views: crop, flip, policy, colour, blur, erasing, with every number of a view a function of its key alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from schane_cli.images import augmentation
from schane_cli.recipe import AugmentRecipe

_ATTEMPTS = 10  # crops tried before the central one, as in torchvision's RandomResizedCrop
_STRONG = 26  # numbers of blur (2), solarize (1) and erasing (1 + 22)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def view_keys(seed: int, epochs: np.ndarray, indices: np.ndarray, views: int) -> np.ndarray:
    """The 64-bit keys (n, views) of the views of n images, from (seed, epoch, index, view) alone."""
    key = _mix(np.full(len(indices), np.uint64(seed % 2**64)))
    key = _mix(key + epochs.astype(np.uint64))
    key = _mix(key + indices.astype(np.uint64))
    return _mix(key[:, None] + np.arange(views, dtype=np.uint64))


def uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) for each key (n,): float64 (n, count). SplitMix64 as a stream per key."""
    steps = (np.arange(1, count + 1, dtype=np.uint64)) * _GOLDEN
    return (_mix(keys[:, None] + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): neighbouring states come out unrelated."""
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def crop_boxes(
    draws: np.ndarray, sizes: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """Boxes (n, 4) of top, left, height, width for images of `sizes` (n, 2), height first.

    The distribution of torchvision's RandomResizedCrop: area uniform in `scale`, log aspect ratio uniform in
    `ratio`, ten attempts, then the largest central crop of a ratio in range. `draws` is (n, 22), uniform.
    """
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    area = (height * width)[:, None] * (scale[0] + draws[:, :_ATTEMPTS] * (scale[1] - scale[0]))
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + draws[:, _ATTEMPTS : 2 * _ATTEMPTS] * (high - low))
    wide, tall = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (wide > 0) & (wide <= width[:, None]) & (tall > 0) & (tall <= height[:, None])
    first = fits.argmax(1)
    rows = np.arange(len(sizes))
    any_fits = fits[rows, first]
    central_height, central_width = _central(height, width, ratio)
    box_height = np.where(any_fits, tall[rows, first], central_height)
    box_width = np.where(any_fits, wide[rows, first], central_width)
    top = np.where(any_fits, np.floor(draws[:, -2] * (height - box_height + 1)), (height - box_height) // 2)
    left = np.where(any_fits, np.floor(draws[:, -1] * (width - box_width + 1)), (width - box_width) // 2)
    return np.stack([top, left, box_height, box_width], axis=1).astype(np.int64)


def _central(height: np.ndarray, width: np.ndarray, ratio: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Height and width of the largest box with an aspect ratio in range."""
    box_height = np.where(width / height < ratio[0], np.round(width / ratio[0]), height)
    box_width = np.where(width / height > ratio[1], np.round(height * ratio[1]), width)
    return box_height, box_width


class RandomViews:
    """uint8 images (3, H, W) of any size -> random uint8 views (3, size, size).

    `many(images, keys)` draws from the keys alone; calling the object on one image draws its key from torch's default
    generator, so that it serves as a transform anywhere. `second` makes the views after an image's first where
    `augment.second` sets them apart, and is None where all are drawn alike.

    The steps, each with its own probability: rotation, crop, flip, policy, colour jitter, greyscale, blur, solarize,
    erasing.
    """

    def __init__(self, augment: AugmentRecipe, size: int) -> None:
        self.augment, self.size = augment, size
        self.policy = augmentation.make_policy(augment.policy, size) if augment.policy != "none" else None
        second = augment.second_view
        self.second = RandomViews(second, size) if second is not None else None

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        key = torch.randint(-(2**63), 2**63 - 1, (1,)).numpy().view(np.uint64)
        return self.many([image], key)[0]

    def many(self, images: Sequence[torch.Tensor], keys: np.ndarray) -> torch.Tensor:
        """One view of each image, by its key: uint8 (n, 3, size, size)."""
        augment = self.augment
        is_strong = bool(augment.blur or augment.solarize or augment.erase)
        draws = uniforms(keys, 2 * _ATTEMPTS + 14 + _STRONG * is_strong)
        shape, rest, strong = np.split(draws, [2 * _ATTEMPTS + 2, 2 * _ATTEMPTS + 14], axis=1)
        sizes = np.array([image.shape[1:] for image in images])
        boxes = crop_boxes(shape, sizes, augment.crop_scale, augment.crop_ratio).tolist()
        flips = (rest[:, 0] < augment.flip).tolist()
        angles = ((2 * rest[:, 11] - 1) * augment.rotation).tolist()
        views = torch.empty(len(images), 3, self.size, self.size, dtype=torch.uint8)
        for view, image, box, flip, angle in zip(views, images, boxes, flips, angles, strict=True):
            view.copy_(self._cut(image, box, flip, angle))
        own_keys = _mix(keys)  # not the keys themselves, whose streams the numbers above are of
        if self.policy is not None:
            augmentation.apply_policy(views, self.policy, own_keys.tolist())
        self._recolor(views, rest)
        if is_strong:
            self._distort(views, strong, own_keys.tolist())
        return views

    def _distort(self, views: torch.Tensor, draws: np.ndarray, keys: list[int]) -> None:
        """Blur, solarize and erase as many views as their probabilities say; `draws` is (n, 26)."""
        for row in np.flatnonzero(draws[:, 0] < self.augment.blur):
            augmentation.blur(views[row], float(draws[row, 1]))
        for row in np.flatnonzero(draws[:, 2] < self.augment.solarize):
            augmentation.solarize(views[row])
        for row in np.flatnonzero(draws[:, 3] < self.augment.erase):
            augmentation.erase(views[row], draws[row, 4:], keys[row])

    def _cut(self, image: torch.Tensor, box: list[int], flip: bool, angle: float) -> torch.Tensor:
        if self.augment.rotation:
            image = tv.rotate_image(image, angle, interpolation=InterpolationMode.BILINEAR)
        top, left, height, width = box
        cropped = image[:, top : top + height, left : left + width]
        if (height, width) != (self.size, self.size):
            cropped = torch.nn.functional.interpolate(
                cropped.unsqueeze(0), size=[self.size, self.size], mode="bicubic", antialias=True
            )[0]
        return cropped.flip(-1) if flip else cropped

    def _recolor(self, views: torch.Tensor, draws: np.ndarray) -> None:
        augment = self.augment
        strength = np.array(augment.color_jitter)
        low = np.maximum(np.append(1 - strength[:3], -strength[3]), [0, 0, 0, -0.5])
        high = np.append(1 + strength[:3], min(strength[3], 0.5))
        factors = low + draws[:, 1:5] * (high - low)
        order = np.argsort(draws[:, 5:9], axis=1)
        jittered = (draws[:, 9] < augment.color_jitter_p) & bool(strength.any())
        recolor(views, factors, order, jittered, draws[:, 10] < augment.grayscale)


_LUMA = (0.2989, 0.587, 0.114)
_TINY = 1e-8
_PIXELS_AT_ONCE = 2**14  # work that stays in the processor's cache


def recolor(
    images: torch.Tensor, factors: np.ndarray, order: np.ndarray, jittered: np.ndarray, grey: np.ndarray
) -> None:
    """Colour jitter and greyscale in place on uint8 images (n, 3, H, W).

    `factors` (n, 4) are brightness, contrast, saturation (1: unchanged) and hue (0: unchanged, in turns); `order`
    (n, 4) is their order; `jittered` and `grey` (n,) say which images are changed at all.
    """
    rows = max(1, _PIXELS_AT_ONCE // (images.shape[-1] * images.shape[-2]))
    touched = np.flatnonzero(jittered | grey)
    for start in range(0, len(touched), rows):
        index = touched[start : start + rows]
        part: slice | torch.Tensor = torch.from_numpy(index) if rows > 1 else slice(index[0], index[0] + 1)
        pixels = images[part].float().div_(255)
        _jitter(pixels, factors[index], order[index], jittered[index])
        _to_grey(pixels, grey[index])
        images[part] = pixels.mul_(255).add_(0.5).to(torch.uint8)  # every step above ends within [0, 1]


def _jitter(pixels: torch.Tensor, factors: np.ndarray, order: np.ndarray, jittered: np.ndarray) -> None:
    steps = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    for place in range(order.shape[1]):
        for step, adjust in enumerate(steps):
            rows = np.flatnonzero(jittered & (order[:, place] == step))
            if not len(rows) or not np.any(factors[rows, step] != (0 if step == 3 else 1)):
                continue
            factor = torch.from_numpy(factors[rows, step].astype(np.float32)).view(-1, 1, 1)
            if len(rows) == len(pixels):
                adjust(pixels, factor)
            else:
                chosen = torch.from_numpy(rows)
                part = pixels[chosen]
                adjust(part, factor)
                pixels[chosen] = part


def _to_grey(pixels: torch.Tensor, grey: np.ndarray) -> None:
    if grey.any():
        chosen = torch.from_numpy(np.flatnonzero(grey))
        pixels[chosen] = luma(pixels[chosen]).unsqueeze(1).expand(-1, 3, -1, -1)


def luma(pixels: torch.Tensor) -> torch.Tensor:
    """Grey value (n, H, W) of float images (n, 3, H, W), ITU-R 601 as in torchvision and PIL."""
    red, green, blue = pixels.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def adjust_brightness(pixels: torch.Tensor, factor: torch.Tensor) -> None:
    """Scale float images (n, 3, H, W) in [0, 1] by `factor` (n, 1, 1), in place."""
    pixels.mul_(factor.unsqueeze(1)).clamp_(0, 1)


def adjust_contrast(pixels: torch.Tensor, factor: torch.Tensor) -> None:
    """Blend with the image's mean grey, in place; factor 0 is all grey, 1 the image itself."""
    grey = luma(pixels)
    total = grey.sum(
        (1, 2), dtype=torch.float64
    )  # in double, so that it does not depend on the other images of the call
    mean = (total / grey[0].numel()).float().view(-1, 1, 1, 1)
    factor = factor.unsqueeze(1)
    pixels.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation(pixels: torch.Tensor, factor: torch.Tensor) -> None:
    """Blend with each pixel's grey, in place; factor 0 is grey, 1 the image itself."""
    grey = luma(pixels).mul_(1 - factor).unsqueeze(1)
    pixels.mul_(factor.unsqueeze(1)).add_(grey).clamp_(0, 1)


def adjust_hue(pixels: torch.Tensor, turn: torch.Tensor) -> None:
    """Turn the hue by `turn` (n, 1, 1) in [-0.5, 0.5], in place.

    With v the largest channel, c the range of the three and h the hue in [0, 1), channel k of 5, 3, 1 is
    v - c * clamp(2 - t, 0, 1) = v - 2c + c * clamp(t, 1, 2), where t = |6 frac(h + k/6) - 2|. Selection is by 0/1
    factors, since torch.where costs ten times a product here.
    """
    red, green, blue = pixels.unbind(1)
    value = torch.maximum(red, green)
    torch.maximum(value, blue, out=value)
    span = torch.minimum(red, green)
    torch.minimum(span, blue, out=span)
    torch.sub(value, span, out=span)
    inverse = span.clamp(min=_TINY).reciprocal_().div_(6)
    hue = (red - green).mul_(inverse).add_(4 / 6)
    other = (blue - red).mul_(inverse).add_(2 / 6)
    hue = other.lerp_(hue, (value - green).mul_(1e12).clamp_(0, 1))
    other = (green - blue).mul_(inverse)
    hue = other.lerp_(hue, (value - red).mul_(1e12).clamp_(0, 1)).add_(turn + 1)  # + 1: frac keeps a sign
    base = value.sub_(span, alpha=2)
    for channel, offset in enumerate((5, 3, 1)):
        sector = torch.add(hue, offset / 6).frac_().mul_(6).sub_(2).abs_().clamp_(1, 2)
        torch.addcmul(base, span, sector, out=pixels[:, channel])
