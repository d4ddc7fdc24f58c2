"""Reading whole slides: this package, OpenSlide with Pillow, and the loops of TRIDENT and STAMP, in turns.

The loops are repeated here as these packages document them, because neither is on PyPI. TRIDENT reads a patch from the
level that is not coarser, converts it to RGB, and resizes it (there with OpenCV, here with Pillow, bilinear). STAMP
reads squares of at most 4096 px of level 0 in threads, resizes each to whole tiles, and cuts it (256 µm in 224 px).

Tiles per second of the processor, on one thread: other work on the machine matters less to it than to the time that
passes. Places are random and drawn before. No decoded tile is kept by either, so that a small slide does not answer
from memory, except in the rows "raster", where both may keep 64 MiB, and start each round with none. The slides are a
procedural pyramid and, with ``--data``, one of yours.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import timm
import torch
from PIL import Image

from benchmarks.measure import isolated, parser, ratio, report, shown, status_mib, write_json
from densepath.sources.loader import ImageBatches
from densepath.sources.names import AllNames
from densepath.sources.packing import open_store, write_store
from densepath.sources.pixel_source import PixelSource
from densepath.sources.slides.decoded_tiles import decoding_in_part, recent_tiles
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.slide import Slide
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile_files import SlideTiling
from densepath.synthetic.slide import write_slide
from densepath.views.augment import Augment
from densepath.views.declarations import RandomView
from densepath.views.maker import ViewMaker
from densepath.views.view import Batch

_TILES = 100  # in each round
_KEPT, _FREED = 2**26, 30_000_000  # bytes
_UM, _SUPERTILE, _THREADS = 256.0, 4096, 8  # STAMP's defaults: µm of a tile, pixels read at once, threads
_VIEW, _BATCH, _STEPS = 64, 64, 4

Case = Callable[[], Any]


def _places(slide: Slide, side: int, step: int) -> list[tuple[int, int]]:
    rng, (height, width) = np.random.default_rng(0), slide.size
    rows, columns = ((length - side) // step + 1 for length in (height, width))
    return [(int(rng.integers(rows)) * step, int(rng.integers(columns)) * step) for _ in range(_TILES)]


def _raster(slide: Slide, side: int) -> list[tuple[int, int]]:
    height, width = (min(length, 12 * side) for length in slide.size)
    return [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)][:_TILES]


def reading(slide: Slide, oracle: openslide.OpenSlide) -> Iterator[tuple[str, int, dict[str, Case]]]:
    """The cases to compare: name, tiles of a round, and a function for each reader."""
    tables: Any = slide.file
    side = int(tables.tables[0].format.height)
    for name, size, step in ((f"{side} px, aligned", side, side), ("224 px, unaligned", 224, 1)):
        places = _places(slide, size, step)
        yield name, len(places), _whole(slide, oracle, places, size)
    raster = _raster(slide, 224)
    yield "224 px, raster", len(raster), _with_caches(oracle, _whole(slide, oracle, raster, 224))
    for factor in (2, 4):
        mpp = slide.mpp[0] * factor
        if slide.nearest(mpp) == (0, factor) and min(slide.size) >= 224 * factor:  # it is not stored
            places = _places(slide, 224 * factor, factor)
            yield f"224 px at {mpp:.3g} µm/px, no such level", len(places), _reduced(slide, oracle, places, factor)
            places = _places(slide, side * factor, side)  # the grid of densepath tile where it loses next to no tissue
            cases = _reduced(slide, oracle, places, factor, side)
            yield f"{side} px at {mpp:.3g} µm/px, aligned, no such level", len(places), cases
            places = _raster(slide, 224 * factor)
            cases = _with_caches(oracle, _reduced(slide, oracle, places, factor))
            yield f"224 px at {mpp:.3g} µm/px, raster, no such level", len(places), cases
    if found := stamp(slide, oracle):
        yield found


def stamp(slide: Slide, oracle: openslide.OpenSlide) -> tuple[str, int, dict[str, Case]] | None:
    """Tiles of 256 µm in 224 px, of a square of level 0; None if the slide is smaller than a square."""
    own = math.ceil(_UM / slide.mpp[0])
    count = _SUPERTILE // own
    side = own * count
    if min(slide.size) < side or not count:
        return None
    mpp = own * slide.mpp[0] / 224
    level = slide.at_mpp(mpp)
    tiles = tiles_of(slide, 224, mpp, side)

    def square() -> list[Any]:
        with ThreadPoolExecutor(_THREADS) as threads:
            read = threads.submit(lambda: oracle.read_region((0, 0), 0, (side, side)).resize((224 * count,) * 2))
            whole = read.result().convert("RGB")
        steps = [224 * k for k in range(count)]
        return [np.asarray(whole.crop((x, y, x + 224, y + 224))) for y in steps for x in steps]

    boxes = [(y * _UM, x * _UM, _UM, _UM) for y in range(count) for x in range(count)]
    cases: dict[str, Case] = {
        "densepath": lambda: [tiles.read(k) for k in range(len(tiles))],
        "densepath, as stored": lambda: [level.read_um(box) for box in boxes],
        "STAMP": square,
    }
    return f"224 px of {_UM:g} µm", count**2, cases


def _with_caches(oracle: openslide.OpenSlide, cases: dict[str, Case]) -> dict[str, Case]:
    """The cases with caches of the same size, empty at the start of each."""

    def run(name: str) -> None:
        recent_tiles.limit(_KEPT)
        oracle.set_cache(openslide.OpenSlideCache(_KEPT))
        cases[name]()

    return {name: partial(run, name) for name in cases}


def _whole(slide: Slide, oracle: openslide.OpenSlide, places: list[tuple[int, int]], side: int) -> dict[str, Case]:
    return {
        "densepath": lambda: _read(slide, [(y, x, side, side) for y, x in places], 1),
        "openslide": lambda: [np.asarray(oracle.read_region((x, y), 0, (side, side)))[:, :, :3] for y, x in places],
        "TRIDENT": lambda: [_patch(oracle, x, y, side, side) for y, x in places],
    }


def _read(slide: Slide, boxes: list[tuple[int, int, int, int]], scale: int) -> list[Any]:
    """As pre-training reads."""
    with decoding_in_part():
        return [slide.read(0, box, scale) for box in boxes]


def _patch(oracle: openslide.OpenSlide, x: int, y: int, stored: int, side: int) -> Any:
    """A patch as TRIDENT reads it."""
    region = oracle.read_region((x, y), 0, (stored, stored)).convert("RGB")
    return np.asarray(region.resize((side, side), Image.Resampling.BILINEAR))


def _reduced(
    slide: Slide, oracle: openslide.OpenSlide, places: list[tuple[int, int]], factor: int, side: int = 224
) -> dict[str, Case]:
    def resized(y: int, x: int) -> Any:
        region = oracle.read_region((x, y), 0, (side * factor, side * factor)).convert("RGB")
        return np.asarray(region.resize((side, side), Image.Resampling.BICUBIC))

    return {
        "densepath": lambda: _read(slide, [(y // factor, x // factor, side, side) for y, x in places], factor),
        "openslide": lambda: [resized(y, x) for y, x in places],
        "TRIDENT": lambda: [_patch(oracle, x, y, side * factor, side) for y, x in places],
    }


def cpu_seconds(cases: dict[str, Case], repeats: int) -> dict[str, list[float]]:
    """Seconds of the processor for each case in each round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(1 + repeats):
        for name, case in cases.items():
            start = time.process_time()
            case()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def measure(path: Path, repeats: int) -> list[dict[str, Any]]:
    """A row for each way of reading a slide.

    Memory as large as a batch is taken and freed first, as in training: from then on the process keeps what it frees,
    and no reader waits for the system to clear pages for each tile.
    """
    np.empty(_FREED, np.uint8)
    slide, oracle = open_slide(path), openslide.OpenSlide(path)
    rows = []
    for name, count, cases in reading(slide, oracle):
        recent_tiles.limit(0)
        oracle.set_cache(openslide.OpenSlideCache(0))
        seconds = cpu_seconds(cases, repeats)
        row = {f"{reader}, tiles/s": count / statistics.median(times) for reader, times in seconds.items()}
        own = seconds["densepath"]
        ratios = {f"{reader} / densepath": ratio(times, own) for reader, times in seconds.items() if times is not own}
        rows.append(shown({"case": name} | row | ratios))
    recent_tiles.limit(_KEPT)
    return rows


