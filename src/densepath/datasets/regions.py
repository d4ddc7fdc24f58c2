"""Features of the tiles of slides -> grids of features of regions, the images of HIPT's region stage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError, counted
from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import take_single_values
from densepath.core.streams import say
from densepath.sources.packing import new_store, write_store
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.embed.slide_features import SlideFeatures, read_slide_features
from densepath.transfer.mil.feature_files import find_features

_OFF_GRID = 0.02  # of a tile's side

Grid = npt.NDArray[np.float32]


@take_single_values
def write_regions(source: AnyPath, dest: str | Path, *, grid: int = 16, least: float = 0.5) -> Path:
    """Arrange the features of tiles in grids of square regions, as a packed store for ``pretrain``.

    The values are those of the features, also for the network: nothing is normalized.

    Args:
        source: folder of features of slides, as ``densepath embed`` writes them from tiles that do not overlap.
        dest: the store to write, ``*.safetensors``.
        grid: tiles along each side of a region; 16 of 256 px are HIPT's regions of 4096 px.
        least: least share of the tiles of a region that have features, or the region is left out. The others, which
            showed no tissue, are zeros.

    Returns:
        The path of the store.

    Raises:
        UserError: there are no features with places, tiles overlap, features differ in length, or no region is left.
    """
    source = as_path(source)
    dest = new_store(dest)
    if grid < 1 or not 0 < least <= 1:
        raise UserError("grid is at least 1, and least a share of its tiles, more than 0 and at most 1")
    files = find_features(source)
    names: list[str] = []  # read when all images are written
    count, largest, lengths = 0, 0.0, set()
    for file in files.values():  # once for the range of values, which stands before them in the store
        slide = read_slide_features(file)
        lengths.add(slide.features.shape[1])
        for _, region in _regions(slide, grid, least):
            count, largest = count + 1, max(largest, float(np.abs(region).max()))
    if len(lengths) > 1:
        raise UserError(f"the features in {source} have {' and '.join(map(str, sorted(lengths)))} numbers; embed again")
    if not count:
        raise UserError(f"no region of {grid} x {grid} tiles in {source} has {least:.0%} of its tiles; lower --least")
    channels, limit = lengths.pop(), 2.0 ** math.ceil(math.log2(max(largest, 1.0)))
    spec = PixelSpec(2, channels, (-limit, limit), (0.5,) * channels, (0.5 / limit,) * channels)

    def images() -> Iterator[npt.NDArray[Any]]:
        for name, file in files.items():
            for place, region in _regions(read_slide_features(file), grid, least):
                names.append(f"{name}_{place}")
                yield region

    dest.parent.mkdir(parents=True, exist_ok=True)
    store = write_store(dest, images(), names, spec)
    say(
        f"densepath: {counted(count, 'region')} of {grid} x {grid} tiles of {counted(len(files), 'slide')}, "
        f"{counted(channels, 'number')} for each tile"
    )
    return store


def _regions(slide: SlideFeatures, grid: int, least: float) -> Iterator[tuple[str, Grid]]:
    """The regions (grid, grid, D) of a slide with enough tiles, and their column and row."""
    if slide.corners is None or slide.side is None:
        raise UserError(f"the features of {slide.name} do not say where its tiles are; make them with densepath embed")
    if not len(slide):
        return
    places = (slide.corners - slide.corners.min(0)) / slide.side  # x, y in tiles
    cells = np.rint(places).astype(np.int64)
    if np.abs(places - cells).max() > _OFF_GRID or len(np.unique(cells, axis=0)) < len(cells):
        raise UserError(f"the tiles of {slide.name} overlap or have gaps; regions need a grid: tile without overlap")
    region, within = np.divmod(cells, grid)
    each, members, counts = np.unique(region, axis=0, return_inverse=True, return_counts=True)
    for number, (column, row) in enumerate(each.tolist()):
        if counts[number] < least * grid**2:
            continue
        own = members.reshape(-1) == number
        values = np.zeros((grid, grid, slide.features.shape[1]), np.float32)
        values[within[own, 1], within[own, 0]] = slide.features[own]
        yield f"{column}_{row}", values
