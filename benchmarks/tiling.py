"""Tiling whole slides: ``densepath tile`` and CLAM's segmentation with its patch coordinates, in slides per minute.

CLAM needs OpenCV, which is not required here. Its algorithm is therefore repeated with NumPy and SciPy, with CLAM's
default values: the level nearest to 1/64, saturation, median of 7 px over 8, closing by 4 px, contours of at least 100
and holes of at least 16 squares of 512 px, patches of which one of four points lies in a contour, HDF5, the picture of
the contours. Areas are masks here, not polygons, and all patches are tested at once, which is faster than CLAM's own
pool of processes. Both write all their files. Seconds of the processor, on one thread.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openslide
import torch
from PIL import Image
from scipy import ndimage

from benchmarks.measure import ratio, report, shown, write_json
from benchmarks.slides import cpu_seconds, procedural_slide, slide_parser
from densepath.sources.slides.decoded_tiles import recent_tiles
from densepath.sources.slides.resolution import MppTable
from densepath.sources.tiles.one_slide import Job
from densepath.sources.tiles.tile_files import read_tiling

_PATCH = 256  # pixels of level 0
_LEAST_UNITS = (100, 16)  # squares of 512 px of level 0, of a contour and of a hole


def clam(path: Path, out: Path) -> int:
    """Segment a slide and write patches as CLAM does; their number.

    Source: Lu et al., CLAM, 2021: WholeSlideImage.segmentTissue, process_contour, visWSI.
    """
    with openslide.OpenSlide(path) as slide:
        level = slide.get_best_level_for_downsample(64)
        scale = slide.level_downsamples[level]
        image = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))
        width, height = slide.dimensions
    red, green, blue = image.transpose(2, 0, 1)
    high, low = (f(f(red, green), blue).astype(np.float32) for f in (np.maximum, np.minimum))
    saturated = (high - low) * 255 > 8.5 * np.maximum(high, 1)
    mask = ndimage.uniform_filter(saturated.astype(np.float32), 7) > 0.5  # the median of the saturation is over 8
    mask = ndimage.binary_closing(np.pad(mask, 4), np.ones((4, 4)))[4:-4, 4:-4]
    unit = (512 / scale) ** 2
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    areas = ndimage.sum_labels(mask, parts, range(1, count + 1))
    kept = np.isin(parts, np.flatnonzero(areas > _LEAST_UNITS[0] * unit) + 1)
    holes, count = ndimage.label(~kept)
    areas = ndimage.sum_labels(~kept, holes, range(1, count + 1))
    kept |= np.isin(holes, np.flatnonzero(areas <= _LEAST_UNITS[1] * unit) + 1)
    y, x = np.mgrid[0 : height - _PATCH + 1 : _PATCH, 0 : width - _PATCH + 1 : _PATCH]
    inside = np.zeros(y.shape, bool)
    for dy, dx in ((64, 64), (64, 192), (192, 64), (192, 192)):  # of the center, by a quarter of the patch
        rows = np.minimum(((y + dy) / scale).astype(int), kept.shape[0] - 1)
        columns = np.minimum(((x + dx) / scale).astype(int), kept.shape[1] - 1)
        inside |= kept[rows, columns]
    coords = np.stack([x[inside], y[inside]], axis=1)
    with h5py.File(out / "patches.h5", "w") as file:
        file.create_dataset("coords", data=coords, chunks=(1, 2), maxshape=(None, 2))
    picture = image.copy()
    picture[ndimage.binary_dilation(kept, iterations=2) & ~kept] = (0, 255, 0)
    Image.fromarray(picture).save(out / "mask.jpg")
    return len(coords)


def densepath(path: Path, out: Path) -> int:
    """Tile a slide with all files of ``densepath tile`` but the tables; the number of tiles."""
    recent_tiles.clear()
    job = Job(out, {"slide": str(path)}, 0.5, 256, 0, 0.25, MppTable(), None, None, "keep", "drop", False)
    job.do("slide")
    return len(read_tiling(job.tiles("slide"), ""))


def measure(path: Path, repeats: int) -> dict[str, Any]:
    """Slides per minute of both on one slide."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        counts = {"densepath": densepath(path, out), "clam": clam(path, out)}
        shutil.rmtree(out / "records")
        cases = {"densepath": lambda: densepath(path, out), "clam": lambda: clam(path, out)}
        seconds = cpu_seconds(cases, repeats)
    rates = {f"{name}, slides/min": 60 / statistics.median(times) for name, times in seconds.items()}
    tiles = {f"{name}, tiles": count for name, count in counts.items()}
    return shown({"case": path.name} | rates | {"ratio": ratio(seconds["clam"], seconds["densepath"])} | tiles)


def main() -> None:
    """Measure tiling on a procedural slide, and on yours."""
    asked = slide_parser(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    with procedural_slide(asked) as path:
        rows = [measure(each, asked.repeats) for each in (path, *([Path(asked.data)] if asked.data else []))]
    report("tiling", rows)
    if asked.json:
        write_json(asked.json, {"tiling": rows})


if __name__ == "__main__":
    main()