def opened(path: str, count: int) -> dict[str, float]:
    """Memory of many open slides, each of which was read once."""
    with tempfile.TemporaryDirectory() as folder:
        names = [os.path.join(folder, f"{number}.tiff") for number in range(count)]
        for name in names:
            os.symlink(os.path.abspath(path), name)
        open_slide(path).read(0, (0, 0, 224, 224))
        before = status_mib("VmRSS")
        slides = [open_slide(name) for name in names]
        for slide in slides:
            slide.read(0, (0, 0, 224, 224))
        after = status_mib("VmRSS")
        return {"slides": count, "MiB for them": after - before, "MiB of the process": after}


def many(path: str, count: int) -> dict[str, float]:
    """Memory while many tiles are read: after a tenth of them, and at the end."""
    slide = open_slide(path)
    places, early = _places(slide, 224, 1), 0.0
    for number in range(count):
        y, x = places[number % len(places)]
        slide.read(0, (y, (x + number) % (slide.size[1] - 224), 224, 224))
        if number == count // 10:
            early = status_mib("VmRSS")
    return {"tiles": count, "MiB after a tenth": early, "MiB at the end": status_mib("VmRSS")}


def tiles_of(slide: Slide, size: int, mpp: float, most: int = 2**30) -> SlideTiles:
    """The tiles of a slide in rows, from its corner, at most some pixels far, without a look at its tissue."""
    (height, width), step = (min(length, most) for length in slide.size), round(size * mpp / slide.mpp[0])
    corners = [(x, y) for y in range(0, height - step + 1, step) for x in range(0, width - step + 1, step)]
    path = Path(slide.name)
    return SlideTiles([SlideTiling(path.stem, str(path), np.array(corners), mpp, size, slide.mpp, slide.size)])


