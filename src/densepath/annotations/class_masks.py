"""Notices masks of a class that are given as label maps of instances."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

_TOUCHING = np.ones((3, 3), int)


class ClassMasks:
    """Whether label maps are masks: none has two numbers, but one has several separate regions.

    Such maps would make one object of all the objects of an image.
    """

    def __init__(self) -> None:
        self._single = True
        self._number, self._regions = 0, 1

    def look(self, labels: npt.NDArray[np.integer]) -> None:
        """Take a label map (H, W) into account."""
        if not self._single:
            return
        highest = int(labels.max(initial=0))
        if highest == 0:
            return
        if ((labels > 0) & (labels != highest)).any():
            self._single = False
        elif self._regions == 1:
            self._number, self._regions = highest, ndimage.label(labels > 0, _TOUCHING)[1]

    def warning(self, source: str) -> str:
        """What to tell the user; an empty text if the maps are instances, as far as they show.

        Args:
            source: where the maps are from.
        """
        if not self._single or self._regions == 1:
            return ""
        return (
            f"densepath: warning: no label map of {source} has two numbers, but one has {self._regions} "
            f"separate regions of the number {self._number}: if the maps are masks of a class, all objects of an image "
            "count as one; give each object a number of its own"
        )
