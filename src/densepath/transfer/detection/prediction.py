"""What a detector found in an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from densepath.transfer.detection.found import FoundObject, painting_order


@dataclass(frozen=True, eq=False)
class Prediction:
    """The objects in one image, best first.

    Args:
        objects: the objects.
        size: height and width of the image in pixels.
        classes: names of the labels 1, 2, ...
    """

    objects: tuple[FoundObject, ...]
    size: tuple[int, int]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def boxes(self) -> npt.NDArray[np.float32]:
        """(N, 4) x1 y1 x2 y2 in pixels."""
        return np.array([each.box for each in self.objects], np.float32).reshape(-1, 4)

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """(N,) from 0 to 1."""
        return np.array([each.score for each in self.objects], np.float32)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) numbers of the classes, from 1."""
        return np.array([each.label for each in self.objects], np.int64)

    @property
    def names(self) -> list[str]:
        """The name of each object's class."""
        return [self.classes[each.label - 1] for each in self.objects]

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """(N, H, W)"""
        height, width = self.size
        masks = [each.part(0, 0, height, width) for each in self.objects]
        return np.array(masks, bool).reshape(-1, height, width)

    def label_map(self) -> npt.NDArray[np.int32]:
        """(H, W): 0 for background, k for the k-th object; where objects overlap, the smallest one."""
        labels = np.zeros(self.size, np.int32)
        for number, each in painting_order(enumerate(self.objects, 1)):
            labels[each.top : each.bottom, each.left : each.right][each.mask] = number
        return labels