def training(path: Path, size: int, mpp: float, repeats: int) -> dict[str, Any]:
    """Pairs of views of 64 px, and steps of a small network on them, from a slide and from the same tiles packed."""
    slides = tiles_of(open_slide(path), size, mpp)
    with tempfile.TemporaryDirectory() as folder:
        pixels = (slides.read(k) for k in range(len(slides)))
        store = open_store(write_store(Path(folder, "s.safetensors"), pixels, AllNames(slides), slides.spec))
        network: Any = timm.create_model("regnetx_002", num_classes=0)
        maker = ViewMaker({name: Augment().random_view() for name in "ab"}, _VIEW, 0, slides.spec)
        crops = ViewMaker({name: RandomView() for name in "ab"}, _VIEW, 0, slides.spec)
        optimizer = torch.optim.SGD(network.parameters(), 0.01)

        def step(batch: Batch) -> None:
            pixels = torch.cat([view.pixels for view in batch.views.values()])
            optimizer.zero_grad()
            network(pixels).square().mean().backward()
            optimizer.step()

        def run(source: PixelSource, act: Callable[[Batch], Any], maker: ViewMaker = maker) -> Case:
            count = min(_BATCH, len(source))
            batches = ImageBatches(source, batch_size=count, seed=0, max_steps=_STEPS)
            return lambda: [act(maker(batch)) for batch in batches]

        cases = {
            "slide, crops": run(slides, lambda batch: None, crops),
            "packed, crops": run(store, lambda batch: None, crops),
            "slide, loader": run(slides, lambda batch: None),
            "packed, loader": run(store, lambda batch: None),
            "slide, steps": run(slides, step),
            "packed, steps": run(store, step),
        }
        seconds = cpu_seconds(cases, repeats)
        pairs = _STEPS * min(_BATCH, len(slides))
        rates = {f"{name}, pairs/s": pairs / min(times) for name, times in seconds.items()}
    share = min(seconds["slide, steps"]) / min(seconds["packed, steps"])
    return {"case": f"tiles of {size} px at {mpp:g} µm/px"} | rates | {"step / packed step": share}


def training_memory(path: str, count: int) -> dict[str, float]:
    """Memory while many tiles are loaded in random order: after a tenth of them, and at the end."""
    tiles, early = tiles_of(open_slide(path), 224, 0.5), 0.0
    batch_size = min(_BATCH, len(tiles))
    steps = count // batch_size
    for number, _ in enumerate(ImageBatches(tiles, batch_size=batch_size, seed=0, max_steps=steps)):
        if number == steps // 10:
            early = status_mib("VmRSS")
    return {"tiles": steps * batch_size, "MiB after a tenth": early, "MiB at the end": status_mib("VmRSS")}


def slide_parser(line: str) -> argparse.ArgumentParser:
    """The options of a benchmark on a procedural slide, and on one of yours."""
    made = parser(line)
    made.add_argument("--side", type=int, default=20_000, help="sides of the procedural slide in pixels")
    made.add_argument("--keep", help="a file for the procedural slide, which is used again if it exists")
    return made


@contextmanager
def procedural_slide(asked: argparse.Namespace) -> Iterator[Path]:
    """The procedural slide that the options of :func:`slide_parser` ask for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(asked.keep or Path(folder, "slide.tiff"))
        if not path.exists():
            write_slide(path, size=(asked.side, asked.side))
        yield path


def main() -> None:
    """Measure reading, and the memory of it."""
    made = slide_parser(__doc__.splitlines()[0])
    made.add_argument("--slides", type=int, default=1000, help="number of slides that are open at once")
    made.add_argument("--tiles", type=int, default=100_000, help="number of tiles for the memory over time")
    asked = made.parse_args()
    torch.set_num_threads(1)
    with procedural_slide(asked) as path:
        tables = {f"procedural slide of {asked.side} px": measure(path, asked.repeats)}
        if asked.data:
            tables[Path(asked.data).name] = measure(Path(asked.data), asked.repeats)
        trained = Path(asked.data) if asked.data else path
        rows = [training(trained, size, mpp, asked.repeats) for size, mpp in ((64, 0.499), (64, 0.5), (256, 0.5))]
        tables[f"pre-training from {trained.name}, views of {_VIEW} px"] = [shown(row) for row in rows]
        memory = [{"case": "open slides"} | isolated(opened, str(path), asked.slides)]
        memory.append({"case": "many tiles"} | isolated(many, str(path), asked.tiles))
        memory.append({"case": "many tiles, loader"} | isolated(training_memory, str(path), asked.tiles))
        tables["memory"] = [shown(row) for row in memory]
    for title, rows in tables.items():
        report(title, rows)
    if asked.json:
        write_json(asked.json, tables)


if __name__ == "__main__":
    main()
