"""Label maps of the images of a source: one for each image, independent of its views."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.files import Unchanged
from densepath.core.slices import nearest

# Rows and columns of a map. A view of a fifth of its image covers 36 of them with its 7 positions. On tiles of 224 px,
# 2% of the positions of views get another label than from maps of 224, and 6% where regions are smaller than positions,
# as with superpixels of scale 50.
SIDE = 80


class LabelMaps:
    """The label maps of a source's images, in memory or mapped from a file.

    Args:
        maps: (N, SIDE, SIDE) int16 labels from 0; each map covers its whole image, whatever the image's shape.
        digest: of what they are made from besides the images; "" if it is unknown.
        classes: whether a label means the same in all maps.
    """

    def __init__(self, maps: npt.NDArray[np.int16], digest: str = "", classes: bool = False) -> None:
        self.maps, self.digest, self.classes = maps, digest, classes
        self._mapped = Unchanged(maps.filename) if isinstance(maps, np.memmap) and maps.filename else None

    def __len__(self) -> int:
        return len(self.maps)

    def largest(self) -> int:
        """The largest label of all maps."""
        return int(self.maps.max())

    def gather(self, index: Tensor, pin: bool = False) -> Tensor:
        """The maps (B, SIDE, SIDE) int16 of the images at the positions ``index`` (B,) int64.

        Args:
            index: positions in the source, on the CPU.
            pin: into page-locked memory, from where a GPU fetches them while other work runs.
        """
        if self._mapped is not None:
            self._mapped.check()
        out = torch.empty((len(index), *self.maps.shape[1:]), dtype=torch.int16, pin_memory=pin)
        np.take(self.maps, index.numpy(), axis=0, out=out.numpy(), mode="clip")  # "raise" would copy everything twice
        return out


def shrink(labels: npt.NDArray[Any], classes: bool = False) -> npt.NDArray[np.int16]:
    """A label map (h, w) of any integers in the format of :class:`LabelMaps`: the labels at its positions' centers.

    The labels of ``classes``, which mean the same in all maps, are kept, those above the largest int16 as that. Others
    are numbered from 0, in their order. A map has fewer positions than int16 has values.
    """
    rows, columns = (nearest(SIDE, length) for length in labels.shape)
    found = labels[np.ix_(rows, columns)]
    if classes:
        return np.minimum(found, np.iinfo(np.int16).max).astype(np.int16)
    _, numbers = np.unique(found, return_inverse=True)
    return numbers.reshape(SIDE, SIDE).astype(np.int16)
