"""The true classes of the pixels of a source's images: from label maps, outlines, or a store of volumes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.annotations.coco import CocoImages
from densepath.annotations.labels import read_labels
from densepath.core.errors import UserError
from densepath.core.system import available_memory
from densepath.sources.corrupt import CorruptImage
from densepath.sources.volumes.store import VolumeStore
from densepath.sources.volumes.volume import sheared_steps
from densepath.transfer.segment.legend import IGNORED, ClassMap, Legend

_SHARE = 0.1  # of the available memory, for maps that are kept
_POINTS = 10_000  # pixels of each class of an image on which patches may be centered, as in nnU-Net

Values = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
T = TypeVar("T")


class LabelMaps:
    """Label maps in files.

    Args:
        paths: of the maps, in the order of the images.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def read(self, position: int) -> Values:
        """The values of a map (H, W). Raises CorruptImage or UserError."""
        return read_labels(self.paths[position])

    def box(self, position: int, low: Sequence[int], high: Sequence[int]) -> Values:
        """The values in a box of a map."""
        return self.read(position)[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]

    def facts(self, position: int) -> tuple[tuple[int, ...], list[int], str]:
        """The size of a map, its values, and a digest of it."""
        found = self.read(position)
        crc = zlib.crc32(np.ascontiguousarray(found, np.int32).data)
        return found.shape, [int(value) for value in np.unique(found)], str(crc)

    def steps(self, position: int) -> npt.NDArray[np.float64] | None:
        """The step along each axis in mm as a vector (d, d), if the axes are not at right angles."""
        return None

    def take(self, positions: Sequence[int]) -> LabelMaps:
        """The maps of some images."""
        return LabelMaps([self.paths[p] for p in positions])


class Outlines(LabelMaps):
    """Outlined objects of one or more data sets: 0 for the background, and the number of the category from 1.

    Args:
        images: of each image, the data set and the position in it.
    """

    def __init__(self, images: Sequence[tuple[CocoImages, int]]) -> None:
        self.images = list(images)

    def read(self, position: int) -> Values:
        data, index = self.images[position]
        categories = [data.category_ids.index(each["category_id"]) + 1 for each in data.annotations_of(index)]
        return np.array([0, *categories], np.int32)[data.label_map(index)]

    def take(self, positions: Sequence[int]) -> Outlines:
        return Outlines([self.images[p] for p in positions])


class VolumeLabels(LabelMaps):
    """The labels beside the volumes of a store."""

    def __init__(self, store: VolumeStore) -> None:
        self.store = store

    def read(self, position: int) -> Values:
        found = self.store.labels(position)
        assert found is not None  # volumes without labels are left out before
        return found

    def box(self, position: int, low: Sequence[int], high: Sequence[int]) -> Values:
        return self.store.label_box(position, low, high)

    def facts(self, position: int) -> tuple[tuple[int, ...], list[int], str]:
        row = self.store.rows[position]
        return tuple(row["size"]), sorted(map(int, row["labels"]["voxels"])), str(row["labels"]["crc"])

    def steps(self, position: int) -> npt.NDArray[np.float64] | None:
        steps = sheared_steps(self.store.rows[position]["affine"])
        return None if steps is None else steps[::-1]

    def take(self, positions: Sequence[int]) -> VolumeLabels:
        return VolumeLabels(self.store.take(torch.tensor(list(positions), dtype=torch.int64)))


class _Kept:
    """What is kept in memory of the maps of a source, by their numbers in it.

    Args:
        room: bytes that are left for maps.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.maps: dict[int, ClassMap] = {}
        self.points: dict[int, tuple[tuple[int, ...], list[Integers]]] = {}


class Truth:
    """The classes of the pixels of each image, as an annotation of its source.

    Maps in files are kept in memory as long as those of the whole source take a tenth of it.

    Args:
        maps: the values.
        legend: what they mean.
        part: of the whole source, what is kept of it, and the numbers of these maps in it; default: they are the whole.
    """

    def __init__(self, maps: LabelMaps, legend: Legend, part: tuple[_Kept, Integers] | None = None) -> None:
        self.maps, self.legend = maps, legend
        room = 0 if isinstance(maps, VolumeLabels) else int(available_memory() * _SHARE)
        self._kept = _Kept(room) if part is None else part[0]
        self._numbers = None if part is None else part[1]

    def read(self, position: int) -> ClassMap:
        """The classes (*size) of an image, ``IGNORED`` where there is none. Raises CorruptImage."""
        number, kept = self._number(position), self._kept
        if number not in kept.maps:
            classes = self.legend.classes_of(self.maps.read(position))
            if classes.nbytes > kept.room:
                return classes
            kept.room -= classes.nbytes
            kept.maps[number] = classes
        return kept.maps[number]

    def gather_boxes(self, index: Tensor, boxes: Tensor | None, pin: bool = False) -> Tensor:
        """(B, *canvas) uint8: 1 + the class of each pixel, or of those in boxes (B, 2, d); 0 where there is none.

        Each map lies in the low corner, as the pixels of the images do.
        """
        parts = []
        for row, position in enumerate(index.tolist()):
            if boxes is None:
                parts.append(self._checked(self.read, position))
            else:
                low, high = boxes[row].tolist()
                parts.append(self.legend.classes_of(self._checked(self.maps.box, position, low, high)))
        shape = np.max([part.shape for part in parts], axis=0).tolist()
        canvas = torch.zeros(len(parts), *shape, dtype=torch.uint8, pin_memory=pin)
        for row, part in zip(canvas.numpy(), parts, strict=True):
            row[tuple(map(slice, part.shape))] = part + np.uint8(1)  # IGNORED becomes 0
        return canvas

    def point(self, position: int, of_class: float, of_pixel: float) -> tuple[int, ...] | None:
        """A pixel of an image of a class that is not background, or None without any.

        Args:
            position: of the image.
            of_class, of_pixel: from 0 to 1, which of the classes that the image has, and which of its pixels.
        """
        number, points = self._number(position), self._kept.points
        if number not in points:
            points[number] = self._pixels_of_classes(position)
        shape, pixels = points[number]
        if not pixels:
            return None
        own = pixels[int(of_class * len(pixels))]
        return tuple(int(place) for place in np.unravel_index(int(own[int(of_pixel * len(own))]), shape))

    def _pixels_of_classes(self, position: int) -> tuple[tuple[int, ...], list[Integers]]:
        """The shape of an image, and the flat positions of pixels of each class; of many an even sample."""
        classes = self._checked(self.read, position)
        present = [k for k in np.unique(classes) if k not in (self.legend.background, IGNORED)]
        found = [np.flatnonzero(classes == k) for k in present]
        spread = [np.linspace(0, len(flat) - 1, min(_POINTS, len(flat))).astype(np.int64) for flat in found]
        return classes.shape, [flat[places] for flat, places in zip(found, spread, strict=True)]

    def _checked(self, read: Callable[..., T], *places: Any) -> T:
        try:
            return read(*places)
        except CorruptImage as error:
            raise UserError(f"{error}; restore it, or leave the image out with --exclude") from error

    def take(self, positions: Integers) -> Truth:
        """The classes of some images; what is kept of the maps is shared."""
        numbers = positions if self._numbers is None else self._numbers[positions]
        return Truth(self.maps.take(positions.tolist()), self.legend, (self._kept, numbers))

    def _number(self, position: int) -> int:
        return position if self._numbers is None else int(self._numbers[position])
