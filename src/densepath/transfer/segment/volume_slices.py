"""A segmented volume in a small file, from which a page shows all of its slices."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.transfer.segment.legend import ClassMap

SUFFIX = ".npz"
_SIDE = 128  # voxels along each axis; of larger volumes every second, third, ...
_LARGEST = 4 * _SIDE**3  # bytes


@dataclass(frozen=True, eq=False)
class Slices:
    """A volume with its classes, as axes z, y, x.

    Args:
        image: (D, H, W) uint8.
        maps: title -> (D, H, W) classes: the truth, if it is known, and the prediction.
        background: the class that is not drawn.
        size: of the volume, of which these are every n-th slice along each axis.
    """

    image: npt.NDArray[np.uint8]
    maps: dict[str, ClassMap]
    background: int
    size: tuple[int, ...]


def write_slices(path: Path, image: npt.NDArray[np.uint8], maps: dict[str, ClassMap], background: int) -> None:
    """Write a volume (D, H, W, C) with its classes, reduced to at most 128 voxels along each axis."""
    size = np.array(image.shape[:3])
    every = tuple(slice(None, None, -(-side // _SIDE)) for side in size.tolist())
    arrays = {title: each[every].astype(np.uint8) for title, each in maps.items()}
    notes = {"background": np.int64(background), "size": size}
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez_compressed(file, image=image[every][..., 0], **notes, **arrays)


def read_slices(path: Path) -> Slices:
    """Read what :func:`write_slices` wrote.

    Raises:
        UserError: it is damaged, or too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _LARGEST:
                raise ValueError("it is too large")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        image, background, size = arrays.pop("image"), int(arrays.pop("background")), arrays.pop("size").tolist()
        if image.ndim != 3 or any(each.shape != image.shape or each.dtype != np.uint8 for each in arrays.values()):
            raise ValueError("other arrays")
        return Slices(image.astype(np.uint8, copy=False), arrays, background, tuple(size))
    except Exception as error:  # whatever NumPy and zipfile raise for a damaged file
        raise UserError(f"the slices {path} cannot be read ({error})") from None
