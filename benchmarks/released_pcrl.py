"""The views of the released PCRL for radiographs, written plainly in numpy, image by image, in its order."""

from __future__ import annotations

import math
import random

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float64]
SIDE = 224  # pixels
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_GREY = np.array([0.299, 0.587, 0.114])


def released_views(path: str) -> list[Floats]:
    """Both inputs, targets and clean crops (3, 224, 224) of a file."""
    image = np.asarray(Image.open(path).convert("RGB"))
    made = []
    for _ in range(2):
        crop = resized(random_crop(image))
        changed = normalized(jittered(blurred(grey(flipped(rotated(crop, random.uniform(-10, 10)))))))
        for _ in range(3):
            y, x = random.randrange(SIDE), random.randrange(SIDE)
            changed[:, max(0, y - 16) : y + 16, max(0, x - 16) : x + 16] = 0
        made += [changed, transformed(changed), normalized(crop)]
    return made


def random_crop(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A crop of 20 to 100% of the area."""
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * random.uniform(0.2, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if h <= height and w <= width:
            top, left = random.randint(0, height - h), random.randint(0, width - w)
            return image[top : top + h, left : left + w]
    return image


def resized(image: npt.NDArray[np.uint8]) -> Floats:
    """Resized to 224 px with the triangle filter of PIL, which averages when it reduces; in [0, 1]."""
    rows, columns = (_weights(size) for size in image.shape[:2])
    return np.stack([rows @ image[..., c] @ columns.T for c in range(3)], axis=-1) / 255


def _weights(size: int) -> Floats:
    scale = max(size / SIDE, 1.0)
    centers = (np.arange(SIDE) + 0.5) * size / SIDE - 0.5
    weights = np.maximum(1 - np.abs(np.arange(size) - centers[:, None]) / scale, 0)
    return weights / weights.sum(1, keepdims=True)


def rotated(image: Floats, degrees: float) -> Floats:
    """Rotated about the center, nearest pixels, zeros outside."""
    angle, middle = math.radians(degrees), (SIDE - 1) / 2
    y, x = np.mgrid[:SIDE, :SIDE] - middle
    from_x = np.rint(math.cos(angle) * x - math.sin(angle) * y + middle).astype(int)
    from_y = np.rint(math.sin(angle) * x + math.cos(angle) * y + middle).astype(int)
    inside = (from_x >= 0) & (from_x < SIDE) & (from_y >= 0) & (from_y < SIDE)
    out = np.zeros_like(image)
    out[inside] = image[from_y[inside], from_x[inside]]
    return out


def flipped(image: Floats) -> Floats:
    """Flipped horizontally, half of the time."""
    return image[:, ::-1] if random.random() < 0.5 else image


def grey(image: Floats) -> Floats:
    """Grey, a fifth of the time."""
    return np.repeat((image @ _GREY)[..., None], 3, axis=-1) if random.random() < 0.2 else image


def blurred(image: Floats) -> Floats:
    """Blurred with a standard deviation of 0.1 to 2 px, half of the time."""
    if random.random() >= 0.5:
        return image
    sigma = random.uniform(0.1, 2.0)
    at = np.arange(-8, 9)
    kernel = np.exp(-(at**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(image, [(8, 8) if a == axis else (0, 0) for a in range(3)], mode="reflect")
        image = sum(k * np.roll(padded, -i, axis) for i, k in enumerate(kernel))  # type: ignore[assignment]
        image = image[:SIDE] if axis == 0 else image[:, :SIDE]
    return image


def jittered(image: Floats) -> Floats:
    """Brightness, contrast, saturation and hue, in random order, each by up to 0.4."""
    for part in random.sample(range(4), 4):
        factor = random.uniform(0.6, 1.4)
        if part == 0:
            image = np.clip(factor * image, 0, 1)
        elif part == 1:
            image = np.clip(factor * image + (1 - factor) * (image @ _GREY).mean(), 0, 1)
        elif part == 2:
            image = np.clip(factor * image + (1 - factor) * (image @ _GREY)[..., None], 0, 1)
        else:
            image = hue_shifted(image, factor - 1)
    return image


def hue_shifted(image: Floats, shift: float) -> Floats:
    """The hue of each pixel moved by a share of the color circle."""
    high, low = image.max(-1), image.min(-1)
    spread = high - low
    safe = np.where(spread > 0, spread, 1)
    r, g, b = np.moveaxis((high[..., None] - image) / safe[..., None], -1, 0)
    hue = np.where(image[..., 0] == high, b - g, np.where(image[..., 1] == high, 2 + r - b, 4 + g - r))
    hue = (hue / 6 + shift) % 1.0
    saturation = spread / np.where(high > 0, high, 1)
    sector = np.floor(hue * 6)
    rest = hue * 6 - sector
    p, q, t = high * (1 - saturation), high * (1 - saturation * rest), high * (1 - saturation * (1 - rest))
    choices = [(high, t, p), (q, high, p), (p, high, t), (p, q, high), (t, p, high), (high, p, q)]
    return np.stack([np.choose(sector.astype(int) % 6, [each[c] for each in choices]) for c in range(3)], axis=-1)


def normalized(image: Floats) -> Floats:
    """(3, 224, 224) with ImageNet's mean and standard deviation."""
    return np.moveaxis((image - _MEAN) / _STD, -1, 0).copy()


def transformed(image: Floats) -> Floats:
    """Flipped along each axis half of the time, and turned."""
    for axis in (1, 2):
        if random.random() < 0.5:
            image = np.flip(image, axis)
    return np.rot90(image, random.randint(0, 3), (1, 2)).copy()
