"""Features of the tiles of slides: a file for each slide, in TRIDENT's layout; CLAM's and STAMP's are read, too."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from densepath.core.errors import UserError, counted, errors_as, unwrapped
from densepath.core.files import atomic_write, writing
from densepath.core.hdf5 import new_hdf5
from densepath.core.paths import AnyPath
from densepath.core.single_values import take_single_values
from densepath.nets.weights.files import load_torch
from densepath.sources.tiles.coords import attributes_of, is_positive, unit_of
from densepath.sources.tiles.tile_files import SlideTiling, h5py_module, notes_of_tiling
from densepath.transfer.embed.chunked_rows import read_rows

NOTES = "densepath"  # the attribute of the file with the notes, JSON
_FEATURES, _CORNERS = ("features", "feats"), "coords"
_OF_NUMPY = (torch.float16, torch.float32, torch.float64)
_ROWS = 4096  # that are copied at a time
_LARGEST = {"float16": "65504, the largest number of float16; use --dtype float32"}


@dataclass(frozen=True, eq=False)
class SlideFeatures:
    """The features of the tiles of a slide.

    Args:
        name: of the slide: that of the file.
        features: (N, D) float16 or float32.
        corners: (N, 2) x, y of the upper left corners of the tiles; None if the file does not say.
        unit: of ``corners`` and ``side``: "px" of level 0, or "um".
        side: of a tile, in ``unit``; None if the file does not say.
        spacing: µm per pixel of level 0 along y and x; None if the file does not say.
        notes: what else the file says: ours, or the attributes of other software.
    """

    name: str
    features: npt.NDArray[Any]
    corners: npt.NDArray[np.float64] | None = None
    unit: Literal["px", "um"] = "px"
    side: float | None = None
    spacing: tuple[float, float] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    def boxes_um(self, spacing: tuple[float, float] | None = None) -> npt.NDArray[np.float64]:
        """The tiles as rectangles (N, 4) top, left, height, width in µm, as heat maps take them.

        Where the file does not say how large tiles are, they are taken to be as large as the least distance of two.

        Args:
            spacing: µm per pixel of level 0 along y and x; by default those of the file.

        Raises:
            UserError: the places of the tiles or the µm per pixel are unknown.
        """
        spacing = (1.0, 1.0) if self.unit == "um" else spacing or self.spacing
        if self.corners is None or spacing is None:
            what = "the places of its tiles" if self.corners is None else "µm per pixel"
            raise UserError(f"the features of {self.name} do not say {what}; make them again with densepath embed")
        steps = np.concatenate([np.diff(np.unique(axis)) for axis in self.corners.T])
        side = self.side or float(min(steps[steps > 0], default=1.0))
        boxes = np.empty((len(self.corners), 4))
        boxes[:, :2] = self.corners[:, ::-1] * spacing
        in_um = self.unit == "px" and self.spacing is not None and is_positive(self.notes.get("size_um"))
        boxes[:, 2:] = float(self.notes["size_um"]) if in_um else side * np.array(spacing)
        return boxes


class FeatureWriter:
    """Writes the features of a slide tile by tile; the file appears when all are written.

    Args:
        path: the HDF5 file.
        tiling: the tiles of the slide.
        overlap: pixels by which neighboring tiles overlap.
        dim: D, the length of a vector.
        dtype: "float32" or "float16".
        notes: what made them: weights, backbone, pooling, pixels, date.

    Attributes:
        notes: they are written last.
    """

    def __init__(
        self, path: Path, tiling: SlideTiling, overlap: int, dim: int, dtype: str, notes: Mapping[str, Any]
    ) -> None:
        self._path, self._dim, self._dtype, self.notes = path, dim, dtype, dict(notes)
        self._tiling, self._overlap = tiling, overlap
        self._rows: list[int] = []

    def __enter__(self) -> FeatureWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # How many tiles can be read is unknown before, and the rows of the file shall lie side by side.
        self._raw = tempfile.TemporaryFile(dir=self._path.parent)
        return self

    def add(self, rows: list[int], features: npt.NDArray[np.float32]) -> None:
        """Write the features (n, D) of some tiles.

        Raises:
            UserError: a feature is too large for the dtype, or the disk is full.
        """
        with np.errstate(over="ignore"):
            values = features.astype(self._dtype)
        if (np.isinf(values) & np.isfinite(features)).any():
            raise UserError(f"features exceed {_LARGEST[self._dtype]}")
        self._rows += rows
        with writing(self._path):
            self._raw.write(np.ascontiguousarray(values).data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._raw:
            if error is None:
                self._finish()

    def _finish(self) -> None:
        self._raw.seek(0)
        width = np.dtype(self._dtype).itemsize * self._dim
        with atomic_write(self._path) as part, new_hdf5(part) as file:
            file.attrs[NOTES] = json.dumps(self.notes)
            coords = file.create_dataset(_CORNERS, data=self._tiling.corners[self._rows].reshape(-1, 2))
            coords.attrs.update(notes_of_tiling(self._tiling, self._path.parent, self._overlap))
            features = file.create_dataset(_FEATURES[0], (len(self._rows), self._dim), self._dtype)
            for first in range(0, len(self._rows), _ROWS):
                part_of = np.frombuffer(self._raw.read(_ROWS * width), self._dtype)
                features[first : first + _ROWS] = part_of.reshape(-1, self._dim)


@contextmanager
def open_features(path: Path) -> Iterator[Any]:
    """The features (N, D) in a file of :class:`FeatureWriter`, of which only the rows that are used are read."""
    with h5py_module().File(path) as file:
        yield file[_FEATURES[0]]


@take_single_values
def read_slide_features(path: AnyPath, features: bool = True) -> SlideFeatures:
    """Read the features of a slide: of ``densepath embed``, TRIDENT, CLAM (.h5 or .pt) or STAMP.

    Args:
        path: the file.
        features: False for what else an HDF5 file says; then the features are (N, 0).

    For the unit of coordinates see :func:`~densepath.sources.tiles.coords.unit_of`. Where CLAM's file of features does
    not say how large tiles are, see :meth:`SlideFeatures.boxes_um`.

    Raises:
        UserError: there is no such file, or it has no features of tiles.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there are no features at {path}; densepath embed writes them")

    def refusal(error: Exception) -> UserError:
        what = unwrapped(str(error)) or type(error).__name__
        return UserError(f"{path} has no features of tiles ({what}); make them again with densepath embed")

    with errors_as(refusal):
        found = _read_torch(path) if path.suffix.lower() in (".pt", ".pth") else _read_hdf5(path, features)
    if found.corners is not None and len(found.corners) != len(found):
        raise UserError(
            f"{path} has {counted(len(found), 'feature')} and {counted(len(found.corners), 'place')}; make it again"
        )
    return found


