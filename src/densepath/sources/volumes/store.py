"""A store of volumes as a source: training reads only the boxes that views need."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.digests import digest_of
from densepath.core.errors import counted
from densepath.sources.batch import new_canvas
from densepath.sources.corrupt import CorruptImage, allowed
from densepath.sources.fingerprint import digest_of_samples, digest_of_sizes
from densepath.sources.pixel_source import Gathered, PixelSpec
from densepath.sources.volumes.blocks import read_box, touched, write_blocks
from densepath.sources.volumes.mapped import MappedFiles
from densepath.sources.volumes.volume_file import file_size

VOLUMES = "volumes"  # the folder of their files


class VolumeStore:
    """Volumes that ``densepath data volumes`` or another converter wrote, in axes S, A, R.

    If every volume is stored as its values (CT), pixels are int16. Otherwise they are float32: values, or, where each
    volume has its own window (MR), shares of it: its 0.5th percentile is 0 and its 99.5th is 1.

    Args:
        folder: of the store.
        index: what ``volumes.json`` says of all volumes.
        rows: what it says of each volume of this source.

    Attributes:
        rows: what is known of each volume: name, patient, split, affine, labels and more.
        own_window: whether each volume has the window of its own percentiles, as MR.
    """

    decodes = False
    reads_boxes = True
    device = torch.device("cpu")

    def __init__(self, folder: Path, index: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        self.folder, self.index, self.rows = folder, index, rows
        self._sizes = torch.tensor([row["size"] for row in rows], dtype=torch.int64)
        affine = np.array([row["affine"] for row in rows])
        self._spacing = torch.from_numpy(np.linalg.norm(affine[:, :3, :3], axis=1)[:, ::-1].astype(np.float32))
        self._files = MappedFiles()
        paths = (str(folder / VOLUMES / row["file"]) for row in rows)
        self._places = [  # of each file: bytes, where the voxels begin, size, number of voxels
            (path, file_size(row), int(row["start"]), row["size"], math.prod(row["size"]))
            for path, row in zip(paths, rows, strict=True)
        ]
        self.own_window = index["window"] == "volume"
        self._scales = [self._scale(row) for row in rows]
        plain = all((slope, shift) == (1.0, 0.0) for scale in self._scales for slope, shift in scale)
        self.dtype = torch.int16 if plain else torch.float32
        self.corrupt: Mapping[int, str] = {k: why for k, row in enumerate(rows) if (why := self._damage(row))}
        window = (0.0, 1.0) if self.own_window else tuple(index["window"] or (0.0, 1.0))
        self.spec = PixelSpec.default(int(index["channels"]), window, ndim=3)

    def __len__(self) -> int:
        return len(self.rows)

    def names(self, position: int) -> str:
        """The name of a volume."""
        return str(self.rows[position]["name"])

    def path(self, position: int) -> Path:
        """The file of a volume."""
        return self.folder / VOLUMES / self.rows[position]["file"]

    def sizes(self, index: Tensor) -> Tensor:
        """(B, 3) int64: depth, height and width in voxels."""
        return self._sizes[index]

    def spacing(self, index: Tensor) -> Tensor:
        """(B, 3) float32, in mm along depth, height and width."""
        return self._spacing[index]

    def smallest(self) -> tuple[int, int]:
        """The position of the volume with the shortest side, and that side in voxels."""
        sides = self._sizes.amin(dim=1)
        if self.corrupt:
            sides[torch.tensor(list(self.corrupt))] = torch.iinfo(torch.int64).max
        return int(sides.argmin()), int(sides.min())

    def describe(self) -> str:
        """The number of volumes, and the ranges of their sizes and spacings."""
        sides = [_range(side) for side in self._sizes.T.tolist()]
        steps = [_range([round(step, 3) for step in axis]) for axis in self._spacing.T.tolist()]
        return (
            f"{counted(len(self), 'volume')} of {' x '.join(sides)} voxels (D x H x W), {' x '.join(steps)} "
            "mm, in a store"
        )

    def take(self, positions: Tensor) -> VolumeStore:
        """The store with only the volumes at some positions (K,)."""
        taken = VolumeStore(self.folder, self.index, [self.rows[k] for k in positions.tolist()])
        taken.spec = self.spec
        return taken

    def read(self, position: int) -> npt.NDArray[Any]:
        """A volume (D, H, W, C).

        Raises:
            CorruptImage: it cannot be read, or its checksum is wrong.
        """
        row = self.rows[position]
        size, stored = row["size"], np.empty(row["size"], np.int16)
        for channel, crc in enumerate(row["crc"]):
            self._stored(position, channel, (0, 0, 0), size, stored)
            self._check(position, stored, crc)
        out = np.empty((*size, self.spec.channels), np.int16 if self.dtype == torch.int16 else np.float32)
        self._fill(out, position, (0, 0, 0), size)
        return out

    def labels(self, position: int) -> npt.NDArray[Any] | None:
        """The labels (D, H, W) of a volume; None if it has none. Errors as for :meth:`read`."""
        labels, size = self.rows[position]["labels"], self.rows[position]["size"]
        if labels is None:
            return None
        stored = np.empty(size, np.dtype(labels["dtype"]))
        self._stored(position, self.spec.channels, (0, 0, 0), size, stored)
        self._check(position, stored, labels["crc"])
        return stored

    def label_box(self, position: int, low: Sequence[int], high: Sequence[int]) -> npt.NDArray[Any]:
        """The labels in a box of a volume that has labels, see :func:`~densepath.sources.volumes.blocks.read_box`."""
        kind = np.dtype(self.rows[position]["labels"]["dtype"])
        stored = np.empty([b - a for a, b in zip(low, high, strict=True)], kind)
        self._stored(position, self.spec.channels, low, high, stored)
        return stored

    def gather(self, index: Tensor, boxes: Tensor | None = None, pin: bool = False) -> Gathered:
        """The volumes at positions (B,), or boxes (B, 2, 3) of them; the next one replaces a damaged one."""
        corrupt: dict[int, str] = {}
        while True:
            index = self._readable(index, corrupt)
            sizes = self.sizes(index)
            low, high = (torch.zeros_like(sizes), sizes) if boxes is None else _inside(boxes, sizes)
            sides = high - low
            shape = sides.amax(dim=0).tolist() if len(index) else [0] * 3
            canvas = new_canvas(len(index), shape, self.spec.channels, self.dtype, pin)
            numbers = canvas.numpy()
            # A CPU samples nothing around a box, which takes as long to fill as the box; a GPU with weights of about 0.
            zeros = boxes is None or pin or self.dtype != torch.int16
            for row, (position, *box) in enumerate(zip(index.tolist(), low.tolist(), high.tolist(), strict=True)):
                try:
                    self._fill(numbers[row], position, box[0], box[1], zeros)
                except CorruptImage as error:
                    corrupt[position] = str(error)
                    break
            else:
                return Gathered(canvas, sizes, index, corrupt, None if boxes is None else torch.stack((low, high), 1))
            if len(corrupt) > allowed(len(self), ndim=3) or len(corrupt) + len(self.corrupt) >= len(self):
                index, boxes = index[:row], None if boxes is None else boxes[:row]

    def fingerprint(self) -> dict[str, str]:
        """Digests by which a resumed run knows the volumes, see :func:`densepath.sources.fingerprint.fingerprint`."""
        paths = [self.path(position) for position in range(len(self))]
        names = digest_of(f"{row['name']} {row['size']} {row['scales']} {row['crc']}" for row in self.rows)
        found = {"names": names, "sizes": digest_of_sizes(paths), "samples": digest_of_samples(paths)}
        return found | {"conversion": digest_of([str(self.own_window), *(str(row["affine"]) for row in self.rows)])}

    def digest(self, cache: Path) -> str:
        """The identity of the volumes: their names, sizes, checksums, affine maps and window."""
        known = self.fingerprint()
        return digest_of([known["names"], known["conversion"], str(self.index["window"])])

    def _scale(self, row: Mapping[str, Any]) -> list[tuple[float, float]]:
        """Slope and intercept from stored numbers to pixels, of each channel."""
        found = []
        for scale in row["scales"]:
            slope, shift = float(scale["slope"]), float(scale["intercept"])
            if self.own_window:
                low, high = scale["window"]
                slope, shift = slope / (high - low), (shift - low) / (high - low)
            found.append((slope, shift))
        return found

    def _fill(
        self, canvas: npt.NDArray[Any], position: int, low: Sequence[int], high: Sequence[int], zeros: bool = True
    ) -> None:
        """Read a box into the low corner of a canvas (*size, C), and ``zeros`` around it."""
        sides = [b - a for a, b in zip(low, high, strict=True)]
        corner = tuple(map(slice, sides))
        for axis, side in enumerate(sides):
            if zeros and side < canvas.shape[axis]:
                canvas[(*corner[:axis], slice(side, None))] = 0
        for channel in range(self.spec.channels):
            out = canvas[..., channel][corner]
            if self.dtype == torch.int16:
                self._stored(position, channel, low, high, out)
                continue
            slope, shift = self._scales[position][channel]
            stored = np.empty(sides, np.int16)
            self._stored(position, channel, low, high, stored)
            np.multiply(stored, np.float32(slope), out=out)
            out += np.float32(shift)

    def _readable(self, index: Tensor, corrupt: Mapping[int, str]) -> Tensor:
        """Positions, where the next readable one replaces one that is known to be corrupt."""
        known = torch.tensor([*self.corrupt, *corrupt], dtype=torch.int64)
        while len(known) and bool((hit := torch.isin(index, known)).any()):
            index = torch.where(hit, (index + 1) % len(self), index)
        return index

    def _stored(
        self, position: int, number: int, low: Sequence[int], high: Sequence[int], out: npt.NDArray[Any]
    ) -> None:
        """Read a box of one of the arrays of a file: of a channel, or of the labels after them."""
        if not out.size:
            return
        path, total, start, size, whole = self._places[position]
        width = out.dtype.itemsize
        offset = start + 2 * number * whole
        try:
            data = self._files.get(path, total, width * touched(low, high))
            read_box(data[offset : offset + width * whole].view(out.dtype), size, low, high, out)
        except EOFError as error:
            raise CorruptImage(path, "it is truncated; convert it again") from error
        except OSError as error:
            raise CorruptImage(path, f"it cannot be read ({error.strerror})") from error

    def _check(self, position: int, stored: npt.NDArray[Any], crc: int) -> None:
        if write_blocks(None, stored) != crc:
            raise CorruptImage(str(self.path(position)), "its checksum is wrong; convert it again")

    def _damage(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with a file, as far as its size says."""
        path = self.folder / VOLUMES / row["file"]
        try:
            size = os.stat(path).st_size
        except OSError as error:
            return f"{path}: {error.strerror}"
        return None if size == file_size(row) else f"{path}: it has {size:,} bytes instead of {file_size(row):,}"


def _inside(boxes: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high corners (B, 3) of boxes (B, 2, 3), moved into volumes that replace larger ones."""
    low, high = boxes.unbind(1)
    sides = torch.minimum(high - low, sizes)
    low = torch.minimum(low, sizes - sides)
    return low, low + sides


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"
