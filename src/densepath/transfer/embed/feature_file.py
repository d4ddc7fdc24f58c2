"""Files of features: HDF5, safetensors or Parquet, by their ending."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError, errors_as
from densepath.core.files import atomic_write
from densepath.core.hdf5 import new_hdf5
from densepath.core.output_names import refuse_repeated
from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import take_single_values

FORMAT = "densepath-features"
VOLUMES = "volumes"  # of the notes: name -> patient and split, of the volumes of a store
_NOTES = "densepath"  # the name of the notes, JSON, in a file
_CHUNK = 1024  # rows of an HDF5 chunk
_NEEDS = {".h5": "h5py", ".hdf5": "h5py", ".parquet": "pyarrow", ".safetensors": "safetensors"}
FORMATS = tuple(_NEEDS)
_SAFETENSORS = {"float32": "F32", "float16": "F16"}


@dataclass(frozen=True, eq=False)
class Features:
    """Features of images.

    Args:
        names: (N,) the images' names, all different.
        values: (N, D) float32 or float16.
        notes: what made them: weights, backbone, pooling, pixels, date.
    """

    names: list[str]
    values: npt.NDArray[Any]
    notes: dict[str, Any]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Shape:
    """What is known of a file of features before it is written.

    Args:
        count, dim: N rows of D numbers.
        dtype: "float32" or "float16".
        name_bytes: length of all names together in UTF-8.
    """

    count: int
    dim: int
    dtype: str
    name_bytes: int


Part = tuple[list[str], npt.NDArray[Any]]  # names, and features (n, D)


def encoded(name: str) -> bytes:
    """A name in UTF-8; bytes of a path that are not text are kept."""
    return name.encode("utf-8", "surrogateescape")


def check_format(path: str | Path) -> str:
    """The format of a file of features: its ending in small letters.

    Raises:
        UserError: the ending is unknown, or a library for it is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _NEEDS:
        raise UserError(f"{path} does not end in one of {', '.join(_NEEDS)}; the ending chooses the format of features")
    try:
        __import__(_NEEDS[suffix])
    except ImportError as error:
        raise UserError(
            f"{suffix} files need {_NEEDS[suffix]}; install it with pip install 'densepath[embed]', or use .safetensors"
        ) from error
    return suffix


def write_features(path: str | Path, parts: Iterable[Part], shape: Shape, notes: Mapping[str, Any]) -> None:
    """Write features part by part; the file appears when it is complete.

    HDF5: the datasets ``features`` (N, D) and ``names`` (N,), and the notes as JSON in the attribute ``densepath``.
    Parquet: the columns ``name`` and ``features`` (lists of D numbers), and the notes as metadata of the schema.
    safetensors: ``features`` (N, D), ``names``, the bytes of all names, and ``name_starts`` (N + 1,); the notes as
    metadata.

    Args:
        path: the file; its ending chooses the format.
        parts: names and features; they have the dtype of ``shape``.
        shape: of all parts together.
        notes: plain values.

    Raises:
        UserError: the ending is unknown, a library is not installed, or the disk is full.
    """
    suffix = check_format(path)
    text = json.dumps({"format": FORMAT, **notes})
    with atomic_write(path) as temporary:
        _WRITERS[suffix](temporary, parts, shape, text)


@take_single_values
def read_features(path: AnyPath) -> Features:
    """Read a file of features that :func:`write_features` wrote, or another one in the same layout.

    Raises:
        UserError: the file does not exist, it holds no features with names or two of one name, or a library is not
            installed.
    """
    path = as_path(path)
    suffix = check_format(path)
    if not Path(path).is_file():
        raise UserError(f"there are no features at {path}; densepath embed writes them")

    def refusal(error: Exception) -> UserError:
        what = str(error) or type(error).__name__
        return UserError(f"{path} is not a file of features with names ({what}); write it with densepath embed")

    with errors_as(refusal):
        names, values, text = _READERS[suffix](Path(path))
        notes = json.loads(text or "{}")
    if values.ndim != 2 or len(values) != len(names) or not len(names) or values.dtype.kind != "f":
        raise UserError(f"{path} does not hold one vector for each name; write it with densepath embed")
    refuse_repeated(names, path)
    return Features(names, values, notes)


