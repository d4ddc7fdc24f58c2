"""Concepts around the nuclei of H&E-stained tissue, found by classical image processing."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError

# In radii of a nucleus; chosen by eye on tiles of colon (LC25000) and breast (her2st).
_BLUR = 1 / 8
_OPENING = 1 / 3
_NEAR = 3 / 4  # nuclei whose rims are less than twice this apart are a group


class Nuclei:
    """Groups of nuclei that lie close together, and the connected parts of what is between them.

    Haematoxylin by color deconvolution, Otsu's threshold, opening, and what is near to a nucleus. A single nucleus is
    smaller than a cell of the features that are pooled (32 px of a view), where no nucleus but its surroundings would
    cover most; groups follow epithelium and infiltrates, and single nuclei of the stroma mostly vanish in it. There is
    no watershed to part nuclei that touch: however it cut them, they would lie close together and be one group.

    Args:
        radius: of a nucleus in pixels of the image: 8 at 0.5 µm/px, 16 at 0.25.

    Source: Ruifrok and Johnston, 2001 (color deconvolution); not in ConCL's paper.
    """

    parallel = True

    def __init__(self, radius: float = 8.0) -> None:
        if radius < 1:
            raise UserError(f"the radius of a nucleus is a number of pixels, at least 1, not {radius}")
        self.radius = float(radius)  # 8 and 8.0 are one cache

    def identity(self) -> dict[str, Any]:
        return {"nuclei": [self.radius, _BLUR, _OPENING, _NEAR], "skimage": version("scikit-image")}

    def files(self) -> Iterable[Path]:
        return ()

    def begin(self, names: Iterable[str]) -> None:
        """Any image will do."""

    def label(self, image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[Any]:
        from scipy import ndimage
        from skimage.color import rgb2hed
        from skimage.filters import threshold_otsu
        from skimage.measure import label
        from skimage.morphology import disk

        stain = ndimage.gaussian_filter(rgb2hed(image)[..., 0], self.radius * _BLUR)
        nuclei = ndimage.binary_opening(stain > threshold_otsu(stain), disk(max(1, round(self.radius * _OPENING))))
        # With no nucleus at all every pixel would count as near to one.
        near = ndimage.distance_transform_edt(~nuclei) <= self.radius * _NEAR if nuclei.any() else nuclei
        parts: npt.NDArray[Any] = label(near.astype(np.uint8), background=-1, connectivity=1)
        return parts
