"""Procedural CT volumes with labelled organs: the test data for 3D."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from densepath.core.random import check_seed
from densepath.core.slices import nearest
from densepath.sources.batch import box_of, fill_canvas, new_canvas
from densepath.sources.pixel_source import Gathered, PixelSpec
from densepath.sources.windows import percentile_window

LABELS = ("outside", "body", "lung", "liver", "spine", "nodule")
_HOUNSFIELD = (-1000.0, 20.0, -820.0, 110.0, 500.0, 60.0)  # of each label
_SPACING = (2.5, 0.8, 0.8)  # mm, between slices and within them
_SIZES, _SHAPES = range(2)  # streams of random numbers
_UINT8_WINDOW = (-1000.0, 600.0)  # the range of 8 bits


@dataclass(frozen=True)
class _Ellipsoid:
    """A part of the body: center and half axes (z, y, x), relative to the volume's half axes."""

    label: int
    center: tuple[float, float, float]
    half: tuple[float, float, float]


_ANATOMY = (  # later ones cover earlier ones; the axes point to superior, posterior and left, as in MetaImage
    _Ellipsoid(1, (0.0, 0.0, 0.0), (1.6, 0.8, 0.9)),
    _Ellipsoid(2, (0.45, -0.1, -0.42), (0.5, 0.45, 0.3)),
    _Ellipsoid(2, (0.45, -0.1, 0.42), (0.5, 0.45, 0.3)),
    _Ellipsoid(3, (-0.5, -0.1, -0.35), (0.35, 0.4, 0.4)),
    _Ellipsoid(4, (0.0, 0.55, 0.0), (1.6, 0.14, 0.14)),
)


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and its ground truth.

    Args:
        pixels: (D, H, W, 1).
        labels: (D, H, W) uint8, indices into ``LABELS``.
    """

    pixels: npt.NDArray[Any]
    labels: npt.NDArray[np.uint8]


class SyntheticVolumes:
    """CT-like volumes of a body with lungs, a liver, a spine and nodules in the lungs.

    Each volume is a function of (seed, index): its size, spacing, organ positions, texture and noise. It is computed at
    first use, and kept in memory.

    Args:
        count: number of volumes.
        seed: seed of all volumes.
        size: (D, H, W) voxels; the sizes of single volumes are up to a quarter smaller.
        dtype: int16 in Hounsfield units, or uint8, where 0 to 255 represent -1000 to 600 HU.
    """

    decodes = False
    reads_boxes = True
    device = torch.device("cpu")
    corrupt: MappingProxyType[int, str] = MappingProxyType({})

    def __init__(
        self,
        count: int,
        seed: int = 0,
        size: tuple[int, int, int] = (24, 48, 48),
        dtype: torch.dtype = torch.int16,
    ) -> None:
        check_seed(seed)
        if count < 1 or min(size) < 8 or dtype not in (torch.int16, torch.uint8):
            raise ValueError(f"count {count}, size {size}, dtype {dtype}")
        self.count, self.seed, self.size, self.dtype = count, seed, size, dtype
        self._drawn: dict[int, Volume] = {}
        self._spec: PixelSpec | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def spec(self) -> PixelSpec:
        """One channel; the window is computed from a sample of the volumes."""
        if self._spec is None:
            self._spec = PixelSpec.default(1, percentile_window(self), ndim=3)
        return self._spec

    @spec.setter
    def spec(self, spec: PixelSpec) -> None:
        self._spec = spec

    def names(self, position: int) -> str:
        """volume_00003 and so on."""
        return f"volume_{position:05d}"

    def sizes(self, index: Tensor) -> Tensor:
        """(B, 3) int64: depth, height and width in voxels."""
        return torch.tensor([self._size(position) for position in index.tolist()], dtype=torch.int64).reshape(-1, 3)

    def spacing(self, index: Tensor) -> Tensor:
        """(B, 3) float32, in mm: between slices, rows and columns."""
        return self._spacing[index]

    def read(self, position: int) -> npt.NDArray[Any]:
        """One volume (D, H, W, 1)."""
        return self.volume(position).pixels

    def volume(self, position: int) -> Volume:
        """One volume with its labels."""
        if position not in self._drawn:
            self._drawn[position] = self._draw(position)
        return self._drawn[position]

    def gather(self, index: Tensor, boxes: Tensor | None = None, pin: bool = False) -> Gathered:
        """The volumes at positions (B,), or boxes (B, 2, 3) of them."""
        images = [self.read(position) for position in index.tolist()]
        sizes = self.sizes(index)
        if boxes is not None:
            images = [box_of(image, box) for image, box in zip(images, boxes.tolist(), strict=True)]
        shape = [max(lengths) for lengths in zip(*(image.shape[:-1] for image in images), strict=True)]
        canvas = new_canvas(len(index), shape, 1, self.dtype, pin)
        fill_canvas(canvas.numpy(), images)
        return Gathered(canvas, sizes, index, {}, boxes)

    def smallest(self) -> tuple[int, int]:
        """The position of the volume with the shortest side, and that side in voxels."""
        sides = self.sizes(torch.arange(self.count)).amin(dim=1)
        return int(sides.argmin()), int(sides.min())

    def digest(self, cache: Path) -> str:
        """The arguments, which determine every voxel."""
        return f"synthetic volumes 2: {self.count} {self.seed} {self.size} {self.dtype}"

    @cached_property
    def _spacing(self) -> Tensor:
        factors = [0.8 + 0.4 * self._random(position, _SIZES).random(6)[3:] for position in range(self.count)]
        return torch.tensor(np.array(factors) * _SPACING, dtype=torch.float32)

    def _size(self, position: int) -> list[int]:
        shares = 0.75 + 0.25 * self._random(position, _SIZES).random(6)[:3]
        return [max(8, round(share * length)) for share, length in zip(shares, self.size, strict=True)]

    def _random(self, position: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, position, stream]))

    def _draw(self, position: int) -> Volume:
        rng, size = self._random(position, _SHAPES), self._size(position)
        grid = np.meshgrid(*((2 * np.arange(n) + 1) / n - 1 for n in size), indexing="ij")
        labels = np.zeros(size, np.uint8)
        for part in (*_ANATOMY, *_nodules(rng)):
            shift, stretch = rng.uniform(-0.06, 0.06, 3), rng.uniform(0.85, 1.15, 3)
            distance = sum(
                ((axis - center - moved) / (half * factor)) ** 2
                for axis, center, moved, half, factor in zip(grid, part.center, shift, part.half, stretch, strict=True)
            )
            labels[distance < 1] = part.label
        values = np.array(_HOUNSFIELD)[labels]
        values += rng.normal(0, 12, size) * (labels > 0)
        texture = ndimage.gaussian_filter(rng.normal(size=size), (1, 3, 3))
        values += 25 * texture / texture.std() * (labels > 0)
        values = ndimage.gaussian_filter(values, (0.3, 0.6, 0.6))  # a scanner blurs borders
        if self.dtype == torch.uint8:
            low, high = _UINT8_WINDOW
            values = ((values - low) * (255 / (high - low))).clip(0, 255)
        stored = np.rint(values).astype(np.uint8 if self.dtype == torch.uint8 else np.int16)
        return Volume(stored[..., None], labels)


class VolumeLabels:
    """The label maps of volumes on a common grid, as for regions in ``Batch.extras``.

    Args:
        volumes: the source.
        grid: positions along each axis; a map covers its whole volume.
    """

    def __init__(self, volumes: SyntheticVolumes, grid: tuple[int, int, int] = (12, 24, 24)) -> None:
        self.volumes = volumes
        self.grid = grid

    def __len__(self) -> int:
        return len(self.volumes)

    def gather(self, index: Tensor, pin: bool = False) -> Tensor:
        """(B, *grid) int16: the labels at the centers of the grid's positions."""
        maps = torch.empty((len(index), *self.grid), dtype=torch.int16, pin_memory=pin)
        for row, position in zip(maps, index.tolist(), strict=True):
            labels = self.volumes.volume(position).labels
            centers = (nearest(n, size) for n, size in zip(self.grid, labels.shape, strict=True))
            row.copy_(torch.from_numpy(labels[np.ix_(*centers)].astype(np.int16)))
        return maps


def _nodules(rng: np.random.Generator) -> list[_Ellipsoid]:
    """Zero to three nodules in the lungs."""
    found = []
    for _ in range(int(rng.integers(0, 4))):
        lung = _ANATOMY[1 + int(rng.integers(2))]
        z, y, x = (c + 0.5 * h * rng.uniform(-1, 1) for c, h in zip(lung.center, lung.half, strict=True))
        radius = rng.uniform(0.07, 0.13)
        found.append(_Ellipsoid(5, (z, y, x), (1.4 * radius, radius, radius)))
    return found
