"""Declarations of views: what may happen to the pixels of each."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from densepath.core.errors import UserError


@dataclass(frozen=True)
class Augment:
    """A random view. The defaults are those of MoCo-v2, DenseCL and ConCL.

    In this order: crop, flips and rotation; stain; color jitter; grayscale; blur; solarize. Factors are drawn for each
    image, and so is the order of the four parts of the color jitter.

    Args:
        scale: range of the crop's area, as shares of the image's.
        ratio: range of the crop's aspect ratio, width / height; its logarithm is uniform.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        rotation: largest rotation in degrees, either way. A crop that would leave the image shrinks about its center.
        quarter_turns: whether to also turn by 0, 90, 180 or 270 degrees, each as likely.
        jitter: probability of color jitter.
        brightness, contrast, saturation: a factor is drawn from [1 - x, 1 + x], not below 0.
        hue: a shift is drawn from [-x, x], as a share of the color circle; at most 0.5.
        grayscale: probability of a grey view.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its standard deviation, in pixels of the view.
        solarize: probability of inverting what is brighter than half.
        stain: probability of H&E stain jitter: amounts of hematoxylin, eosin and residual change in optical density.
        stain_strength: factors are drawn from [1 - x, 1 + x] and shifts (of optical density) from [-x, x].
        interpolation: the filter of the crop's resampling.

    Source: ConCL (ECCV 2022) with MoCo-v2 (arXiv 2003.04297); stain: Tellez et al., IEEE TMI 2018.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    vertical_flip: float = 0.0
    rotation: float = 0.0
    quarter_turns: bool = False
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    stain: float = 0.0
    stain_strength: float = 0.05
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"augment.{name} must be two positive numbers, the smaller first, not {low}, {high}")
        if self.scale[1] > 1:
            raise UserError(f"augment.scale is a share of the image's area: at most 1, not {self.scale[1]}")
        for name in ("flip", "vertical_flip", "jitter", "grayscale", "blur", "solarize", "stain"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name} is a probability, between 0 and 1, not {getattr(self, name)}")
        for name in ("rotation", "brightness", "contrast", "saturation", "hue", "stain_strength"):
            if getattr(self, name) < 0:
                raise UserError(f"augment.{name} must not be negative, as {getattr(self, name)} is")
        if self.hue > 0.5:
            raise UserError(f"augment.hue is a share of the color circle, at most 0.5, not {self.hue}")


@dataclass(frozen=True)
class Union:
    """The smallest upright view that covers two others, with untouched colors: ConCL's reference view.

    Args:
        of: the names of the views to cover.
        interpolation: the released ConCL takes bicubic here.
    """

    of: tuple[str, str]
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


@dataclass(frozen=True)
class Center:
    """The plain view: the square in the middle of an image, with untouched colors.

    Args:
        share: of the image's shorter side that it covers. The default is that of "resize to 256, crop 224".
        interpolation: the filter of its resampling.
    """

    share: float = 224 / 256
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


def augment_from(options: dict[str, object]) -> Augment:
    """An Augment from plain values, as a YAML file holds them.

    Raises:
        UserError: an unknown name, or a value of the wrong kind.
    """
    known = {field.name for field in fields(Augment)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UserError(f"unknown augment option {unknown[0]!r}; there are: {', '.join(sorted(known))}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    try:
        return Augment(**values)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError(f"augment: {error}") from None
