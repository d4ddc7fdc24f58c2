"""Concepts that are superpixels: fh-ConCL."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError

SIGMA = 0.8  # scikit-image's default; the paper names none


class Superpixels:
    """Felzenszwalb and Huttenlocher's superpixels of an image.

    The paper segments each reference view, resized to 224 x 224, anew in every epoch; here each image is segmented
    once, at its own size, and its regions are carried into the views. So ``scale`` counts in pixels of the image.

    Args:
        scale: s: larger ones give larger regions. It is also the least number of pixels of a region.

    Source: ConCL (ECCV 2022), section 4.2: scale = min_size = 50 or 500; Felzenszwalb and Huttenlocher, IJCV 2004.
    """

    parallel = True

    def __init__(self, scale: int = 50) -> None:
        if scale < 1:
            raise UserError(f"the scale of superpixels is a number of pixels, at least 1, not {scale}")
        self.scale = scale

    def identity(self) -> dict[str, Any]:
        return {"superpixels": self.scale, "sigma": SIGMA, "skimage": version("scikit-image")}

    def files(self) -> Iterable[Path]:
        return ()

    def begin(self, names: Iterable[str]) -> None:
        """Any image will do."""

    def label(self, image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[Any]:
        from skimage.segmentation import felzenszwalb

        labels: npt.NDArray[Any] = felzenszwalb(image, scale=self.scale, sigma=SIGMA, min_size=self.scale)
        return labels
