"""Volumes that nnU-Net and nnssl have preprocessed: a .b2nd file with properties in a .pkl file, and plans."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densepath.core.errors import UserError, counted
from densepath.sources.corrupt import CorruptImage, decoding
from densepath.sources.volumes.volume import Channel, Volume, check_affine, check_values, diagonal

SUFFIXES = (".b2nd",)
_PLANS_ABOVE = 4  # folders above a volume at most, of which one may be that of the plans' configuration
_ALLOWED = {
    "numpy": {"dtype", "ndarray"},
    "multiarray": {"scalar", "_reconstruct"},
    "numeric": {"_frombuffer"},  # of protocol 5, which Python 3.14 writes by default
    "collections": {"OrderedDict"},
}


def read_blosc2(path: str, spacing: Sequence[float] | None = None, channels: bool = False) -> Volume:
    """Read a preprocessed volume, (C, *axes): Z, Y and X in the order that its plans name.

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
    order = _order(Path(path))
    back = tuple(np.argsort(order or (0, 1, 2)).tolist())
    known = _spacing(Path(path), values.shape[1:], back) or spacing
    if known is None:
        raise CorruptImage(
            path, "no .pkl file beside it says its spacing and how it was resampled; give --spacing X Y Z"
        )
    if len(known) != 3:
        raise CorruptImage(path, f"its spacing has {counted(len(known), 'number')} instead of 3")
    affine = diagonal(known)
    check_affine(path, affine)
    checked, notes = check_values(path, (part.transpose(back).transpose(2, 1, 0) for part in values))
    unknown = () if order else ("no plans of nnU-Net or nnssl, its axes are taken as z, y, x",)
    return Volume(tuple(map(Channel, checked)), affine, (*unknown, *notes))


def files_beside(path: Path) -> tuple[Path, ...]:
    """The other files that a volume is read with: its properties, and the plans of its configuration."""
    plans = _plans(path)
    return (path.with_suffix(".pkl"), *([plans] if plans else []))


def _plans(path: Path) -> Path | None:
    """The plans of a file in .../PLANS_CONFIGURATION/..., which are .../PLANS.json."""
    for folder in list(path.absolute().parents)[:_PLANS_ABOVE]:
        fitting = [plans for plans in folder.parent.glob("*.json") if folder.name.startswith(f"{plans.stem}_")]
        if fitting:
            return max(fitting, key=lambda plans: len(plans.stem))
    return None


def _order(path: Path) -> tuple[int, ...] | None:
    """Which of z, y and x each axis of the voxels is, from the plans; None without plans."""
    plans = _plans(path)
    if plans is None:
        return None
    with decoding(path, f"its plans, {plans}, have no valid transpose_forward"):
        order = tuple(int(axis) for axis in json.loads(plans.read_bytes())["transpose_forward"])
        if sorted(order) != [0, 1, 2]:
            raise ValueError(order)
    return order


def _spacing(path: Path, shape: Sequence[int], back: Sequence[int]) -> tuple[float, ...] | None:
    """mm along x, y, z of the preprocessed voxels, from the properties beside a file; None if they do not show it.

    nnU-Net and nnssl record the spacing of the raw file along z, y and x, and the shape before resampling in the order
    of the preprocessed axes.

    Args:
        path: the file.
        shape: of its voxels.
        back: which of these axes is z, y and x.
    """
    properties = path.with_suffix(".pkl")
    if not properties.exists():
        return None
    with decoding(path, "its properties cannot be read"):
        with properties.open("rb") as file:
            found = _Plain(file).load()
        if not isinstance(found, dict):
            return None
        if (sides := found.get("spacing_after_resampling")) is not None:
            return tuple(float(sides[axis]) for axis in reversed(back))
        raw, before = found.get("spacing"), found.get("shape_after_cropping_and_before_resampling")
        if raw is None or before is None:
            return None
        zyx = [float(side) * int(before[axis]) / shape[axis] for side, axis in zip(raw, back, strict=True)]
        return tuple(reversed(zyx))


class _Plain(pickle.Unpickler):
    """Reads numbers, texts, containers and arrays, and runs no code of the file."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module.rpartition(".")[2], ()) and module.split(".")[0] in ("numpy", "collections"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it contains {module}.{name}")
