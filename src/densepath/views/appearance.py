"""What happens to the colors and the sharpness of a view: a batch at a time, drawn for each image.

Random numbers are drawn on the CPU, so which images an operation touches is known without asking the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from densepath.core.resampling import weighted_rows
from densepath.views.augment import Augment
from densepath.views.geometry import Draw
from densepath.views.random_streams import Slot

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow and torchvision
# Optical densities of red, green and blue in hematoxylin, eosin and the residual (DAB): Ruifrok and Johnston, 2001.
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
_DARKEST = 1 / 255
_BLUR_REACH = 4  # standard deviations: what lies beyond weighs less than 1e-4


def apply_appearance(augment: Augment, x: Tensor, draw: Draw) -> Tensor:
    """Change the look of views. Overwrites and returns ``x``.

    Args:
        augment: the ranges and probabilities.
        x: (B, 3, H, W) floats in [0, 1].
        draw: slot -> (B, 4) uniform numbers, on the CPU.
    """

    def chosen(slot: Slot, probability: float) -> list[int]:
        return (draw(slot)[:, 0] < probability).nonzero().flatten().tolist() if probability else []

    stained = chosen(Slot.STAIN, augment.stain)
    _change(x, stained, lambda part, rows: jitter_stain(part, *_stain_factors(augment, draw, rows)))
    _jitter(augment, x, draw, chosen(Slot.JITTER, augment.jitter))
    _change(x, chosen(Slot.GRAYSCALE, augment.grayscale), lambda part, _: luma(part).expand_as(part))
    low, high = augment.blur_sigma
    blurred = chosen(Slot.BLUR, augment.blur)
    _change(x, blurred, lambda part, rows: gaussian_blur(part, low + (high - low) * draw(Slot.BLUR)[rows, 1], high))
    _change(x, chosen(Slot.SOLARIZE, augment.solarize), lambda part, _: solarize(part))
    return x


def _change(x: Tensor, rows: list[int], operation: Callable[[Tensor, list[int]], Tensor]) -> None:
    if len(rows) == len(x):
        x.copy_(operation(x, rows))
    elif rows:
        on_device = torch.tensor(rows).to(x.device, non_blocking=True)
        x.index_copy_(0, on_device, operation(x.index_select(0, on_device), rows))


def _jitter(augment: Augment, x: Tensor, draw: Draw, chosen: list[int]) -> None:
    """Brightness, contrast, saturation and hue, in an order of each image's own, as torchvision's ColorJitter."""
    orders = draw(Slot.JITTER_ORDER).argsort(dim=1, stable=True).tolist()  # (B, 4): the operation at each place
    spread = torch.tensor((augment.brightness, augment.contrast, augment.saturation, augment.hue))
    middle = torch.tensor((1.0, 1.0, 1.0, 0.0))
    low = torch.cat(((middle - spread)[:3].clamp(min=0), -spread[3:]))
    factors = low + (middle + spread - low) * draw(Slot.JITTER_FACTORS)
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    useful = [number for number in range(4) if spread[number] > 0]
    for place in range(4):
        rows_of: list[list[int]] = [[] for _ in operations]
        for row in chosen:
            rows_of[orders[row][place]].append(row)
        for number in useful:

            def adjust(part: Tensor, rows: list[int], number: int = number) -> Tensor:
                return operations[number](part, factors[rows, number].to(part.device, non_blocking=True))

            _change(x, rows_of[number], adjust)


def _per_image(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)


def luma(x: Tensor) -> Tensor:
    """(B, 1, H, W): the grey value of each pixel."""
    red, green, blue = x.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply colors (B, 3, H, W) in [0, 1] by factors (B,)."""
    return (x * _per_image(factor)).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Move colors away from (factor > 1) or towards the image's mean grey."""
    return torch.lerp(luma(x).mean(dim=(1, 2, 3), keepdim=True), x, _per_image(factor)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Move colors away from (factor > 1) or towards the pixel's grey."""
    return torch.lerp(luma(x), x, _per_image(factor)).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the color circle by shifts (B,), as shares of a full turn."""
    red, green, blue = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    scale = 1 / chroma.clamp(min=1e-12)
    hue = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    hue = hue + 6 * shift.view(-1, 1, 1)
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = hue + offset
        k = k.sub_(torch.floor(k / 6), alpha=6)  # several times faster than torch.remainder
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=1)


def solarize(x: Tensor) -> Tensor:
    """Invert what is at least half bright."""
    return torch.where(x >= 0.5, 1 - x, x)


def gaussian_blur(x: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur (B, C, H, W), each image by its own standard deviation; edges are continued.

    Sums of weighted rows, one axis after the other: on a CPU many times faster than depthwise convolutions.

    Args:
        sigma: (B,) in pixels, on the CPU.
        largest: what sigma may be at most: it says how many pixels are summed, whoever else is in the batch.
    """
    reach = math.ceil(_BLUR_REACH * largest)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets / sigma.view(-1, 1)) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).to(x.device, non_blocking=True).unsqueeze(1)  # (B, 1, T)
    blurred = x.permute(0, 2, 3, 1)
    for axis in (1, 2):
        n = blurred.shape[axis]
        cells = (torch.arange(n).unsqueeze(1) + offsets).clamp_(0, n - 1).to(x.device, non_blocking=True)  # (n, T)
        shape = (len(x), n, len(offsets))
        blurred = weighted_rows(blurred, cells.expand(shape), weights.expand(shape), axis)
    return blurred.permute(0, 3, 1, 2)


def jitter_stain(x: Tensor, factors: Tensor, shifts: Tensor) -> Tensor:
    """Change how much of each stain a view shows.

    Colors become optical densities, densities amounts of hematoxylin, eosin and a residual; amount * factor + shift
    goes back the same way. All of it is one 3 x 3 matrix for each image.

    Args:
        x: (B, 3, H, W) in [0, 1].
        factors, shifts: (B, 3), for hematoxylin, eosin and the residual, on the CPU.

    Source: Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 2001; Tellez et al., IEEE TMI 2018.
    """
    stains = torch.tensor(_STAINS, dtype=x.dtype)
    stains = stains / stains.norm(dim=1, keepdim=True)
    # The small matrices are made on the CPU: an inverse on the device would have to be waited for.
    change = torch.linalg.inv(stains) @ torch.diag_embed(factors) @ stains  # (B, 3, 3), density -> density
    offset = (shifts @ stains).unsqueeze(-1).to(x.device, non_blocking=True)
    density = -torch.log(x.clamp(min=_DARKEST)).flatten(2)  # (B, 3, H * W)
    density = torch.baddbmm(offset, change.transpose(1, 2).to(x.device, non_blocking=True), density)
    return torch.exp(-density).clamp_(0, 1).view_as(x)


def _stain_factors(augment: Augment, draw: Draw, rows: list[int]) -> tuple[Tensor, Tensor]:
    strength = augment.stain_strength
    factors = 1 + strength * (2 * draw(Slot.STAIN_FACTORS)[rows, :3] - 1)
    return factors, strength * (2 * draw(Slot.STAIN_SHIFTS)[rows, :3] - 1)
