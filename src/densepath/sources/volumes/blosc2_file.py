"""Volumes that nnU-Net and nnssl have preprocessed: a .b2nd file with its spacing in a .pkl file beside it."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densepath.core.errors import UserError, counted
from densepath.sources.corrupt import CorruptImage, decoding
from densepath.sources.volumes.volume import Channel, Volume, check_affine, check_values, diagonal

SUFFIXES = (".b2nd",)
_ALLOWED = {"numpy": {"dtype", "ndarray"}, "multiarray": {"scalar", "_reconstruct"}, "collections": {"OrderedDict"}}


def read_blosc2(path: str, spacing: Sequence[float] | None = None, channels: bool = False) -> Volume:
    """Read a preprocessed volume, (C, Z, Y, X).

    Arguments and errors as for :func:`~densepath.sources.volumes.nifti.read_nifti`. Where the volume was is not known
    in these files: its axes are taken as R, A, S.
    """
    try:
        import blosc2
    except ImportError as error:
        raise UserError('.b2nd files need the package blosc2; pip install "densepath[blosc2]"') from error
    with decoding(path, "it cannot be decompressed"):
        values = np.asarray(blosc2.open(path, mode="r")[:])
    values = values[None] if values.ndim == 3 else values
    if values.ndim != 4 or (len(values) > 1 and not channels):
        raise CorruptImage(path, f"it is not a volume ({' x '.join(map(str, values.shape))})")
    known = _spacing(Path(path)) or spacing
    if known is None:
        raise CorruptImage(path, "no .pkl file beside it names its spacing; give it with --spacing X Y Z")
    if len(known) != 3:
        raise CorruptImage(path, f"its spacing has {counted(len(known), 'number')} instead of 3")
    affine = diagonal(known)
    check_affine(path, affine)
    checked, notes = check_values(path, (part.transpose(2, 1, 0) for part in values))
    return Volume(tuple(map(Channel, checked)), affine, notes)


def _spacing(path: Path) -> tuple[float, ...] | None:
    """mm along x, y, z of the preprocessed voxels, from the properties beside a file."""
    properties = path.with_suffix(".pkl")
    if not properties.exists():
        return None
    with decoding(path, "its properties cannot be read"):
        with properties.open("rb") as file:
            found = _Plain(file).load()
        sides = found.get("spacing_after_resampling", found.get("spacing")) if isinstance(found, dict) else None
        return tuple(float(side) for side in reversed(list(sides))) if sides is not None else None


class _Plain(pickle.Unpickler):
    """Reads numbers, texts, containers and arrays, and runs no code of the file."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module.rpartition(".")[2], ()) and module.split(".")[0] in ("numpy", "collections"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it contains {module}.{name}")
