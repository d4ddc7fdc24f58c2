"""A segmented volume in a small file, from which a page shows all of its slices."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError, errors_as
from densepath.core.files import atomic_write
from densepath.transfer.segment.legend import ClassMap

SUFFIX = ".npz"
_SIDE = 128  # voxels along each axis; of larger volumes every second, third, ...
_FAR = 100.0  # mm: voxels are nearer
_LARGEST = 4 * _SIDE**3  # bytes


@dataclass(frozen=True, eq=False)
class Slices:
    """A volume with its classes, as axes z, y, x.

    Args:
        image: (D, H, W) uint8.
        maps: title -> (D, H, W) classes: the truth, if it is known, and the prediction.
        background: the class that is not drawn.
        size: of the volume, of which these are every n-th slice along each axis.
        spacing: mm between these slices along each axis.
    """

    image: npt.NDArray[np.uint8]
    maps: dict[str, ClassMap]
    background: int
    size: tuple[int, ...]
    spacing: tuple[float, ...]


def write_slices(
    path: Path,
    image: npt.NDArray[np.uint8],
    maps: dict[str, ClassMap],
    background: int,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> None:
    """Write a volume (D, H, W, C) of voxels ``spacing`` mm apart, and its classes: at most 128 slices along an axis."""
    size = np.array(image.shape[:3])
    steps = -(-size // _SIDE)
    every = tuple(slice(None, None, step) for step in steps.tolist())
    arrays: dict[str, Any] = {title: each[every].astype(np.uint8) for title, each in maps.items()}
    notes: dict[str, Any] = {"background": np.int64(background), "size": size, "spacing": steps * np.array(spacing)}
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez_compressed(file, image=image[every][..., 0], **notes, **arrays)


def read_slices(path: Path) -> Slices:
    """Read what :func:`write_slices` wrote.

    Raises:
        UserError: it is damaged, or too large.
    """
    with errors_as(lambda error: UserError(f"the slices {path} cannot be read ({error})")):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _LARGEST:
                raise ValueError("it is too large")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        image, background, size = arrays.pop("image"), int(arrays.pop("background")), arrays.pop("size").tolist()
        spacing = [float(each) for each in arrays.pop("spacing")]
        if len(spacing) != 3 or not all(0 < each < _FAR for each in spacing):
            raise ValueError("no distances of voxels")
        if image.ndim != 3 or any(each.shape != image.shape or each.dtype != np.uint8 for each in arrays.values()):
            raise ValueError("other arrays")
        return Slices(image.astype(np.uint8, copy=False), arrays, background, tuple(size), tuple(spacing))