def _read_hdf5(path: Path, read: bool) -> SlideFeatures:
    with h5py_module().File(path) as file:
        name = next((name for name in _FEATURES if name in file), None)
        if name is None:
            raise ValueError(f"datasets {', '.join(file) or 'none'} instead of features or feats")
        features = _as_rows(read_rows(file[name], path) if read else file[name][..., :0])
        corners = file[_CORNERS][:] if _CORNERS in file else None
        said = attributes_of(file) | (attributes_of(file[_CORNERS]) if corners is not None else {})
    notes = json.loads(said.pop(NOTES, "{}")) | said
    return _located(path, features, corners, notes)


def _read_torch(path: Path) -> SlideFeatures:
    content = load_torch(path)
    if not isinstance(content, Mapping):
        return SlideFeatures(path.stem, _as_rows(_array(content)))
    name = next((name for name in _FEATURES if name in content), None)
    if name is None:
        raise ValueError("a dictionary without features or feats")
    corners = content.get(_CORNERS)
    features = _as_rows(_array(content[name]))
    return _located(path, features, None if corners is None else _array(corners), {})


def _array(values: Any) -> npt.NDArray[Any]:
    """The numbers of a torch file; those of types that NumPy lacks, such as bfloat16, as float32."""
    if not isinstance(values, torch.Tensor):  # such as a list of tensors
        return np.asarray(values)
    tensor = values.detach()
    return (tensor.float() if tensor.is_floating_point() and tensor.dtype not in _OF_NUMPY else tensor).numpy()


def _located(
    path: Path, features: npt.NDArray[Any], corners: npt.NDArray[Any] | None, notes: dict[str, Any]
) -> SlideFeatures:
    """Features with what their notes say of the tiles, in the words of densepath, TRIDENT, CLAM or STAMP.

    Sizes that are not positive numbers are unknown.
    """
    if corners is None:
        return SlideFeatures(path.stem, features, notes=notes)
    sizes = {name: float(value) for name, value in notes.items() if is_positive(value)}
    unit, side = unit_of(path, corners, {**dict.fromkeys(notes), **sizes, "unit": notes.get("unit")})
    spacing = None
    if {"level0_mpp_x", "level0_mpp_y"} <= sizes.keys():
        spacing = sizes["level0_mpp_y"], sizes["level0_mpp_x"]
    if unit == "px" and spacing is not None and "size_um" in sizes:
        side = sizes["size_um"] * 2 / sum(spacing)
    elif unit == "px" and "patch_size_level0" in sizes:
        side = sizes["patch_size_level0"]
    elif unit == "px" and "patch_size_level0" not in notes and "patch_size" in sizes:  # CLAM's, in pixels of its level
        side = sizes["patch_size"] * float(np.mean(notes.get("downsample", 1.0)))
    corners = corners.astype(np.float64).reshape(-1, 2)
    return SlideFeatures(path.stem, features, corners, unit, side, spacing, notes)


def _as_rows(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Features (N, D), also where they are stored as (1, N, D) or (N, 1, D)."""
    if values.ndim == 3 and 1 in values.shape[:2]:
        values = values.reshape(values.shape[0] * values.shape[1], values.shape[2])
    if values.ndim != 2 or values.dtype.kind != "f":
        raise ValueError(f"{values.dtype} {list(values.shape)} is not one vector for each tile")
    return values if values.dtype in (np.float16, np.float32) else values.astype(np.float32)