def _write_hdf5(path: Path, parts: Iterable[Part], shape: Shape, notes: str) -> None:
    import h5py

    with new_hdf5(path) as file:
        file.attrs[_NOTES] = notes
        chunks = (min(_CHUNK, shape.count), shape.dim)
        features = file.create_dataset("features", (shape.count, shape.dim), shape.dtype, chunks=chunks)
        names = file.create_dataset("names", (shape.count,), h5py.string_dtype())
        for row, (own, values) in _placed(parts):
            features[row : row + len(own)] = values
            names[row : row + len(own)] = [encoded(name) for name in own]


def _read_hdf5(path: Path) -> tuple[list[str], npt.NDArray[Any], str]:
    import h5py

    with h5py.File(path) as file:
        names = [name.decode("utf-8", "surrogateescape") for name in file["names"][:]]
        return names, file["features"][:], file.attrs.get(_NOTES, "")


def _write_parquet(path: Path, parts: Iterable[Part], shape: Shape, notes: str) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    number = pa.float16() if shape.dtype == "float16" else pa.float32()
    fields = [pa.field("name", pa.string()), pa.field("features", pa.list_(number, shape.dim))]
    schema = pa.schema(fields, metadata={_NOTES: notes})
    with ParquetWriter(path, schema) as file:
        for names, values in parts:
            flat = pa.array(np.ascontiguousarray(values).reshape(-1), number)
            texts = [encoded(name).decode("utf-8", "backslashreplace") for name in names]  # text only
            rows = [pa.array(texts, pa.string()), pa.FixedSizeListArray.from_arrays(flat, shape.dim)]
            file.write_table(pa.table(rows, schema))


def _read_parquet(path: Path) -> tuple[list[str], npt.NDArray[Any], str]:
    from pyarrow import parquet, string
    from pyarrow.compute import list_value_length

    table = parquet.read_table(path, columns=["name", "features"])
    metadata = table.schema.metadata or {}
    lengths = list_value_length(table["features"]).unique().to_pylist()
    if len(lengths) > 1 or None in (*lengths, *table["name"].unique().to_pylist()):
        raise ValueError("rows of different lengths, or without a name or features")
    values = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(table), *lengths)
    return table["name"].cast(string()).to_pylist(), values, metadata.get(_NOTES.encode(), b"").decode()


def _write_safetensors(path: Path, parts: Iterable[Part], shape: Shape, notes: str) -> None:
    width = np.dtype(shape.dtype).itemsize
    ends = np.cumsum([0, 8 * (shape.count + 1), width * shape.count * shape.dim, shape.name_bytes]).tolist()
    entries = [
        ("name_starts", "I64", [shape.count + 1]),
        ("features", _SAFETENSORS[shape.dtype], [shape.count, shape.dim]),
        ("names", "U8", [shape.name_bytes]),
    ]
    header: dict[str, Any] = {"__metadata__": {"format": "pt", _NOTES: notes}}
    for (name, dtype, size), span in zip(entries, pairwise(ends), strict=True):
        header[name] = {"dtype": dtype, "shape": size, "data_offsets": span}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    places = [8 + len(text) + end for end in ends]
    starts, name_end = np.zeros(shape.count + 1, "<i8"), 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for row, (names, values) in _placed(parts):
            texts = [encoded(name) for name in names]
            starts[row + 1 : row + 1 + len(names)] = name_end + np.cumsum([len(name) for name in texts])
            file.seek(places[1] + row * shape.dim * width)
            file.write(np.ascontiguousarray(values).data)
            file.seek(places[2] + name_end)
            file.write(b"".join(texts))
            name_end = int(starts[row + len(names)])
        file.seek(places[0])
        file.write(starts.tobytes())


def _read_safetensors(path: Path) -> tuple[list[str], npt.NDArray[Any], str]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        text, starts = file.get_tensor("names").tobytes(), file.get_tensor("name_starts").tolist()
        names = [text[start:end].decode("utf-8", "surrogateescape") for start, end in pairwise(starts)]
        return names, file.get_tensor("features"), (file.metadata() or {}).get(_NOTES, "")


def _placed(parts: Iterable[Part]) -> Iterator[tuple[int, Part]]:
    """The parts with the row of their first image."""
    row = 0
    for part in parts:
        yield row, part
        row += len(part[0])


_WRITERS: dict[str, Callable[[Path, Iterable[Part], Shape, str], None]] = {
    ".h5": _write_hdf5,
    ".hdf5": _write_hdf5,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
}
_READERS: dict[str, Callable[[Path], tuple[list[str], npt.NDArray[Any], str]]] = {
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".parquet": _read_parquet,
    ".safetensors": _read_safetensors,
}
