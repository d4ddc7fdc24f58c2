"""MetaImage files: .mhd with .raw or .zraw, and .mha."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from densepath.sources.corrupt import CorruptImage
from densepath.sources.volumes.volume import Array, Channel, Volume, check_affine, check_values

SUFFIXES = (".mhd", ".mha")
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_HEAD = 2**16  # bytes in which a header is
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # to RAS


def read_metaimage(path: str, spacing: Sequence[float] | None = None, channels: bool = False) -> Volume:
    """Read a MetaImage file. Arguments and errors as for :func:`~densepath.sources.volumes.nifti.read_nifti`."""
    fields, end = _fields(path)
    shape = _whole(path, fields, "DimSize")
    if shape[3:] == (1,):  # a single time point
        shape = shape[:3]
    (count,) = _whole(path, fields, "ElementNumberOfChannels", "1")
    if len(shape) != 3 or min(*shape, count) < 1:
        raise CorruptImage(path, f"it is not a volume ({' x '.join(map(str, shape))} voxels)")
    if count > 1 and not channels:
        raise CorruptImage(path, f"it has {count} channels; save each as a file of its own")
    kind = fields.get("ElementType", "")
    if kind not in _TYPES:
        raise CorruptImage(path, f"its voxels are of the type {kind or 'unknown'}, which is not supported")
    if not _is_true(fields, "BinaryData", default="True"):
        raise CorruptImage(path, "its voxels are text (BinaryData = False); save them as binary data")
    msb = _is_true(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    dtype = np.dtype(_TYPES[kind]).newbyteorder(">" if msb else "<")
    data = _data(path, fields, end, count * int(np.prod(shape, dtype=object)) * dtype.itemsize)
    values = np.frombuffer(data, dtype).reshape((count, *shape), order="F")
    checked, notes = check_values(path, values)
    return Volume(tuple(map(Channel, checked)), _affine(path, fields, spacing), notes)


def count_channels(path: str) -> int:
    """The channels by the header. Raises CorruptImage."""
    return _whole(path, _fields(path)[0], "ElementNumberOfChannels", "1")[0]


def files_of_voxels(path: str) -> list[Path]:
    """The file that the header names for its voxels, if there is another one."""
    try:
        name = _fields(path)[0]["ElementDataFile"]
    except CorruptImage:
        return []
    return [] if name == "LOCAL" else [Path(path).parent / name]


def _fields(path: str) -> tuple[dict[str, str], int]:
    """The fields of the header, and where it ends."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise CorruptImage(path, f"it cannot be read ({error.strerror})") from error
    fields, place = {}, 0
    for line in head.splitlines(keepends=True):
        place += len(line)
        name, equals, value = line.decode("latin-1").partition("=")
        if equals:
            fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            if not value.strip() or "\0" in value:
                raise CorruptImage(path, "its ElementDataFile is damaged")
            return fields, place
    raise CorruptImage(path, "its header is damaged: it names no ElementDataFile")


def _numbers(path: str, fields: dict[str, str], name: str) -> list[float]:
    try:
        return [float(text) for text in fields[name].split()]
    except (KeyError, ValueError) as error:
        raise CorruptImage(path, f"its header has no valid {name}") from error


def _whole(path: str, fields: dict[str, str], name: str, default: str | None = None) -> tuple[int, ...]:
    """Whole numbers in a field: one, if there is a default."""
    text = fields.get(name, default) or ""
    try:
        numbers = tuple(int(number) for number in text.split())
    except ValueError:
        numbers = ()
    if not numbers or (default is not None and len(numbers) > 1):
        raise CorruptImage(path, f"its header has no valid {name}")
    return numbers


def _is_true(fields: dict[str, str], *names: str, default: str = "False") -> bool:
    """The first of some fields that the header has, by its first letter, as ITK reads it: True, T or 1."""
    return next((fields[name] for name in names if name in fields), default)[:1] in ("T", "t", "1")


def _data(path: str, fields: dict[str, str], end: int, needed: int) -> bytes:
    name = fields["ElementDataFile"]
    if name == "LIST" or "%" in name:
        raise CorruptImage(path, "its slices are in files of their own; save it with one file of voxels")
    file = path if name == "LOCAL" else os.path.join(os.path.dirname(path), name)
    try:
        with open(file, "rb") as opened:
            opened.seek(end if name == "LOCAL" else 0)
            data = opened.read()
    except OSError as error:
        raise CorruptImage(path, f"its voxels, {name}, cannot be read ({error.strerror})") from error
    if _is_true(fields, "CompressedData"):
        try:
            data = zlib.decompress(data)  # checks the length and the checksum
        except zlib.error as error:
            raise CorruptImage(path, f"its compressed voxels are damaged or truncated ({error})") from error
    (skipped,) = _whole(path, fields, "HeaderSize", "0")
    data = data[-needed:] if skipped == -1 else data[max(skipped, 0) :]
    if len(data) != needed:
        raise CorruptImage(path, f"it has {len(data):,} bytes of voxels instead of {needed:,}")
    return data


def _affine(path: str, fields: dict[str, str], spacing: Sequence[float] | None) -> Array:
    count = len(_whole(path, fields, "DimSize"))  # a fourth has one voxel
    key = next((name for name in ("ElementSpacing", "ElementSize") if name in fields), None)
    if key is None and spacing is None:
        raise CorruptImage(path, "it names no spacing of its voxels; give it with --spacing X Y Z")
    sides = _numbers(path, fields, key) if key else [*map(float, spacing or ()), *[1.0] * (count - 3)]
    axes = next((n for n in ("TransformMatrix", "Rotation", "Orientation") if n in fields), None)
    cosines = np.array(_numbers(path, fields, axes) if axes else np.eye(count).ravel())
    place = next((name for name in ("Offset", "Position", "Origin") if name in fields), None)
    origin = np.array(_numbers(path, fields, place) if place else [0.0] * count)
    if len(sides) != count or cosines.size != count**2 or origin.size != count:
        raise CorruptImage(path, "its spacing, axes and position do not have the dimensions of its voxels")
    affine = np.eye(4)
    affine[:3, :3] = cosines.reshape(count, count)[:3, :3].T * sides[:3]  # the file lists axis after axis
    affine[:3, 3] = origin[:3]
    affine = _LPS @ affine
    check_affine(path, affine)
    return affine
