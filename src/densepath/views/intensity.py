"""Operations on intensities and sharpness: pixels of any number of channels, in any number of dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.filters import weighted_rows
from densepath.views.appearance import (
    Appearance,
    change,
    check_not_negative,
    check_probability,
    check_range,
    chosen,
    per_image,
)
from densepath.views.random_streams import Draw, Stream

_BLUR_REACH = 4  # standard deviations: the weights beyond sum to less than 1e-4
_LARGEST_SIGMA = 100  # px; memory and time grow with it


@dataclass(frozen=True)
class IntensityJitter(Appearance):
    """Brightness and contrast, in a random order for each image.

    Args:
        probability: of the intensity jitter.
        brightness: a factor of all values is drawn from [1 - x, 1 + x], at least 0.
        contrast: likewise a factor of the distance to the mean of each channel.
    """

    probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4

    def __post_init__(self) -> None:
        check_probability("the probability of intensity jitter", self.probability)
        check_not_negative("brightness", self.brightness)
        check_not_negative("contrast", self.contrast)

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        numbers = draw(Stream.INTENSITY)  # whether, brightness, contrast, which of the two is first
        spread = torch.tensor((self.brightness, self.contrast))
        low = (1 - spread).clamp(min=0)
        factors = low + (1 + spread - low) * numbers[:, 1:3]

        def brighten(part: Tensor, rows: list[int]) -> Tensor:
            return (part * per_image(factors[rows, 0], part).to(part.device, non_blocking=True)).clamp_(0, 1)

        def stretch(part: Tensor, rows: list[int]) -> Tensor:
            mean = part.mean(tuple(range(2, part.ndim)), keepdim=True)
            return torch.lerp(mean, part, per_image(factors[rows, 1], part).to(part.device, non_blocking=True)).clamp_(
                0, 1
            )

        rows = chosen(draw, Stream.INTENSITY, self.probability)
        brightness_first = set((numbers[:, 3] < 0.5).nonzero().flatten().tolist())
        change(x, [row for row in rows if row in brightness_first], brighten)
        change(x, rows, stretch)
        change(x, [row for row in rows if row not in brightness_first], brighten)
        return x


@dataclass(frozen=True)
class Gamma(Appearance):
    """Values in [0, 1] to a power, with a probability; the power's logarithm is uniform."""

    probability: float = 0.5
    power: tuple[float, float] = (0.7, 1.5)

    def __post_init__(self) -> None:
        check_probability("the probability of gamma", self.probability)
        check_range("the powers of gamma", self.power)

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        low, high = (math.log(power) for power in self.power)

        def to_power(part: Tensor, rows: list[int]) -> Tensor:
            power = torch.exp(low + (high - low) * draw(Stream.GAMMA)[rows, 1])
            return part.pow(per_image(power, part).to(part.device, non_blocking=True))

        change(x, chosen(draw, Stream.GAMMA, self.probability), to_power)
        return x


@dataclass(frozen=True)
class GaussianBlur(Appearance):
    """A Gaussian blur, with a probability.

    Args:
        probability: of a blur.
        sigma: range of the standard deviation, in pixels of the view; at most 100.
    """

    probability: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        check_probability("the probability of blur", self.probability)
        check_sigma("sigma of the blur", self.sigma)

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        low, high = self.sigma

        def blur(part: Tensor, rows: list[int]) -> Tensor:
            return gaussian_blur(part, low + (high - low) * draw(Stream.BLUR)[rows, 1])

        change(x, chosen(draw, Stream.BLUR, self.probability), blur)
        return x


@dataclass(frozen=True)
class GaussianNoise(Appearance):
    """Independent normal noise on each value, with a probability.

    Args:
        probability: of noise.
        std: range of the standard deviation, for values in [0, 1].
    """

    probability: float = 0.5
    std: tuple[float, float] = (0.0, 0.1)

    def __post_init__(self) -> None:
        check_probability("the probability of noise", self.probability)
        check_range("std of the noise", self.std, zero=True)

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        low, high = self.std

        def add_noise(part: Tensor, rows: list[int]) -> Tensor:
            std = (low + (high - low) * draw(Stream.NOISE)[rows, 1]).to(part.device, non_blocking=True)
            count = math.prod(part.shape[1:])
            half = -(-count // 2)
            first, second = draw.pixels(rows, 2 * half, part.device).view(len(rows), 2, half).unbind(1)
            radius = torch.sqrt(-2 * torch.log1p(-first))  # Box and Muller
            normal = torch.cat((radius * torch.cos(2 * math.pi * second), radius * torch.sin(2 * math.pi * second)), 1)
            return (part + per_image(std, part) * normal[:, :count].reshape(part.shape)).clamp_(0, 1)

        change(x, chosen(draw, Stream.NOISE, self.probability), add_noise)
        return x


@dataclass(frozen=True)
class Solarize(Appearance):
    """Inverts values of at least 0.5, with a probability."""

    probability: float = 0.2

    def __post_init__(self) -> None:
        check_probability("the probability of solarization", self.probability)

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        change(x, chosen(draw, Stream.SOLARIZE, self.probability), lambda part, _: solarize(part))
        return x


def check_sigma(name: str, sigma: tuple[float, float]) -> None:
    """Raise UserError where standard deviations of a blur are not a range that can be computed."""
    check_range(name, sigma)
    if sigma[1] > _LARGEST_SIGMA:
        raise UserError(f"{name} is in pixels of the view: at most {_LARGEST_SIGMA}, not {sigma[1]}")


def solarize(x: Tensor) -> Tensor:
    """Invert values of at least 0.5."""
    return torch.where(x >= 0.5, 1 - x, x)


def gaussian_blur(x: Tensor, sigma: Tensor, zeros: bool = False) -> Tensor:
    """Blur (N, C, *spatial), each image by its own standard deviation.

    Sums of weighted rows, one axis after the other: on a CPU many times faster than depthwise convolutions. Weights
    beyond four standard deviations are 0, and are summed in their order, so an image's bits do not depend on the batch.

    Args:
        sigma: (N,) in pixels, on the CPU.
        zeros: whether values beyond the edges are 0; otherwise edge values are repeated there.
    """
    reach = torch.ceil(_BLUR_REACH * sigma)
    most = int(reach.max())
    offsets = torch.arange(-most, most + 1)
    weights = torch.exp(-0.5 * (offsets / sigma.view(-1, 1)) ** 2) * (offsets.abs() <= reach.view(-1, 1))
    weights = (weights / weights.cumsum(1)[:, -1:]).to(x.device, non_blocking=True).unsqueeze(1)  # (N, 1, T)
    weights = weights.repeat_interleave(x.shape[1], dim=0)
    blurred = x.flatten(0, 1).unsqueeze(-1)  # each channel for itself: its rows lie together in memory
    for axis in range(1, x.ndim - 1):
        n = blurred.shape[axis]
        positions = (torch.arange(n).unsqueeze(1) + offsets).to(x.device, non_blocking=True)  # (n, T)
        shape = (len(weights), n, len(offsets))
        used = weights * ((positions >= 0) & (positions < n)) if zeros else weights.expand(shape)
        blurred = weighted_rows(blurred, positions.clamp(0, n - 1).expand(shape), used, axis)
    return blurred.reshape(x.shape)
