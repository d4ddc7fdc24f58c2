"""Features of the tiles of whole slides: a file and a heat map for each slide, made by any number of processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.closing import step_of_another
from densepath.core.errors import UserError, counted
from densepath.core.remains import remove_abandoned
from densepath.core.shared_work import Shard
from densepath.core.stopwatch import Stopwatch
from densepath.core.system import with_progress
from densepath.core.waiting import wait_for
from densepath.core.work_folder import work_folder
from densepath.nets.weights.trained_on import slides_of_weights
from densepath.runs.progress import say
from densepath.runs.watchdog import PARENT
from densepath.sources.conversion import as_pixels
from densepath.sources.corrupt import CorruptImage, lasting
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.run_folders import refuse_among_images
from densepath.sources.slides.failures import report_problem
from densepath.sources.slides.resolution import MppTable
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile import tile
from densepath.sources.tiles.tile_files import is_tile_folder, overlap_of
from densepath.training.hardware import Hardware, Precision
from densepath.training.processes import other_processes
from densepath.transfer.embed.closing import say_end_of_embed
from densepath.transfer.embed.encode import batches_of, encode
from densepath.transfer.embed.encoder import Encoder, input_size, load_encoder
from densepath.transfer.embed.feature_file import FORMATS
from densepath.transfer.embed.files_of_slides import features_name, features_path, notes_of
from densepath.transfer.embed.inputs import center
from densepath.transfer.embed.slide_features import FeatureWriter, open_features, read_slide_features
from densepath.transfer.slides.heat_map import files_of_map, write_heat_map
from densepath.transfer.slides.precision import begun_precision
from densepath.transfer.slides.principal import principal_colors
from densepath.transfer.slides.slide_list import GIVEN_LATER, ListedSlide, list_of_slides, refuse_options
from densepath.transfer.slides.slide_work import SlideWork, as_corrupt, without_tiles
from densepath.version import __version__

_TILE = 256  # pixels
_ALL = "1/1"  # every process waits until all slides are tiled
_FREE = ("data", "batch_size", "precision", "densepath_version")  # may change when the same command continues


@dataclass(frozen=True, eq=False)
class EmbedOptions:
    """How features are made.

    Args:
        weights: as for :func:`~densepath.transfer.embed.encoder.load_encoder`.
        network: its backbone, stage, pool and seed, and the size to which tiles are resized.
        dtype: of the numbers in the files.
        batch_size: tiles in a pass of the network.
        hardware: where to compute.
        precision: what the user asked for.
        check: is called with what identifies the features (``Encoder.notes``), before any are made.
    """

    weights: str | Path
    network: Mapping[str, Any]
    dtype: str
    batch_size: int
    hardware: Hardware
    precision: Precision
    check: Callable[[Mapping[str, Any]], None] = lambda notes: None


@dataclass(frozen=True, eq=False)
class _Work:
    """An encoder, and what is written with its features."""

    options: EmbedOptions
    encoder: Encoder
    size: int | None
    overlap: int
    notes: Mapping[str, Any]


def embed_slides(
    data: str | Path,
    out: Path,
    options: EmbedOptions,
    *,
    exclude: Sequence[str],
    mpp: float | None,
    tile_size: int | None,
    mpp_table: str | Path | None,
    default_mpp: float | None,
    shard: str | None,
) -> dict[str, int]:
    """Write the features of slides, which are tiled first if they are not. Arguments as for
    :func:`~densepath.transfer.embed.embed.embed`.

    Returns:
        The numbers of "slides", "tiles" and "damaged" tiles of all processes so far, "dim", and the numbers of slides
        that "failed" and that are "left" to other processes.
    """
    if out.suffix.lower() in FORMATS:
        raise UserError(f"{out}: the features of slides are a folder; name one")
    watch, network, hardware = Stopwatch(), dict(options.network), options.hardware
    size = network.pop("size")
    encoder, line = load_encoder(options.weights, **network)
    encoder.spec = encoder.spec.override(window=PixelSpec().window)  # slides have 8 bits
    size = input_size(encoder, size)
    identity = encoder.notes()
    options.check(identity)
    notes = {
        "weights": str(options.weights),
        **identity,
        "size": size,
        "dtype": options.dtype,
        "batch_size": options.batch_size,
        "precision": hardware.precision,
        "densepath_version": __version__,
    }
    tiled = is_tile_folder(data)
    if not tiled:
        refuse_among_images(out, data)
    else:
        refuse_options("slides that are not tiled", {"mpp": mpp, "tile_size": tile_size})
    record = {
        "data": str(data),
        "exclude": list(exclude),
        "mpp": mpp,
        "tile_size": tile_size,
        "default_mpp": default_mpp,
    }
    record["mpp_table"] = None if mpp_table is None else str(mpp_table)
    share, table = Shard.of(shard), MppTable(mpp_table, default_mpp)
    with ExitStack() as stack:
        folder = work_folder(out, {**record, **notes}, log="embed.log", free=_FREE, later=GIVEN_LATER)
        write_added = stack.enter_context(folder)
        hardware = replace(hardware, precision=begun_precision(out, options.precision, hardware.precision))
        notes |= {"precision": hardware.precision}
        if str(options.weights) == "random":
            notes["seed"] = network["seed"]
        if (seen := slides_of_weights(options.weights)) is not None:
            notes["pretraining_slides"] = list(seen)
        say(f"densepath: {line}")
        children = stack.enter_context(other_processes(hardware)) if hardware.rank == 0 else ()
        tiles = Path(data)
        if not tiled:
            tiles = out / "tiles"
            side = tile_size or encoder.input_size or _TILE
            given: dict[str, Any] = {"exclude": exclude, "mpp_table": mpp_table, "default_mpp": default_mpp}
            with step_of_another():
                tile(data=data, out=tiles, mpp=mpp, size=side, shard=_ALL, **given)
            exclude, table = (), MppTable()
        name = features_name(options.weights, encoder.backbone.name)
        slides = list_of_slides(tiles, exclude, table)
        hardware.lay_out(encoder)
        work = _Work(replace(options, hardware=hardware), encoder.to(hardware.device), size, overlap_of(tiles), notes)
        if children or PARENT in os.environ:
            share = None  # locks divide the work among processes that this command has started
        counts = _embed_all(work, slides, out, name, share, without_tiles(tiles, out), write_added)
        for child in children:
            wait_for(partial(_ended, child), "another process", "it hangs; end it, then start again")
    if hardware.rank == 0 and counts["slides"] and not counts["left"]:
        say_end_of_embed(watch, features_path(out, name, "x").parent, out, [each.name for each in slides], seen)
    return counts


def _ended(child: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError from None


class _Tiles:
    """The tiles of a slide as the encoder takes them."""

    def __init__(self, slide: ListedSlide, size: int | None, channels: int) -> None:
        assert slide.tiling is not None
        self._tiles = SlideTiles([slide.tiling])
        self._size, self._channels = size, channels

    def read(self, position: int) -> npt.NDArray[Any] | CorruptImage:
        """A tile (size, size, C), or why it is damaged. Raises CorruptImage if a disk or a network has failed."""
        try:
            pixels = as_pixels(self._tiles.read(position), self._channels, np.uint8)
        except CorruptImage as error:
            return lasting(error)
        return pixels if self._size is None else center(pixels, self._size)


def _files(out: Path, features: str, slide: str) -> list[Path]:
    """The files of a slide."""
    return [features_path(out, features, slide), *files_of_map(out / "heat_maps" / slide)]


def _embed_all(
    work: _Work,
    slides: Sequence[ListedSlide],
    out: Path,
    features: str,
    shard: Shard | None,
    is_former: Callable[[str], bool],
    on_begin: Callable[[], None],
) -> dict[str, int]:
    """Write the features of the slides that are not done, and a heat map of each.

    Raises:
        UserError: no slide can be read.
    """
    by_name = {slide.name: slide for slide in slides}
    identities = {slide.name: slide.identity() for slide in slides}
    files, paths = partial(_files, out, features), {slide.name: slide.path for slide in slides}

    def has_result(name: str) -> bool:
        return shared.is_same(name, notes_of(features_path(out, features, name)).get("slide"))

    def is_done(name: str) -> bool:
        made = has_result(name) and shared.succeeded(name)
        return made and all(path.exists() for path in files_of_map(out / "heat_maps" / name))

    shared = SlideWork(out, identities, files, has_result, is_whole=False, paths=paths, is_former=is_former)

    def embed(name: str) -> dict[str, Any]:
        return _embed(work, by_name[name], features_path(out, features, name), out / "heat_maps" / name)

    shared.do(is_done, embed, shard, f", {counted(work.encoder.dim, 'number')} for each tile", on_begin=on_begin)
    found = shared.found()
    counts, line = shared.summary(found)
    done = [facts for facts in found.values() if "problem" not in facts]
    tiles, damaged = (sum(facts[key] for facts in done) for key in ("tiles", "damaged"))
    also = f", {counted(damaged, 'damaged tile')} passed over" if damaged else ""
    where = features_path(out, features, "x").parent
    say(f"densepath: features of {counted(tiles, 'tile')} of {counted(len(done), 'slide')} are in {where}{also}{line}")
    made = {"slides": len(done), "tiles": tiles, "damaged": damaged, "dim": work.encoder.dim}
    return made | {"failed": counts["damaged"], "left": counts["left"]}


def _embed(work: _Work, slide: ListedSlide, path: Path, heat_map: Path) -> dict[str, Any]:
    """Write the features of a slide, and their heat map, and return what is known of it."""
    tiling = slide.tiling
    with as_corrupt(slide):
        opened = slide.open()
    assert tiling is not None
    batches = batches_of(range(len(tiling)), work.options.batch_size)
    where = {"slide": slide.identity(), "slide_path": slide.path}
    notes = {**work.notes, **where, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    damaged: list[str] = []
    remove_abandoned(path)
    Path(f"{heat_map}.png").unlink(missing_ok=True)  # it comes last, and shows that the slide is done
    with FeatureWriter(path, tiling, work.overlap, work.encoder.dim, work.options.dtype, notes) as file:
        half = work.options.hardware.precision == "bf16-mixed"
        tiles = _Tiles(slide, work.size, work.encoder.spec.channels)
        parts: Generator[Any, None, None] = encode(work.encoder, tiles, batches, work.options.hardware.device, half)
        with closing(parts):
            for part in with_progress(parts, len(batches), f"batches of {slide.name}"):
                file.add(part.positions, part.features)
                damaged += part.damaged
        if len(damaged) == len(tiling):
            raise CorruptImage(slide.path, f"none of {counted(len(tiling), 'tile')} can be read ({damaged[0]})")
        counts = {"tiles": len(tiling) - len(damaged), "damaged": len(damaged)}
        file.notes |= {**counts, "damaged_tiles": damaged[:100]}
    if damaged:
        report_problem(slide.name, f"{len(damaged)} of {counted(len(tiling), 'tile')} cannot be read: {damaged[0]}")
    with open_features(path) as features:
        colors = principal_colors(features)
    boxes = read_slide_features(path, features=False).boxes_um()
    write_heat_map(heat_map, opened, boxes, colors, label="the first three principal components of the features")
    return {**counts, "path": slide.path}
