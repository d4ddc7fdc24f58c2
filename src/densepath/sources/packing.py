"""Packed stores on disk: decoded images in one file that is mapped into memory and trains with no decoding.

The file is a plain safetensors file, readable by ``safetensors.safe_open`` too. It holds ``pixels`` ((N, H, W, 3) if
all images have one size, else flat bytes), ``offsets``, ``sizes``, ``name_starts`` and ``names``. Room is kept for its
header, because the pixels are written before their number is known.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.sources.corrupt import Damage
from densepath.sources.image_files import MAX_SIDE, ImageFiles, decode_all
from densepath.sources.listing import list_images
from densepath.sources.packed import BLOCK, CHANNELS, PackedTiles
from densepath.sources.path_table import Names

SUFFIX = ".safetensors"
FORMAT, VERSION = "densepath-tiles", "1"
HEADER = 4096  # bytes in front of the pixels: the header's length in 8 bytes, then JSON, then spaces
_LONGESTHEADER = 2**20
_TABLES = {"pixels": "U8", "offsets": "I64", "name_starts": "I64", "sizes": "I32", "names": "U8"}
_DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("<u1"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}


def pack(source: str | Path, dest: str | Path, *, max_side: int = MAX_SIDE) -> Path:
    """Decode all images of a source into one file that is read by mapping it into memory.

    Args:
        source: folder, text list or glob pattern, see :func:`densepath.sources.listing.list_images`.
        dest: the file to write, named ``*.safetensors``.
        max_side: larger images are reduced as in training from files (pixels).

    Returns:
        The path of the store. Damaged images are named and left out.

    Raises:
        UserError: the source holds no images or too many damaged ones, or ``dest`` exists or has another suffix.
    """
    dest = Path(dest)
    if dest.suffix.lower() != SUFFIX:
        raise UserError(f"a packed store is a {SUFFIX} file; call it {dest.name}{SUFFIX} instead of {dest.name}")
    if dest.exists():
        raise UserError(f"{dest} already exists; name another file or remove it first")
    files = ImageFiles(list_images(source), max_side)
    damage = Damage(len(files))
    images = decode_all(files, damage, "packing")
    with atomic_write(dest) as temporary, open(temporary, "wb") as file:
        sizes = _write_pixels(file, (image for image in images if image is not None))
        root = Path(source) if Path(source).is_dir() else Path(source).parent
        names = Names.of(
            _relative(files.names(position), root) for position in range(len(files)) if position not in damage.found
        )
        write_tables(file, sizes, names)
    return dest


def open_store(path: str | Path) -> PackedTiles:
    """Map a packed store into memory.

    Raises:
        UserError: the file is missing, foreign, of another version, or cut off.
    """
    try:
        tensors = _map(Path(path))
    except OSError as error:
        raise UserError(f"the packed store {path} cannot be read ({error.strerror}); check the path") from error
    if not _consistent(tensors):
        raise _damaged(path, "its tables do not fit its pixels")
    names = Names(tensors["names"], tensors["name_starts"])
    return PackedTiles(tensors["pixels"].flatten(), tensors["sizes"], tensors["offsets"], names, file=Path(path))


def _consistent(tensors: dict[str, Tensor]) -> bool:
    sizes, offsets, starts = tensors["sizes"], tensors["offsets"], tensors["name_starts"]
    count = len(sizes) if sizes.ndim else 0
    if not count or sizes.shape != (count, 2) or offsets.shape != (count,) or starts.shape != (count + 1,):
        return False
    total, end = tensors["pixels"].numel(), 0
    for first in range(0, count, BLOCK):
        block = slice(first, first + BLOCK)
        # In floating point first: products of absurd sizes would wrap around.
        if int(sizes[block].min()) < 1 or float(sizes[block].double().prod(dim=1).max()) > total:
            return False
        bytes_each = sizes[block].to(torch.int64).prod(dim=1) * CHANNELS
        ends = bytes_each.cumsum(0) + end
        names_grow = int(starts[first : first + BLOCK + 1].diff().min()) >= 0
        if not names_grow or not torch.equal(offsets[block], ends - bytes_each):
            return False
        end = int(ends[-1])
    return end == total and int(starts[0]) == 0 and int(starts[-1]) == len(tensors["names"])


def _relative(name: str, root: Path) -> str:
    path = Path(name)
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _damaged(path: str | Path, why: str) -> UserError:
    return UserError(f"the packed store {path} is damaged or was cut off ({why}); pack the images again")


def _write_pixels(file: BinaryIO, images: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[np.int32]:
    file.seek(HEADER)
    sizes = array("i")
    for image in images:
        sizes.extend(image.shape[:2])
        file.write(np.ascontiguousarray(image).data)
    return np.frombuffer(sizes, dtype=np.int32).reshape(-1, 2)


def write_tables(file: BinaryIO, sizes: npt.NDArray[np.int32], names: Names) -> None:
    """Write what stands behind the pixels, where the file stands now, and the header in front of them."""
    bytes_each = sizes.astype(np.int64).prod(axis=1) * CHANNELS
    total = int(bytes_each.sum())
    uniform = bool((sizes == sizes[0]).all())
    pixels_shape = [len(sizes), *sizes[0].tolist(), CHANNELS] if uniform else [total]
    tables: dict[str, npt.NDArray[Any]] = {
        "padding": np.zeros(-total % 8, np.uint8),  # the next table's numbers begin at a multiple of their 8 bytes
        "offsets": bytes_each.cumsum() - bytes_each,
        "name_starts": names.starts.numpy(),
        "sizes": sizes,
        "names": names.text.numpy(),
    }
    header: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "version": VERSION, "count": str(len(sizes))},
        "pixels": {"dtype": "U8", "shape": pixels_shape, "data_offsets": [0, total]},
    }
    end = total
    for key, table in tables.items():
        kind = next(kind for kind, dtype in _DTYPES.items() if dtype == table.dtype)
        header[key] = {"dtype": kind, "shape": list(table.shape), "data_offsets": [end, end + table.nbytes]}
        end += table.nbytes
        file.write(np.ascontiguousarray(table).data)
    text = json.dumps(header).encode()
    file.seek(0)
    file.write((HEADER - 8).to_bytes(8, "little") + text.ljust(HEADER - 8))


def _map(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, _LONGESTHEADER))
    start = 8 + length
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__")
        foreign = metadata["format"] != FORMAT
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        foreign = True
    if foreign:
        raise UserError(f"{path} is no packed store of images; make one with `densepath data pack`")
    if metadata.get("version") != VERSION:
        raise UserError(
            f"the packed store {path} has version {metadata.get('version')}, not {VERSION}; "
            "pack the images again, or update densepath"
        )
    try:
        ends = [entry["data_offsets"][1] for entry in header.values()]
        if start + max(ends) != size:
            raise _damaged(path, f"{size:,} bytes instead of {start + max(ends):,}")
        mapped = np.memmap(path, np.uint8, mode="c")  # private pages: tensors want memory that may be written
        if any(header[key]["dtype"] != kind for key, kind in _TABLES.items()):
            raise ValueError
        return {key: _view(mapped[start:], header[key]) for key in _TABLES}
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise _damaged(path, "its header is broken") from error


def _view(data: npt.NDArray[np.uint8], entry: dict[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    dtype = _DTYPES[entry["dtype"]]
    if not all(type(number) is int and number >= 0 for number in (begin, end, *entry["shape"])):
        raise ValueError
    if end - begin != math.prod(entry["shape"]) * dtype.itemsize:
        raise ValueError
    return torch.from_numpy(data[begin:end].view(dtype).reshape(entry["shape"]))
