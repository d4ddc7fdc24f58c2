"""The images that a run learns from: found, tiled if they are whole slides, and restricted to a part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from densepath.core.errors import UserError
from densepath.core.files import require_new_folder
from densepath.nets.weights.trained_on import slides_of_run, slides_of_weights, write_slides
from densepath.runs.folder import TILES, read_config, refuse_other_run
from densepath.sources.open import find_source
from densepath.sources.packing import SUFFIX
from densepath.sources.pixel_source import PixelSource
from densepath.sources.restrict import restrict
from densepath.sources.slides.find import find_slides
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile import tile
from densepath.sources.tiles.tile_files import SLIDES, is_tile_folder
from densepath.training.config import PretrainConfig


def find_images(config: PretrainConfig) -> PixelSource:
    """The images of a run. Whole slides are tiled into its folder first, which a resumed run continues.

    Raises:
        UserError: they are missing, cannot be read, or are not what the options say.
    """
    data = config.data if config.mpp is None else _tiles(config, config.mpp)
    exclude = config.exclude if config.mpp is None else ()  # they were not tiled
    return restrict(find_source(data, exclude=exclude), config.slides, config.fraction, config.seed)


def _tiles(config: PretrainConfig, mpp: float) -> Path:
    """The folder with the tiles of a run's slides."""
    data, out = config.data, Path(config.out)
    if is_tile_folder(data):
        raise UserError(f"the tiles in {data} have their own µm per pixel; leave out --mpp")
    if str(data).lower().endswith(SUFFIX):
        raise UserError(f"--mpp is for whole slides, and {data} is a packed store; leave it out")
    try:
        find_slides(data, config.exclude)
    except UserError as error:
        raise UserError(f"{error}; --mpp is for whole slides: leave it out for images") from error
    folder = out / TILES
    if read_config(out) is None:
        require_new_folder(out, "the run", but=(TILES,))
    else:
        refuse_other_run(out, config.resume)
    if read_config(out) is None or not (folder / SLIDES).exists():
        # Not the share of a job array: each process of this run needs all tiles
        tile(data=data, out=folder, mpp=mpp, size=config.tile_size, exclude=config.exclude, shard="1/1")
    return folder


def with_tiles(config: PretrainConfig) -> PretrainConfig:
    """The configuration with the tiles in the run's folder as its data, if it has any, for commands that continue."""
    return config if config.mpp is None else replace(config, data=Path(config.out) / TILES)


def record_slides(out: Path, images: PixelSource, weights: str | Path) -> tuple[str, ...] | None:
    """Write the slides of a run to its folder, when it starts, and return their names; None for images.

    Args:
        out: the run folder.
        images: the source.
        weights: the initial weights; the slides that those were trained on are recorded too.
    """
    if (known := slides_of_run(out)) is not None:
        return known
    tilings = images.tilings if isinstance(images, SlideTiles) else []
    rows = [(tiling.name, tiling.path, len(tiling)) for tiling in tilings]
    names = {name for name, _, _ in rows}
    earlier = slides_of_weights(weights) if str(weights) != "random" else None
    rows += [(name, "", 0) for name in earlier or () if name not in names]
    if rows:
        write_slides(out, rows)
    return slides_of_run(out)
