"""The images that a run learns from: found, tiled if they are whole slides, and restricted to a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densepath.annotations.fraction import choose_fraction
from densepath.core.closing import step_of_another
from densepath.core.errors import UserError, counted
from densepath.core.files import require_new_folder
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.nets.weights.trained_on import slides_of_run, slides_of_weights, write_slides
from densepath.runs.folder import TILES, from_weights, read_config, refuse_other_run
from densepath.sources.image_files import ImageFiles
from densepath.sources.open import find_source
from densepath.sources.packing import SUFFIX
from densepath.sources.pixel_source import PixelSource, PixelSpec, bits_of
from densepath.sources.restrict import restrict, share_of, take
from densepath.sources.slides.find import find_slides
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile import tile
from densepath.sources.tiles.tile_files import SLIDES, is_tile_folder
from densepath.training.config import PretrainConfig
from densepath.training.division import HELD, LEFT, USED, hold_out_images, owners_of, recorded_division
from densepath.training.load_run import pixels_of


@dataclass(frozen=True, eq=False)
class RunImages:
    """The images of a run.

    Args:
        whole: all that the run has.
        used: those that it learns from.
        held: those that it is validated on; None without validation.
        parts: the positions of both in ``whole``; None without validation.
        left: those that its fraction leaves out, if they are files or in a store.
    """

    whole: PixelSource
    used: PixelSource
    held: PixelSource | None
    parts: tuple[Tensor, Tensor] | None
    left: PixelSource | None


def open_run_images(config: PretrainConfig, old: Mapping[str, Any] | None) -> RunImages:
    """Find the images of a run, and hold out those to validate on.

    Args:
        config: the configuration.
        old: the configuration of the run that is resumed, if any.

    Raises:
        UserError: as for :func:`find_images`, :func:`choose_pixels` and :func:`hold_out_images`.
    """
    resumed = None if old is None else Path(config.out)
    whole, left = find_images(config, resumed)
    whole.spec = choose_pixels(whole, old, config)
    if not config.val_share:
        return RunImages(whole, whole, None, None, left)
    parts = hold_out_images(whole, config.data, config.val_share, config.seed, resumed)
    used, held = (take(whole, positions) for positions in parts)
    return RunImages(whole, used, held, parts, left)


def find_images(config: PretrainConfig, resumed: Path | None = None) -> tuple[PixelSource, PixelSource | None]:
    """The images of a run, and those that its fraction leaves out, if they are files or in a store. Whole slides are
    tiled into its folder first, which a resumed run continues.

    A fraction is of the patients of images, where a manifest, a table or names tell any, else of the images.

    Args:
        config: the configuration.
        resumed: the folder of a run that is resumed, which keeps its division.

    Raises:
        UserError: they are missing, cannot be read, or are not what the options say.
    """
    data = config.data if config.mpp is None else _tiles(config, config.mpp)
    exclude = config.exclude if config.mpp is None else ()  # they were not tiled
    images = restrict(find_source(data, exclude=exclude), config.slides)
    owners = owners_of(images, data, resumed is not None) if config.fraction < 1 else None
    if owners is None:
        return restrict(images, None, config.fraction, config.seed), None
    recorded = None if resumed is None else recorded_division(resumed, images, [USED, HELD], [LEFT])
    chosen, left = recorded or divided(owners, config.fraction, config.seed)
    return take(images, chosen), take(images, left) if len(left) else None


def divided(owners: Sequence[str], fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """The positions of the images that a fraction keeps, and of those that it leaves out.

    Args:
        owners: the patient of each image, or a name of its own.
        fraction: the share to keep.
        seed: decides which.
    """
    if len(set(owners)) < len(owners):
        chosen = torch.tensor(choose_fraction(owners, fraction, seed))
    else:
        chosen = share_of(len(owners), fraction, seed)
    others = torch.ones(len(owners), dtype=torch.bool)
    others[chosen] = False
    return chosen, others.nonzero().flatten()


def choose_pixels(images: PixelSource, old: Mapping[str, Any] | None, config: PretrainConfig) -> PixelSpec:
    """The specification of the pixels: of the resumed run; else of the images, with the mean and standard deviation of
    the initial weights, if they are known, and what the options say.

    Raises:
        UserError: values that are invalid for these images.
    """
    if old is None:
        mean, std = config.mean, config.std
        if config.weights != "random" and None in (mean, std):
            trained = pixels_of_weights(config.weights, images.spec)
            mean, std = trained.mean if mean is None else mean, trained.std if std is None else std
        return images.spec.override(mean, std, config.window, bits_of(images))
    recorded = pixels_of(old)
    early = "pixels" not in old  # a run of version 0.1, which read all images as 8-bit RGB
    if early and isinstance(images, ImageFiles) and images.dtype == torch.uint8:
        return recorded
    if early and recorded != images.spec:
        raise UserError(
            f"the run in {config.out} is of a version that read all images as 8-bit RGB, which these are not; start "
            f"another run from its weights: {from_weights(Path(config.out))}"
        )
    if (recorded.ndim, recorded.channels) != (images.spec.ndim, images.spec.channels):
        raise UserError(
            f"the run was trained on images with {counted(recorded.channels, 'channel')}, but these have "
            f"{images.spec.channels}; resume it with the same images, or name another folder"
        )
    return recorded


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
        with step_of_another():
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
