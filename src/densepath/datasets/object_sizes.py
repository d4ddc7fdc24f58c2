"""The sizes of objects, and the size of input images that they ask for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from densepath.transfer.detection.config import ANCHOR_SIZES

POSITIVE = 0.7  # IoU from which an anchor is positive (Ren et al. 2015, Faster R-CNN, section 3.1.2)
_SHARE = 10  # percent of the objects that may be smaller
_PERCENTILES = (5, 25, 50, 75, 95)


def describe_sizes(sides: Sequence[npt.NDArray[np.float64]], short_sides: Sequence[int]) -> list[str]:
    """Percentiles of objects' sides, and the short side of the input that they ask for.

    A square of side s within an anchor of side a has an IoU of (s/a)². So at the input's scale an object matches the
    smallest anchor of a feature pyramid, 32 px (Lin et al. 2017, FPN, section 4.1), from a side of 32 * sqrt(0.7) px.

    Args:
        sides: square roots of the areas of the boxes of each image's objects, in pixels.
        short_sides: short sides of the images, in pixels; each is resized to the short side of the input.

    Returns:
        Lines.
    """
    percentiles = zip(_PERCENTILES, np.percentile(np.concatenate(sides), _PERCENTILES), strict=True)
    shown = ", ".join(f"{share}%: {value:.0f}" for share, value in percentiles)
    least, image = min(ANCHOR_SIZES) * POSITIVE**0.5, float(np.median(short_sides))
    shares = np.concatenate([own / short for own, short in zip(sides, short_sides, strict=True)])
    asked = int(np.ceil(least / np.percentile(shares, _SHARE)))
    lines = [
        f"object sides (square root of the box's area) in px: {shown}",
        f"they ask for a short side of {asked} px or more (images: {image:.0f} px): then {100 - _SHARE}% of them have "
        f"a side of at least {least:.0f} px, where a square has an IoU of {POSITIVE} with the smallest anchor of "
        f"{min(ANCHOR_SIZES)} px (FPN's anchors, Faster R-CNN's threshold)",
    ]
    if asked > 2 * image:
        lines.append(
            "that is more than twice the images' size; smaller anchors (detect --anchor_sizes) or crops of the images "
            "(--train_crop) are cheaper"
        )
    return lines
