"""A volume from a file of any of the known formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from densepath.sources.corrupt import CorruptImage
from densepath.sources.volumes import blosc2_file, metaimage, nifti
from densepath.sources.volumes.volume import Volume, library

SUFFIXES = (*nifti.SUFFIXES, *metaimage.SUFFIXES, *blosc2_file.SUFFIXES)
_APART = 0.5  # voxels: corners of one volume and of another are nearer to each other


def read_volume(path: str | Path, spacing: Sequence[float] | None = None, channels: bool = False) -> Volume:
    """Read a volume from a file. Arguments and errors as for :func:`~densepath.sources.volumes.nifti.read_nifti`."""
    name = str(path)
    if name.lower().endswith(metaimage.SUFFIXES):
        return metaimage.read_metaimage(name, spacing, channels)
    if name.lower().endswith(blosc2_file.SUFFIXES):
        return blosc2_file.read_blosc2(name, spacing, channels)
    return nifti.read_nifti(name, spacing, channels)


def read_channels(paths: Sequence[str | Path], spacing: Sequence[float] | None = None) -> Volume:
    """A volume whose channels are in files of their own, or in the fourth dimension of one file.

    Raises:
        CorruptImage: one cannot be read, or they do not lie on each other.
    """
    parts = [read_volume(path, spacing, channels=True) for path in paths]
    first = parts[0]
    parts = [on_voxels_of(str(path), part, str(paths[0]), first) for path, part in zip(paths, parts, strict=True)]
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    return Volume(tuple(channel for part in parts for channel in part.channels), first.affine, notes)


def count_channels(path: str | Path) -> int | None:
    """How many channels ``read_volume(path, channels=True)`` would have, by the header; None if that is not known."""
    name = str(path)
    if name.lower().endswith(blosc2_file.SUFFIXES):
        return None
    reader = metaimage if name.lower().endswith(metaimage.SUFFIXES) else nifti
    try:
        return reader.count_channels(name)
    except CorruptImage:
        return None


def has_map(path: str | Path) -> bool:
    """Whether a volume has an affine map, by its header: only NIfTI files may lack one."""
    if (name := str(path)).lower().endswith((*metaimage.SUFFIXES, *blosc2_file.SUFFIXES)):
        return True
    try:
        return nifti.has_map(name)
    except CorruptImage:  # reported when it is read
        return True


def files_of(path: str | Path) -> tuple[Path, ...]:
    """The files that a volume is read from: its header, voxels, properties and plans may be in files of their own."""
    path = Path(path)
    if path.name.lower().endswith(metaimage.SUFFIXES):
        return path, *metaimage.files_of_voxels(str(path))
    return (path, *blosc2_file.files_beside(path)) if path.name.lower().endswith(blosc2_file.SUFFIXES) else (path,)


def on_voxels_of(path: str, one: Volume, other_path: str, other: Volume) -> Volume:
    """A volume whose axes have the order and the direction of those of another one, with the same voxels: equal shapes,
    and all corners less than half a voxel apart.

    Raises:
        CorruptImage: they have other voxels.
    """
    orientations = library("nibabel.orientations")
    to_other = np.linalg.inv(other.affine)
    turn = orientations.io_orientation(to_other @ one.affine)
    turned = replace(
        one,
        channels=tuple(replace(c, values=orientations.apply_orientation(c.values, turn)) for c in one.channels),
        affine=one.affine @ orientations.inv_ornt_aff(turn, one.shape),
    )
    axes = ["".join(orientations.aff2axcodes(volume.affine)) for volume in (one, other)]
    name = Path(other_path).name
    if turned.shape != other.shape:
        also = [f" (axes {codes})" if axes[0] != axes[1] else "" for codes in axes]
        sizes = [" x ".join(map(str, volume.shape)) for volume in (one, other)]
        raise CorruptImage(path, f"it has {sizes[0]} voxels{also[0]}, and {name} {sizes[1]}{also[1]}")
    corners = np.array([*product(*((0, n - 1) for n in other.shape), [1])], np.float64).T
    apart = (turned.affine - other.affine) @ corners
    if not np.abs(to_other @ apart)[:3].max() < _APART:
        far = np.linalg.norm(apart[:3], axis=0).max()
        lacking = [what for what, volume in (("it", one), (name, other)) if nifti.NO_MAP in volume.notes]
        remedy = f"{lacking[0]} has no affine map; save both with one" if lacking else "correct its position"
        raise CorruptImage(path, f"it lies up to {far:.3g} mm from {name}; {remedy}")
    return turned
