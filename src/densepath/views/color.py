"""Operations on colors: pixels of three channels, red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.views.appearance import Appearance, change, check_not_negative, check_probability, chosen, per_image
from densepath.views.intensity import IntensityJitter
from densepath.views.random_streams import Draw, Stream

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow and torchvision
# Optical densities of red, green and blue in hematoxylin, eosin and the residual (DAB): Ruifrok and Johnston, 2001.
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
_DARKEST = 1 / 255


@dataclass(frozen=True)
class StainJitter(Appearance):
    """Random changes of hematoxylin, eosin and a residual stain, in optical density.

    Args:
        probability: of the stain jitter.
        strength: factors are drawn from [1 - x, 1 + x] and shifts (of optical density) from [-x, x].

    Source: Tellez et al., IEEE TMI 2018.
    """

    probability: float = 0.5
    strength: float = 0.05
    channels: ClassVar[int | None] = 3
    turned_off_by: ClassVar[tuple[str, ...]] = ("stain",)

    def __post_init__(self) -> None:
        check_probability("the probability of stain jitter", self.probability)
        check_not_negative("the strength of stain jitter", self.strength)

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        def jitter(part: Tensor, rows: list[int]) -> Tensor:
            factors = 1 + self.strength * (2 * draw(Stream.STAIN_FACTORS)[rows, :3] - 1)
            return jitter_stain(part, factors, self.strength * (2 * draw(Stream.STAIN_SHIFTS)[rows, :3] - 1))

        change(x, chosen(draw, Stream.STAIN, self.probability), jitter)
        return x


@dataclass(frozen=True)
class ColorJitter(Appearance):
    """Brightness, contrast, saturation and hue, in a random order for each image, as torchvision's ColorJitter.

    Args:
        probability: of the color jitter.
        brightness, contrast, saturation: a factor is drawn from [1 - x, 1 + x], at least 0.
        hue: a shift is drawn from [-x, x], as a share of the color circle; at most 0.5.
    """

    probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    channels: ClassVar[int | None] = 3
    turned_off_by: ClassVar[tuple[str, ...]] = ("saturation", "hue")

    def __post_init__(self) -> None:
        check_probability("the probability of color jitter", self.probability)
        for name in ("brightness", "contrast", "saturation", "hue"):
            check_not_negative(name, getattr(self, name))
        if self.hue > 0.5:
            raise UserError(f"hue is a share of the color circle, at most 0.5, not {self.hue}")

    @property
    def changes_colors(self) -> bool:
        return self.saturation > 0 or self.hue > 0

    def without_color(self) -> Appearance:
        """Brightness and contrast remain."""
        return IntensityJitter(self.probability, self.brightness, self.contrast)

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        rows = chosen(draw, Stream.JITTER, self.probability)
        orders = draw(Stream.JITTER_ORDER).argsort(dim=1, stable=True).tolist()  # (N, 4): the order of the operations
        spread = torch.tensor((self.brightness, self.contrast, self.saturation, self.hue))
        middle = torch.tensor((1.0, 1.0, 1.0, 0.0))
        low = torch.cat(((middle - spread)[:3].clamp(min=0), -spread[3:]))
        factors = low + (middle + spread - low) * draw(Stream.JITTER_FACTORS)
        operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
        useful = [number for number in range(4) if spread[number] > 0]
        for turn in range(4):
            rows_of: list[list[int]] = [[] for _ in operations]
            for row in rows:
                rows_of[orders[row][turn]].append(row)
            for number in useful:

                def adjust(part: Tensor, rows: list[int], number: int = number) -> Tensor:
                    return operations[number](part, factors[rows, number].to(part.device, non_blocking=True))

                change(x, rows_of[number], adjust)
        return x


@dataclass(frozen=True)
class Grayscale(Appearance):
    """A grey view, still of three channels, with a probability."""

    probability: float = 0.2
    channels: ClassVar[int | None] = 3
    turned_off_by: ClassVar[tuple[str, ...]] = ("grayscale",)

    def __post_init__(self) -> None:
        check_probability("the probability of a grey view", self.probability)

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        rows = chosen(draw, Stream.GRAYSCALE, self.probability)
        change(x, rows, lambda part, _: luma(part).expand_as(part))
        return x


def luma(x: Tensor) -> Tensor:
    """(N, 1, *spatial): the grey value of each pixel."""
    red, green, blue = x.unbind(1)
    return (_LUMA[0] * red).add_(_LUMA[1] * green).add_(_LUMA[2] * blue).unsqueeze(1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply colors (N, 3, *spatial) in [0, 1] by factors (N,)."""
    return (x * per_image(factor, x)).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Move colors away from (factor > 1) or towards the image's mean grey."""
    mean = luma(x).mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    return torch.lerp(mean, x, per_image(factor, x)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Move colors away from (factor > 1) or towards the pixel's grey."""
    return torch.lerp(luma(x), x, per_image(factor, x)).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the color circle by shifts (N,), as shares of a full turn."""
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp(min=1e-12).reciprocal_()
    hue = torch.where(value == green, (blue - red).mul_(scale).add_(2), (red - green).mul_(scale).add_(4))
    hue = torch.where(value == red, (green - blue).mul_(scale), hue).add_(6 * per_image(shift, hue))
    out, four = torch.empty_like(x), x.new_full((), 4.0)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        k = hue + offset
        rest = (k / 6).floor_()
        k.sub_(rest, alpha=6)  # several times faster than torch.remainder
        torch.minimum(k, torch.sub(four, k, out=rest), out=k).clamp_(0, 1).mul_(chroma)
        torch.sub(value, k, out=out[:, channel])
    return out


def jitter_stain(x: Tensor, factors: Tensor, shifts: Tensor) -> Tensor:
    """Change the amount of each stain in a view.

    Colors are converted to optical densities, and these to amounts of hematoxylin, eosin and a residual; amount *
    factor + shift is converted back. All of this is one 3 x 3 matrix and an offset for each image.

    Args:
        x: (N, 3, *spatial) in [0, 1].
        factors, shifts: (N, 3), for hematoxylin, eosin and the residual, on the CPU.

    Source: Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 2001; Tellez et al., IEEE TMI 2018.
    """
    stains = torch.tensor(_STAINS, dtype=x.dtype)
    stains = stains / stains.norm(dim=1, keepdim=True)
    # The small matrices are computed on the CPU: an inverse on the device would synchronize with it.
    change = torch.linalg.inv(stains) @ torch.diag_embed(factors) @ stains  # (N, 3, 3), density -> density
    offset = (shifts @ stains).unsqueeze(-1).to(x.device, non_blocking=True)
    density = -torch.log(x.clamp(min=_DARKEST)).flatten(2)  # (N, 3, pixels)
    density = torch.baddbmm(offset, change.transpose(1, 2).to(x.device, non_blocking=True), density)
    return torch.exp(-density).clamp_(0, 1).view_as(x)
