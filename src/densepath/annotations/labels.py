"""Instance label maps: 0 for background, one number per object, as images, NumPy or MATLAB files."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported when they are used
from PIL import Image

from densepath.core.errors import UserError, counted
from densepath.sources.conversion import stored_numbers
from densepath.sources.corrupt import CorruptImage, decoding
from densepath.sources.decode import read_header, read_size, without_notes
from densepath.sources.tiff import TIFF_STARTS, read_stored, refuse_bomb, stored_orientation, stored_shape, too_large

_T = TypeVar("_T")

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".npy", ".mat")
_MATLAB_COMPRESSED, _MATLAB_HEAD = 15, 2**16  # a kind of element; bytes of an element besides its numbers
_CLASSES = ("type_map", "inst_type", "class")
_USUAL = "inst_map"  # the name of the variable in MATLAB files with several
_MATLAB_KINDS = ("double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


def label_size(path: Path) -> tuple[int, int]:
    """The (height, width) of a label map from its file's header only.

    Raises:
        CorruptImage: the file cannot be read.
        UserError: it does not contain exactly one map.
    """
    suffix = path.suffix.lower()
    if suffix == ".mat":
        shape = _variable(path)[1]
    elif suffix == ".npy":
        shape = map_array(path).shape
    elif _is_tiff(path):
        shape = _read_tiff(stored_shape, path)
    else:
        return read_size(path)
    if len(shape) != 2:
        raise UserError(
            f"{path} holds an array of {counted(len(shape), 'axis', 'axes')}, not a label map; give arrays of height "
            "x width"
        )
    refuse_bomb(path, shape[1], shape[0])
    return shape[0], shape[1]


def unread_classes(path: Path) -> list[str]:
    """The variables of a MATLAB file with the classes of objects (CoNSeP, Lizard), which are not read."""
    if path.suffix.lower() != ".mat":
        return []
    with decoding(path, "is not a MATLAB file"):
        listed = {name for variables, *_ in _matlab_elements(path, _MATLAB_HEAD) for name, *_ in variables}
    return [name for name in _CLASSES if name in listed]


def label_orientation(path: Path) -> int:
    """The orientation tag of a label map, 1 to 8, which :func:`read_labels` ignores; 1 where there is none.

    Raises:
        CorruptImage: the file cannot be read.
    """
    if path.suffix.lower() in (".npy", ".mat"):
        return 1
    return _read_tiff(stored_orientation, path) if _is_tiff(path) else read_header(path).orientation


def read_labels(path: Path) -> npt.NDArray[np.int32]:
    """An instance label map (H, W) with the numbers of its file, as stored; for a palette image, its indices.

    Raises:
        CorruptImage: the file cannot be read.
        UserError: it does not contain exactly one map of integers.
    """
    suffix = path.suffix.lower()
    labels = _load_matlab(path) if suffix == ".mat" else map_array(path) if suffix == ".npy" else _decode(path)
    if labels.ndim != 2:
        raise UserError(f"{path} is a color image, not a label map; give label maps with one channel")
    return whole_numbers(labels, path)


def whole_numbers(labels: npt.NDArray[Any], source: str | Path) -> npt.NDArray[np.int32]:
    """Labels as integers.

    Args:
        labels: an array of any dtype.
        source: where it is from, for messages.

    Raises:
        UserError: its values are not whole numbers of 32 bits.
    """
    if labels.dtype.kind not in "biuf":
        raise UserError(f"{source} holds {labels.dtype} instead of numbers; give one whole number per object")
    with np.errstate(invalid="ignore"):  # NaN is refused below
        whole = labels.astype(np.int32)
    if not np.array_equal(whole, labels):
        raise UserError(f"{source} holds fractions or numbers beyond 2**31; give one whole number per object")
    return whole


def read_objects(path: Path) -> npt.NDArray[np.int32]:
    """As :func:`read_labels`, for maps in which 0 is background and each other number one object.

    Raises:
        UserError: as there, or a number is negative.
    """
    labels = read_labels(path)
    if labels.min(initial=0) < 0:
        raise UserError(f"{path} holds negative numbers; give 0 for background and a positive number per object")
    return labels


def _is_tiff(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in TIFF_STARTS
    except OSError:
        return False


def _read_tiff(read: Callable[[Path], _T], path: Path) -> _T:
    """Stored numbers: Pillow would invert and turn some, and reads the first page only."""
    with decoding(path):
        return read(path)


def _decode(path: Path) -> npt.NDArray[Any]:
    if _is_tiff(path):
        return _read_tiff(read_stored, path)
    try:
        try:
            image = Image.open(path)
        except ValueError:  # notes of a PNG that are too long
            image = Image.open(without_notes(path))
        refuse_bomb(path, *image.size)
        with image:
            return stored_numbers(image)
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise CorruptImage(str(path), f"cannot be decoded ({error})") from error


def map_array(path: Path) -> npt.NDArray[Any]:
    """Map a NumPy file into memory; it may not hold pickled objects.

    Raises:
        CorruptImage: it cannot be read.
    """
    with decoding(path, "is not an array of numbers"):
        array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    return array


def _load_matlab(path: Path) -> npt.NDArray[Any]:
    name, shape = _variable(path)
    refuse_bomb(path, *reversed(shape))
    with decoding(path):
        content = _matlab_element(path, name, 8 * shape[0] * shape[1] + _MATLAB_HEAD)
        return np.asarray(scipy.io.loadmat(content, variable_names=[name])[name])


def _matlab_element(path: Path, name: str, most: int) -> io.BytesIO:
    """A MATLAB file with one variable of another one.

    Raises:
        CorruptImage: the variable has more bytes than its shape, ``most``.
    """
    for variables, file, length in _matlab_elements(path, most + 1):
        if name in [variable for variable, *_ in variables]:
            if length > most:
                raise CorruptImage(str(path), "it holds more numbers than its shape says; save it again")
            return file
    raise CorruptImage(str(path), f"cannot be decoded ({name} is missing)")


def _matlab_elements(path: Path, most: int) -> Iterator[tuple[list[Any], io.BytesIO, int]]:
    """The parts of a MATLAB file: what ``scipy.io.whosmat`` lists, a file of its own without compression, its length.

    At most the first ``most`` bytes are inflated: scipy inflates whatever a file claims.
    """
    data = path.read_bytes()
    version = scipy.io.matlab.matfile_version(io.BytesIO(data))[0]
    if version != 1:  # format 4 has no compression, and scipy refuses 7.3
        file = io.BytesIO(data)
        yield scipy.io.whosmat(file), io.BytesIO(data), 0
        return
    order, place = "<" if data[126:128] == b"IM" else ">", 128
    while place + 8 <= len(data):
        kind, length = struct.unpack(f"{order}II", data[place : place + 8])
        element = data[place : place + 8 + length]
        if kind == _MATLAB_COMPRESSED:
            element = zlib.decompressobj().decompress(element[8:], most)
        file = io.BytesIO(data[:128] + element)
        variables = scipy.io.whosmat(file)
        file.seek(0)
        yield variables, file, len(element)
        place += 8 + length


def _variable(path: Path) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the map in a MATLAB file, from its headers: the only matrix of numbers, or ``inst_map``."""
    with decoding(path, "is not a MATLAB file"):
        try:
            listed = [each for variables, *_ in _matlab_elements(path, _MATLAB_HEAD) for each in variables]
        except NotImplementedError:
            raise UserError(f"{path} has MATLAB's format 7.3; save it with -v7, or as PNG or .npy") from None
    maps = {n: shape for n, shape, kind in listed if len(shape) == 2 and min(shape) > 1 and kind in _MATLAB_KINDS}
    if len(maps) > 1 and _USUAL in maps:
        maps = {_USUAL: maps[_USUAL]}
    if len(maps) != 1:
        raise UserError(
            f"{path} holds {len(maps)} matrices ({', '.join(maps) or 'none of numbers'}) where one label map should "
            f"be; keep only that one, or name it {_USUAL}"
        )
    return next(iter(maps.items()))
