"""The flat options of a random view, as in the command line, in recipes and in the record of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from densepath.core.errors import UserError
from densepath.core.plain import plain
from densepath.core.single_values import refuse_none
from densepath.views.appearance import Appearance, check_not_negative, check_probability, check_range
from densepath.views.color import ColorJitter, Grayscale, StainJitter
from densepath.views.corruptions import Corruption
from densepath.views.crops import Crop
from densepath.views.declarations import RandomView
from densepath.views.intensity import Gamma, GaussianBlur, GaussianNoise, Solarize, check_sigma

_FLIPS = ("flip", "vertical_flip", "depth_flip")
_PROBABILITIES = (*_FLIPS, "jitter", "grayscale", "gamma", "blur", "noise", "solarize", "stain")
_STRENGTHS = ("brightness", "contrast", "saturation", "hue")
# Options that have no effect where another one is 0
_NEEDED = {
    "rotation_axes": "rotation",
    **dict.fromkeys(_STRENGTHS, "jitter"),
    **{"gamma_power": "gamma", "blur_sigma": "blur", "noise_std": "noise", "stain_strength": "stain"},
}
# Probabilities of operations that change nothing with these options
_NEUTRAL: dict[str, dict[str, Any]] = {
    "jitter": dict.fromkeys(_STRENGTHS, 0.0),
    "gamma": {"gamma_power": [1.0, 1.0]},
    "noise": {"noise_std": [0.0, 0.0]},
    "stain": {"stain_strength": 0.0},
}


@dataclass(frozen=True)
class Augment:
    """The options of a random view. The defaults are those of MoCo-v2, DenseCL and ConCL.

    In this order: crop, flips and rotation; stain; color jitter; grayscale; gamma; blur; noise; solarize. Factors are
    drawn for each image, and so is the order of the four parts of the color jitter. For images without colors, the
    operations of the method's defaults that need colors are left out; brightness and contrast of the jitter remain.

    Args:
        scale: range of the crop's area, or volume, as shares of the image's.
        ratio: range of the crop's aspect ratio, width / height; its logarithm is uniform.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        depth_flip: probability of a flip along the third axis of volumes.
        rotation: an angle is drawn from [-x, x] degrees. A crop that would leave the image shrinks about its center.
        rotation_axes: for volumes: "xy" rotates in that plane only, "all" about each of the three axes.
        quarter_turns: whether to also rotate by 0, 90, 180 or 270 degrees in the xy-plane, with equal probabilities.
        jitter: probability of color jitter.
        brightness, contrast, saturation: strength x of color jitter; a factor is drawn from [1 - x, 1 + x], at least 0.
        hue: strength x of color jitter; a shift is drawn from [-x, x], as a share of the color circle; at most 0.5.
        grayscale: probability of a grey view.
        gamma: probability of a gamma correction: values to a power.
        gamma_power: range of the power of the gamma correction; its logarithm is uniform.
        blur: probability of a Gaussian blur.
        blur_sigma: range of the standard deviation of the blur, in pixels of the view; at most 100.
        noise: probability of normal noise on each value.
        noise_std: range of the standard deviation of the noise, for values in [0, 1].
        solarize: probability of inverting values of at least 0.5.
        stain: probability of H&E stain jitter: amounts of hematoxylin, eosin and residual change in optical density.
        stain_strength: strength x of stain jitter; factors are drawn from [1 - x, 1 + x], and shifts of the optical
            density from [-x, x].
        interpolation: the filter of the crop's resampling.

    Source: ConCL (ECCV 2022) with MoCo-v2 (arXiv 2003.04297); stain: Tellez et al., IEEE TMI 2018.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    vertical_flip: float = 0.0
    depth_flip: float = 0.0
    rotation: float = 0.0
    rotation_axes: Literal["xy", "all"] = "xy"
    quarter_turns: bool = False
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    gamma: float = 0.0
    gamma_power: tuple[float, float] = (0.7, 1.5)
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    noise: float = 0.0
    noise_std: tuple[float, float] = (0.0, 0.1)
    solarize: float = 0.0
    stain: float = 0.0
    stain_strength: float = 0.05
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        refuse_none(self)
        for name in ("scale", "ratio", "gamma_power"):
            check_range(f"augment.{name}", getattr(self, name))
        check_range("augment.noise_std", self.noise_std, zero=True)
        check_sigma("augment.blur_sigma", self.blur_sigma)
        if self.scale[1] > 1:
            raise UserError(f"augment.scale is a share of the image's area: at most 1, not {self.scale[1]}")
        for name in _PROBABILITIES:
            check_probability(f"augment.{name}", getattr(self, name))
        for name in ("rotation", "brightness", "contrast", "saturation", "hue", "stain_strength"):
            check_not_negative(f"augment.{name}", getattr(self, name))
        if self.hue > 0.5:
            raise UserError(f"augment.hue is a share of the color circle, at most 0.5, not {self.hue}")

    def random_view(self, size: float = 1.0, count: int = 1) -> RandomView:
        """The view that the options describe; ``size`` and ``count`` as in :class:`RandomView`."""
        crop = Crop(
            scale=self.scale,
            ratio=self.ratio,
            flip=(self.flip, self.vertical_flip, self.depth_flip),
            rotation=self.rotation,
            rotation_axes=self.rotation_axes,
            quarter_turns=self.quarter_turns,
            interpolation=self.interpolation,
        )
        operations: tuple[Appearance, ...] = (
            StainJitter(self.stain, self.stain_strength),
            ColorJitter(self.jitter, self.brightness, self.contrast, self.saturation, self.hue),
            Grayscale(self.grayscale),
            Gamma(self.gamma, self.gamma_power),
            GaussianBlur(self.blur, self.blur_sigma),
            GaussianNoise(self.noise, self.noise_std),
            Solarize(self.solarize),
        )
        used = (self.stain, self.jitter, self.grayscale, self.gamma, self.blur, self.noise, self.solarize)
        appearance = tuple(operation for operation, share in zip(operations, used, strict=True) if share)
        return RandomView(crop, appearance, size, count)

    @classmethod
    def of_view(cls, view: RandomView) -> Augment | None:
        """The options that describe a view, besides corruptions; None where none do.

        Windows have no scale or ratio: theirs are the defaults.
        """
        crop, off = view.crop, dict.fromkeys(_PROBABILITIES, 0.0)
        options: dict[str, Any] = {
            **off,
            **dict(zip(_FLIPS, crop.flip, strict=False)),
            "rotation": crop.rotation,
            "rotation_axes": crop.rotation_axes,
            "quarter_turns": crop.quarter_turns,
            "interpolation": crop.interpolation,
        }
        if isinstance(crop, Crop):
            options |= {"scale": crop.scale, "ratio": crop.ratio}
        appearance = tuple(operation for operation in view.appearance if not isinstance(operation, Corruption))
        for operation in appearance:
            match operation:
                case StainJitter():
                    options |= {"stain": operation.probability, "stain_strength": operation.strength}
                case ColorJitter():
                    strengths = {name: getattr(operation, name) for name in _STRENGTHS}
                    options |= {"jitter": operation.probability, **strengths}
                case Grayscale():
                    options["grayscale"] = operation.probability
                case Gamma():
                    options |= {"gamma": operation.probability, "gamma_power": operation.power}
                case GaussianBlur():
                    options |= {"blur": operation.probability, "blur_sigma": operation.sigma}
                case GaussianNoise():
                    options |= {"noise": operation.probability, "noise_std": operation.std}
                case Solarize():
                    options["solarize"] = operation.probability
        augment = cls(**options)
        return augment if augment.random_view(view.size, view.count).appearance == appearance else None


def idle_options(augment: Any, usual: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """A line for each option that was given, but changes no view as an operation is off by default or by its strength.

    There is none where an operation was turned off: its options may be those of a recipe.

    Args:
        augment: an :class:`Augment`, or a dataclass of some of its options with other defaults.
        usual: a method's own options in the plain types of YAML, which are its defaults without a recipe.
    """
    own = {field.name: plain(getattr(augment, field.name)) for field in fields(augment)}
    defaults = {field.name: plain(field.default) for field in fields(augment)}
    given = {name for name, value in own.items() if value not in (defaults[name], usual.get(name, defaults[name]))}
    needed = {
        name: f"without augment.{other}"
        for name, other in _NEEDED.items()
        if other in own and not own[other] and other not in given
    }
    neutral = {
        name: f"with {' and '.join(f'augment.{other} {value}' for other, value in values.items())}"
        for name, values in _NEUTRAL.items()
        if own[name] and all(own[other] == value for other, value in values.items())
    }
    return [f"augment.{name}: no effect {why}" for name, why in (needed | neutral).items() if name in given]
