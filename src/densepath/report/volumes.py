"""Segmented volumes: three sliders through each, along its axes, with truth and prediction in color."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from densepath.core.errors import UserError
from densepath.core.slices import size_in_mm, slice_of
from densepath.core.spacing import evenly_spaced
from densepath.report.blocks import Picture, Slider
from densepath.report.embedded import encode
from densepath.report.paths import inside
from densepath.transfer.segment.overlays import side_by_side
from densepath.transfer.segment.volume_slices import Slices, read_slices

_AXES = ("axial", "coronal", "sagittal")  # the slices along z, y and x
_SLICES, _SIDE = 24, 520  # frames of a slider, and pixels of their longer side
MOST = 3  # volumes of a page: three sliders of each take about 1 MB


def volume_sliders(file: Path, within: Path, name: str) -> list[Slider]:
    """The sliders of a volume whose slices a run has saved; none without such a file."""
    try:
        status = file.stat()
        return list(_read(file, status.st_mtime_ns, name)) if inside(file, within) else []
    except (UserError, OSError):
        return []


@lru_cache(maxsize=32)
def _read(file: Path, changed: int, name: str) -> Sequence[Slider]:
    found = read_slices(file)
    titles, made = ", ".join(found.maps), []
    longest = max(side * step for side, step in zip(found.image.shape, found.spacing, strict=True))
    scale = min(1 / min(found.spacing), _SIDE / longest)
    for axis, plane in enumerate(_AXES):
        length = found.image.shape[axis]
        size = size_in_mm(found.image.shape, found.spacing, axis, scale)
        frames = []
        for k in evenly_spaced(_SLICES, length):
            image, *maps = (slice_of(each, axis, k, size) for each in (found.image, *found.maps.values()))
            sheet = side_by_side(image[..., None].repeat(3, 2), maps, found.background)
            number = k * -(-found.size[axis] // length) + 1
            frames.append(Picture(encode(sheet, _SIDE), f"slice {number} of {found.size[axis]}"))
        made.append(Slider(f"{name}, {plane}: {titles}", frames, _start(found, axis), wide=False))
    return made


def _start(found: Slices, axis: int) -> int:
    """The frame with the largest structure."""
    marked = next(iter(found.maps.values())) != found.background
    sizes = marked.sum(tuple(a for a in range(3) if a != axis))
    shown = evenly_spaced(_SLICES, len(sizes))
    return int(np.argmax(sizes[shown])) if marked.any() else len(shown) // 2
