"""NIfTI files: compressed ones are read to the end, where their checksum is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from densepath.core.errors import counted, errors_as, one_line
from densepath.sources.corrupt import CorruptImage, decoding
from densepath.sources.volumes.volume import Array, Channel, Volume, check_affine, check_values, diagonal, library

NO_MAP = "no affine map, its axes are taken as R, A, S"  # a note
SUFFIXES = (".nii", ".nii.gz")
_GZIP = b"\x1f\x8b"
_MAGIC = {b"n+1": "Nifti1Header", b"n+2": "Nifti2Header"}
_SIZES = {348: (344, "Nifti1Header"), 540: (4, "Nifti2Header")}  # of a header -> place of its magic, class
_EXTENDER = 4  # bytes after a header that say whether extensions follow
_TO_MM = {1: 1000.0, 3: 0.001}  # codes of metre and micrometre; others are mm, or unknown
_FAR = 0.1  # voxels by which the two affine maps of a file may differ


def read_nifti(path: str, spacing: Sequence[float] | None = None, channels: bool = False) -> Volume:
    """Read a NIfTI file, compressed or not, whatever its name says.

    Its values stay as stored, with their slope and intercept. Of two affine maps the sform counts.

    Args:
        path: the file.
        spacing: mm along i, j and k of a file that names none.
        channels: whether a fourth dimension is that of channels; otherwise it must be 1.

    Raises:
        CorruptImage: it is damaged, or not a volume of real numbers with a position.
    """
    data = read_bytes(path)
    header = _header(path, data)
    shape = _shape(path, header, channels)
    if len(shape) not in (3, 4) or (len(shape) == 4 and not channels):
        sides = " x ".join(map(str, shape))
        raise CorruptImage(
            path, f"it has {counted(len(shape), 'dimension')} ({sides}); save each volume as a file of its own"
        )
    values = _values(path, header, data, shape)
    affine, notes = _affine(path, header, spacing)
    with decoding(path, "its slope and intercept are not numbers"):
        slope, intercept = header.get_slope_inter()
    scale = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    parts = [values] if values.ndim == 3 else [values[..., k] for k in range(values.shape[3])]
    checked, more = check_values(path, parts)
    return Volume(tuple(Channel(part, *scale) for part in checked), affine, (*notes, *more))


def count_channels(path: str) -> int:
    """The channels by the header. Raises CorruptImage."""
    shape = _shape(path, _header(path, read_bytes(path, max(_SIZES))), channels=True)
    return shape[3] if len(shape) == 4 else 1


def has_map(path: str) -> bool:
    """Whether a file has an affine map, by its header. Raises CorruptImage."""
    return any(_maps(_header(path, read_bytes(path, max(_SIZES)))))


def _shape(path: str, header: Any, channels: bool) -> tuple[int, ...]:
    """The shape, without dimensions that say nothing."""
    shape = tuple(int(n) for n in header.get_data_shape())
    if min(shape, default=0) < 1:
        raise CorruptImage(path, f"it is empty ({' x '.join(map(str, shape)) or 'no'} voxels)")
    while len(shape) > (4 if channels else 3) and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 5 and channels and shape[3] == 1:  # vectors
        shape = (*shape[:3], shape[4])
    return shape


def read_bytes(path: str, most: int = -1) -> bytes:
    """The content of a file, or its first bytes, decompressed if it is a gzip file.

    Raises:
        CorruptImage: it cannot be read, is truncated, or its checksum is wrong.
    """
    with errors_as(lambda error: CorruptImage(path, _unreadable(error))), open(path, "rb") as file:
        start = file.read(2)
        file.seek(0)
        if start != _GZIP:
            data = file.read(most)
        else:
            with library("isal.igzip").GzipFile(fileobj=file, mode="rb") as content:
                data = content.read(most)  # all: checks the length and the CRC too
    if not data:
        raise CorruptImage(path, "it is empty")
    return data


def _unreadable(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"it cannot be read ({error.strerror})"
    return f"its compressed data are damaged or truncated ({one_line(str(error))})"


def _header(path: str, data: bytes) -> Any:
    sizes = {int.from_bytes(data[:4], order) for order in ("little", "big")}
    size = next((n for n, (place, _) in _SIZES.items() if n in sizes and data[place : place + 3] in _MAGIC), None)
    if size is None:
        raise CorruptImage(path, "it is not a NIfTI file")
    with decoding(path, "its header is damaged"):
        nibabel = library("nibabel")
        # Its own check would change what it finds wrong: a spacing of 0 becomes 1
        header = getattr(nibabel, _SIZES[size][1]).from_fileobj(io.BytesIO(data[:size]), check=False)
        header["pixdim"][1:4] = abs(header["pixdim"][1:4])  # as nibabel and ITK read it
    return header


def _values(path: str, header: Any, data: bytes, shape: tuple[int, ...]) -> Array:
    """The voxels, as a view of the bytes."""
    with decoding(path, "its type of voxels is unknown"):
        dtype = np.dtype(header.get_data_dtype())
        start = int(header.get_data_offset())
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if 0 <= start < header.sizeof_hdr:
        start = len(data) - needed  # as some writers leave it at 0, and readers differ
        if start - header.sizeof_hdr not in (0, _EXTENDER):
            raise CorruptImage(path, "its vox_offset lies within the header; correct it")
    if start < 0 or len(data) - start < needed:
        raise CorruptImage(path, f"it is truncated: {max(len(data) - start, 0):,} of {needed:,} bytes of voxels")
    return np.frombuffer(data, dtype, needed // dtype.itemsize, start).reshape(shape, order="F")


def _zooms(header: Any) -> list[float]:
    return [float(side) for side in header["pixdim"][1:4]]


def _valid(zooms: Sequence[float]) -> bool:
    return all(0 < side < np.inf for side in zooms)


def _maps(header: Any) -> tuple[bool, bool]:
    """Whether there are an sform and a qform."""
    sform = int(header["sform_code"]) > 0 and any(header[f"srow_{axis}"][:3].any() for axis in "xyz")
    return sform, int(header["qform_code"]) > 0 and _valid(_zooms(header))


def _affine(path: str, header: Any, spacing: Sequence[float] | None) -> tuple[Array, list[str]]:
    """The affine map in mm, and what is unusual about it."""
    notes = []
    zooms = _zooms(header)
    sform, qform = _maps(header)
    to_mm = _TO_MM.get(int(header["xyzt_units"]) % 8, 1.0)
    if not sform and not qform:
        known = _valid(zooms) and set(zooms) != {1.0}  # 1 mm is what writers say that know nothing
        if not known and spacing is None:
            raise CorruptImage(path, "it does not say where its voxels are; give their distance with --spacing X Y Z")
        affine = diagonal([side * to_mm for side in zooms] if known else spacing or ())
        check_affine(path, affine)
        return affine, [NO_MAP]
    with decoding(path, "its affine map is damaged"):
        affine = np.array(header.get_sform() if sform else header.get_qform(), np.float64)
    other = _finite_qform(path, header) if sform and qform else affine
    if other is None:
        notes.append("a damaged qform; the sform counts")
    elif np.isfinite(affine).all():
        far = np.array(header.get_data_shape()[:3], np.float64) - 1
        corners = np.array([[0, 0, 0, 1], [*far, 1], [far[0], 0, 0, 1], [0, far[1], 0, 1]]).T
        apart = np.abs((affine - other) @ corners)[:3].max()
        if apart > _FAR * max(min(np.linalg.norm(affine[:3, :3], axis=0)), 1e-6):
            notes.append("qform and sform differ; the sform counts")
    affine[:3] *= to_mm
    check_affine(path, affine)
    return affine, notes


def _finite_qform(path: str, header: Any) -> Array | None:
    """The affine map of the qform; None if it is damaged."""
    try:
        with decoding(path):
            affine = np.array(header.get_qform(), np.float64)
    except CorruptImage:
        return None
    return affine if np.isfinite(affine).all() else None
