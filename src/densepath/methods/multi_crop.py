"""The views of DINO and of the methods that extend it: two global crops and several local ones."""

from __future__ import annotations

from dataclasses import replace

from densepath.views.augment import Augment
from densepath.views.declarations import Declaration

LOCAL = 96 / 224  # size of local crops, relative to that of the global ones
_SMALLEST = 0.05  # share of an image's area of the smallest local crops


def multi_crop(augment: Augment | None, crops: int, size: float, scale: tuple[float, float]) -> dict[str, Declaration]:
    """Two global crops and the local ones, whose scale ends where that of the global ones begins.

    The first global crop is always blurred, the second sometimes solarized; ``augment`` applies to all crops.

    Args:
        augment: the user's augmentation; None for the method's own.
        crops: number of local crops.
        size: their size relative to that of the global ones.
        scale: range of the area of global crops, as shares of the image's, if there is no ``augment``.

    Source: Caron et al., DINO, ICCV 2021, its released code.
    """
    own = augment or Augment(scale=scale, saturation=0.2, interpolation="bicubic")
    first, second = (own, own) if augment else (replace(own, blur=1.0), replace(own, blur=0.1, solarize=0.2))
    local = replace(own, scale=(min(_SMALLEST, own.scale[0]), own.scale[0]))
    views = {"first": first.random_view(), "second": second.random_view()}
    return {**views, "local": local.random_view(size, max(crops, 1))}
