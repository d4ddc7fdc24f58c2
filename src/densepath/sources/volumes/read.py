"""A volume from a file of any of the known formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densepath.sources.corrupt import CorruptImage
from densepath.sources.volumes import blosc2_file, metaimage, nifti
from densepath.sources.volumes.volume import Volume

SUFFIXES = (*nifti.SUFFIXES, *metaimage.SUFFIXES, *blosc2_file.SUFFIXES)


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
    for path, part in zip(paths, parts, strict=True):
        check_same_place(str(path), part, str(paths[0]), first)
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


def files_of(path: str | Path) -> tuple[Path, ...]:
    """The files that a volume is read from: its header, voxels, properties and plans may be in files of their own."""
    path = Path(path)
    if path.name.lower().endswith(metaimage.SUFFIXES):
        return path, *metaimage.files_of_voxels(str(path))
    return (path, *blosc2_file.files_beside(path)) if path.name.lower().endswith(blosc2_file.SUFFIXES) else (path,)


def check_same_place(path: str, one: Volume, other_path: str, other: Volume) -> None:
    """Check that two volumes have the same voxels: equal shapes, and corners less than half a voxel apart.

    Raises:
        CorruptImage: they do not.
    """
    if one.shape != other.shape:
        sizes = [" x ".join(map(str, volume.shape)) for volume in (one, other)]
        raise CorruptImage(path, f"it has {sizes[0]} voxels, and {Path(other_path).name} {sizes[1]}")
    step = abs(other.affine[:3, :3]).sum(axis=1).min()
    far = [(volume.affine @ [*(n - 1 for n in volume.shape), 1.0])[:3] for volume in (one, other)]
    apart = max(abs(far[0] - far[1]).max(), abs(one.affine[:3, 3] - other.affine[:3, 3]).max())
    turned = abs(one.affine[:3, :3] - other.affine[:3, :3]).max()
    if apart > step / 2 or turned > step / 2:
        raise CorruptImage(path, f"it lies up to {apart:.3g} mm from {Path(other_path).name}; correct its position")
