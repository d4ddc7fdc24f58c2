"""Packed stores on disk: decoded images in one file that is mapped into memory, for training without decoding.

The file is a plain safetensors file, readable by ``safetensors.safe_open`` too. It contains ``pixels`` ((N, *size, C)
if all images have one size, else flat values), ``offsets``, ``sizes``, ``name_starts``, ``names``, optionally
``spacing``, and in its metadata the specification of the pixels. The header has a fixed size, because the pixels are
written before their number is known. Version 1, of 8-bit RGB only, is read too.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from densepath.core.errors import UserError, counted
from densepath.core.files import atomic_write, require_new_file
from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import take_single_values
from densepath.core.streams import say
from densepath.sources.corrupt import CorruptLog
from densepath.sources.image_files import MAX_SIDE, ImageFiles
from densepath.sources.packed import BLOCK, PackedTiles
from densepath.sources.path_table import PathTable
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.read_all import read_all
from densepath.sources.summary import summarize
from densepath.sources.unpacked import find_unpacked

SUFFIX = ".safetensors"
NO_EXCLUDE = "--exclude has no effect on a packed store; pack the images again without those"
FORMAT, VERSION, READABLE = "densepath-tiles", "2", ("1", "2")
HEADER = 4096  # bytes before the pixels: the header's length in 8 bytes, then JSON, then spaces
_PER_CHANNEL = 48  # bytes more for the mean and std of each channel
_FEW_CHANNELS = 16  # for which there is room
_MOST_CHANNELS = 2**16
_RGB = PixelSpec()
_STORABLE = tuple(map(np.dtype, ["u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8"]))
_TABLES = {"offsets": torch.int64, "name_starts": torch.int64, "sizes": torch.int32, "names": torch.uint8}


@take_single_values
def pack(source: AnyPath, dest: str | Path, *, max_side: int = MAX_SIDE, exclude: Sequence[str] = ()) -> Path:
    """Decode all images of a source into one file, which is read by mapping it into memory.

    Args:
        source: folder, text list or glob pattern, see :func:`densepath.sources.listing.list_images`; or a folder of
            tiles of slides, whose µm per pixel are stored too.
        dest: the file to write, ``*.safetensors``.
        max_side: larger images (pixels) are reduced, as in training from files.
        exclude: patterns of files to leave out: ``*`` and ``?`` in a path below ``source``, a folder or a name.

    Returns:
        The path of the store. Corrupt images are logged and left out.

    Raises:
        UserError: no images, too many corrupt ones, one that cannot be read now; ``dest`` exists or has another suffix.
    """
    source = as_path(source)
    dest = new_store(dest)
    images = find_unpacked(source, max_side, exclude)
    for line in summarize(images, images if isinstance(images, ImageFiles) else None):
        say(f"densepath: {line}")
    corrupt = CorruptLog(len(images))
    read = read_all(images, corrupt, "packing", all_of_them=True)
    with atomic_write(dest) as temporary, open(temporary, "wb") as file:
        sizes, dtype = _write_pixels(file, (image for image in read if image is not None), images.spec)
        root = Path(source) if Path(source).is_dir() else Path(source).parent
        kept = torch.from_numpy(np.setdiff1d(np.arange(len(images)), [*corrupt.found]))
        names = PathTable.of(_relative(images.names(int(position)), root) for position in kept)
        spacing = images.spacing(kept)
        write_tables(file, sizes, names, images.spec, dtype, None if spacing is None else spacing.numpy())
        require_new_file(dest)  # another command may have written it meanwhile
    return dest


def new_store(dest: str | Path) -> Path:
    """The path of a store that is to be written.

    Raises:
        UserError: it exists, or has another suffix.
    """
    dest = Path(dest)
    if dest.suffix.lower() != SUFFIX:
        raise UserError(f"a packed store is a {SUFFIX} file; name it {dest.name}{SUFFIX} instead of {dest.name}")
    require_new_file(dest)
    return dest


def write_store(
    dest: str | Path,
    images: Iterable[npt.NDArray[Any]],
    names: Iterable[str],
    spec: PixelSpec,
    spacing: npt.ArrayLike | None = None,
) -> Path:
    """Write images in memory, of 2 or 3 dimensions, as a packed store.

    Args:
        dest: the file to write, ``*.safetensors``.
        images: (*size, C) of one integer or floating dtype, of any byte order.
        names: their names.
        spec: the meaning of their values.
        spacing: (N, d) the distance of neighboring pixels along each axis, in µm or mm.

    Raises:
        UserError: an image, the names or the spacing do not fit, or ``dest`` exists or has another suffix.
    """
    dest = new_store(dest)
    with atomic_write(dest) as temporary, open(temporary, "wb") as file:
        sizes, dtype = _write_pixels(file, images, spec)
        table = PathTable.of(names)
        if len(table) != len(sizes):
            raise UserError(f"{counted(len(sizes), 'image')} cannot have {counted(len(table), 'name')}; give one each")
        write_tables(file, sizes, table, spec, dtype, None if spacing is None else _checked_spacing(spacing, sizes))
    return dest


def open_store(path: str | Path) -> PackedTiles:
    """Map a packed store into memory.

    Raises:
        UserError: the file is missing, not a packed store, of another version, or truncated.
    """
    try:
        tensors, spec = _map(Path(path))
    except OSError as error:
        raise UserError(f"the packed store {path} cannot be read ({error.strerror}); check the path") from error
    if not _consistent(tensors, spec):
        raise _broken(path, "its tables do not fit its pixels")
    names = PathTable(tensors["names"], tensors["name_starts"])
    pixels, sizes, offsets = tensors["pixels"].flatten(), tensors["sizes"], tensors["offsets"]
    return PackedTiles(pixels, sizes, offsets, names, file=Path(path), spec=spec, spacing=tensors.get("spacing"))


def _consistent(tensors: dict[str, Tensor], spec: PixelSpec) -> bool:
    if "pixels" not in tensors or any(key not in tensors or tensors[key].dtype != _TABLES[key] for key in _TABLES):
        return False
    sizes, offsets, starts = tensors["sizes"], tensors["offsets"], tensors["name_starts"]
    count = len(sizes) if sizes.ndim else 0
    if not count or sizes.shape != (count, spec.ndim) or offsets.shape != (count,) or starts.shape != (count + 1,):
        return False
    if "spacing" in tensors and (tensors["spacing"].shape, tensors["spacing"].dtype) != (sizes.shape, torch.float32):
        return False
    total, end = tensors["pixels"].numel(), 0
    for first in range(0, count, BLOCK):
        block = slice(first, first + BLOCK)
        # In floating point first: products of wrong, huge sizes would overflow.
        if int(sizes[block].min()) < 1 or float(sizes[block].double().prod(dim=1).max()) > total:
            return False
        numbers_each = sizes[block].to(torch.int64).prod(dim=1) * spec.channels
        ends = numbers_each.cumsum(0) + end
        names_grow = int(starts[first : first + BLOCK + 1].diff().min()) >= 0
        if not names_grow or not torch.equal(offsets[block], ends - numbers_each):
            return False
        end = int(ends[-1])
    return end == total and int(starts[0]) == 0 and int(starts[-1]) == len(tensors["names"])


def _relative(name: str, root: Path) -> str:
    path = Path(name)
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _broken(path: str | Path, why: str) -> UserError:
    return UserError(f"the packed store {path} is damaged or truncated ({why}); pack the images again")


def _header_bytes(spec: PixelSpec) -> int:
    return HEADER + (_PER_CHANNEL * spec.channels if spec.channels > _FEW_CHANNELS else 0) // 8 * 8


def _write_pixels(
    file: BinaryIO, images: Iterable[npt.NDArray[Any]], spec: PixelSpec
) -> tuple[npt.NDArray[np.int32], np.dtype[Any]]:
    """Write the images one after another. Returns their sizes (N, d) and their dtype.

    Raises:
        UserError: there are none, or one does not fit the specification or the first one.
    """
    file.seek(_header_bytes(spec))
    sizes, dtype = array("i"), None
    for number, image in enumerate(map(np.asarray, images)):
        _check_image(image, number, spec, dtype)
        dtype = dtype or image.dtype.newbyteorder("<")
        sizes.extend(image.shape[:-1])
        file.write(np.ascontiguousarray(image, dtype).data)
    if dtype is None:
        raise UserError("a packed store needs at least one image")
    return np.frombuffer(sizes, dtype=np.int32).reshape(-1, spec.ndim), dtype


def _check_image(image: npt.NDArray[Any], number: int, spec: PixelSpec, dtype: np.dtype[Any] | None) -> None:
    """Raise UserError where an image cannot be stored, or has another dtype than the images before it."""
    if image.ndim != spec.ndim + 1 or image.shape[-1] != spec.channels or not image.size:
        axes = "height x width" if spec.ndim == 2 else "depth x height x width"
        raise UserError(f"image {number} has the shape {list(image.shape)}; give {axes} x {spec.channels}")
    if image.dtype.newbyteorder("<") not in _STORABLE:
        raise UserError(f"image {number} is {image.dtype}; convert it to whole numbers or floats of 8 to 64 bits")
    if dtype not in (None, image.dtype.newbyteorder("<")):
        raise UserError(f"image {number} is {image.dtype}, and those before are {dtype}; convert all to one dtype")


def _checked_spacing(spacing: npt.ArrayLike, sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """The spacing of images, if it has one positive number for each axis of each image."""
    table = np.asarray(spacing, np.float32)
    if table.shape != sizes.shape:
        raise UserError(f"spacing has the shape {list(table.shape)}, not {list(sizes.shape)}: images x axes")
    if not (np.isfinite(table) & (table > 0)).all():
        raise UserError("spacing must be positive; leave it out where it is unknown")
    return table


def write_tables(
    file: BinaryIO,
    sizes: npt.NDArray[np.int32],
    names: PathTable,
    spec: PixelSpec = _RGB,
    dtype: npt.DTypeLike = np.uint8,
    spacing: npt.NDArray[np.float32] | None = None,
) -> None:
    """Write the tables after the pixels, at the file's current position, and the header before them."""
    numbers_each = sizes.astype(np.int64).prod(axis=1) * spec.channels
    total = int(numbers_each.sum())
    pixel_bytes = total * np.dtype(dtype).itemsize
    uniform = bool((sizes == sizes[0]).all())
    tables: dict[str, npt.NDArray[Any]] = {
        "padding": np.zeros(-pixel_bytes % 8, np.uint8),  # aligns the next table to 8 bytes
        "offsets": numbers_each.cumsum() - numbers_each,
        "name_starts": names.starts.numpy(),
        "sizes": sizes,
    }
    if spacing is not None:
        tables["spacing"] = spacing.astype(np.float32)
    tables["names"] = names.text.numpy()
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "version": VERSION,
            "count": str(len(sizes)),
            "pixels": json.dumps(spec.record()),
        },
        "pixels": {
            "dtype": _code(np.dtype(dtype)),
            "shape": [len(sizes), *sizes[0].tolist(), spec.channels] if uniform else [total],
            "data_offsets": [0, pixel_bytes],
        },
    }
    end = pixel_bytes
    for key, table in tables.items():
        shape, ends = list(table.shape), [end, end + table.nbytes]
        header[key] = {"dtype": _code(table.dtype), "shape": shape, "data_offsets": ends}
        end += table.nbytes
        file.write(np.ascontiguousarray(table).data)
    text = json.dumps(header).encode()
    file.seek(0)
    length = _header_bytes(spec) - 8
    if len(text) > length:
        raise ValueError(f"the header of a store is {len(text)} bytes long, and {length} are reserved")
    file.write(length.to_bytes(8, "little") + text.ljust(length))


def _code(dtype: np.dtype[Any]) -> str:
    return f"{dtype.kind.upper()}{8 * dtype.itemsize}"


def _map(path: Path) -> tuple[dict[str, Tensor], PixelSpec]:
    """The tensors of a store, mapped into private pages of memory: writing to them changes no file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} is not a packed store of images; make one with `densepath data pack`")
            if metadata.get("version") not in READABLE:
                raise UserError(
                    f"the packed store {path} has version {metadata.get('version')}, not {VERSION}; pack the images "
                    "again, or update densepath"
                )
            return {key: file.get_tensor(key) for key in file.keys()}, _spec_of(metadata)  # noqa: SIM118
    except (SafetensorError, ValueError, LookupError, RecursionError) as error:
        raise _broken(path, "its header is broken, or the file is incomplete") from error


def _spec_of(metadata: dict[str, str]) -> PixelSpec:
    if metadata["version"] == "1":
        return PixelSpec()
    try:
        spec = PixelSpec.from_record(json.loads(metadata["pixels"]))
    except UserError as error:
        raise ValueError from error
    if type(spec.ndim) is not int or type(spec.channels) is not int or spec.channels > _MOST_CHANNELS:
        raise ValueError
    return spec
