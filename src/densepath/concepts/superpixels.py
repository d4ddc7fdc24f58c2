"""Concepts from superpixels: fh-ConCL."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError

SIGMA = 0.8  # scikit-image's default; the paper does not give it


class Superpixels:
    """Superpixels of an image by Felzenszwalb and Huttenlocher's algorithm.

    The paper segments each reference view, resized to 224 x 224, again in every epoch. Here each image is segmented
    once, at its own size, and its regions are warped into the views, so ``scale`` refers to pixels of the image.

    Args:
        scale: the parameter s: larger values give larger regions. It is also the minimum size of a region in pixels.

    Source: ConCL (ECCV 2022), section 4.2: scale = min_size = 50 or 500; Felzenszwalb and Huttenlocher, IJCV 2004.
    """

    parallel, needs_color = True, False

    def __init__(self, scale: int = 50) -> None:
        if scale < 1:
            raise UserError(f"superpixel_scale is {scale}; give a number of pixels, at least 1")
        self.scale = scale

    def identity(self) -> dict[str, Any]:
        return {"superpixels": self.scale, "sigma": SIGMA, "skimage": version("scikit-image")}

    def files(self) -> Iterable[Path]:
        return ()

    def begin(self, names: Iterable[str]) -> None:
        """Accepts any images."""

    def label(self, image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[Any]:
        from skimage.segmentation import felzenszwalb

        labels: npt.NDArray[Any] = felzenszwalb(image, scale=self.scale, sigma=SIGMA, min_size=self.scale)
        return labels
