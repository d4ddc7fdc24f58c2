"""Scores the built-in finder of cells against Otsu's threshold and a watershed, on images with instance maps.

The data are MoNuSeg: a folder with manifest.csv (name, label_kind, mpp_from_xml), images/ and instance/. Images with
instance maps count, about 0.25 µm/px; coarser ones are means of squares of pixels. A found point is correct within 1.5
µm (6 px at 0.25 µm/px) of the center of an instance; each belongs to one of the other side, as many as possible.

The parameters of both were fixed on six of the thirteen images, every second one in the order of their names: those of
the watershed here, by a search over all combinations at 0.5 µm/px; those of the finder in
``densepath/annotations/cells/blobs.py``. The scores are those of the other seven.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree
from skimage.color import rgb2hed
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from benchmarks.measure import report
from densepath.annotations.cells.blobs import find_cells
from densepath.annotations.cells.finders import center_points

Pixels = npt.NDArray[np.uint8]
Points = npt.NDArray[np.floating]
Find = Callable[[Pixels, float], Points]
MPP, NEAR = 0.25, 1.5  # µm per pixel of the images; µm within which a point is correct
FIXED_ON = 6  # images
GRID: Mapping[str, Sequence[float]] = {  # µm, µm²
    "smooth": (0, 0.25),
    "apart": (2, 2.5, 3),
    "smallest": (5, 8),
    "smooth_distance": (0.25, 0.75),
}


def otsu_watershed(
    pixels: Pixels, mpp: float, smooth: float, apart: float, smallest: float, smooth_distance: float
) -> Points:
    """Hematoxylin above Otsu's threshold, divided by a watershed of the distance from the border."""
    stain = ndimage.gaussian_filter(rgb2hed(pixels)[..., 0], smooth / mpp)
    mask = ndimage.binary_fill_holes(stain > threshold_otsu(stain))
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), smooth_distance / mpp)
    peaks = peak_local_max(
        distance, min_distance=max(1, round(apart / mpp)), labels=mask.astype(int), exclude_border=False
    )
    seeds = np.zeros(mask.shape, int)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    regions = watershed(-distance, seeds, mask=mask)
    large = np.bincount(regions.ravel()) * mpp**2 >= smallest
    return center_points(np.where(large[regions], regions, 0))


def read(data: Path) -> list[tuple[Pixels, Points]]:
    """The images with instance maps, and the centers of their instances in µm, in the order of their names."""
    with (data / "manifest.csv").open(newline="") as file:
        names = sorted(row["name"] for row in csv.DictReader(file) if row["label_kind"] == "instance")
    found = []
    for name in names:
        (image,), (labels,) = (list((data / kind).rglob(f"{name}.*")) for kind in ("images", "instance"))
        centers = center_points(np.asarray(Image.open(labels)).astype(np.int64))
        found.append((np.asarray(Image.open(image).convert("RGB")), centers * MPP))
    return found


def reduced(pixels: Pixels, factor: int) -> Pixels:
    """The means of squares."""
    height, width = (side // factor for side in pixels.shape[:2])
    squares = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.rint(squares.mean((1, 3))).astype(np.uint8)


def matched(found: Points, true: Points) -> int:
    """The largest number of pairs within the distance, each point in one of them."""
    if not len(found) or not len(true):
        return 0
    near = cKDTree(found).sparse_distance_matrix(cKDTree(true), NEAR, output_type="coo_matrix")
    graph = csr_matrix((np.ones(len(near.row)), (near.row, near.col)), shape=(len(found), len(true)))
    return int((maximum_bipartite_matching(graph) >= 0).sum())


def score(find: Find, images: Sequence[tuple[Pixels, Points]], factor: int) -> dict[str, float]:
    """F1, precision and recall in percent over all images together, and million pixels a second."""
    pairs = points = cells = pixels = 0
    seconds = 0.0
    for image, true in images:
        small = reduced(image, factor)
        start = time.perf_counter()
        found = find(small, MPP * factor)
        seconds += time.perf_counter() - start
        pairs, points, cells = pairs + matched(found * MPP * factor, true), points + len(found), cells + len(true)
        pixels += small.shape[0] * small.shape[1]
    parts = {"F1": 200 * pairs / (points + cells), "precision": 100 * pairs / points, "recall": 100 * pairs / cells}
    return parts | {"Mpx/s": pixels / seconds / 1e6}


def compare(data: Path) -> list[dict[str, Any]]:
    """One row for each finder and resolution."""
    images = read(data)
    first = [number for number in range(0, len(images), 2)][:FIXED_ON]
    fixed_on, others = [images[k] for k in first], [images[k] for k in range(len(images)) if k not in first]
    choices = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    best = max(choices, key=lambda kw: score(lambda p, mpp: otsu_watershed(p, mpp, **kw), fixed_on, 2)["F1"])
    print(f"watershed: {best}", flush=True)
    finders: dict[str, Find] = {"blobs": find_cells, "watershed": lambda p, mpp: otsu_watershed(p, mpp, **best)}
    rows = []
    for name, find in finders.items():
        for factor in (1, 2, 4):
            row = {"case": f"{name}, {MPP * factor:g} µm/px", **score(find, others, factor)}
            rows.append(row | {"F1 of the six": score(find, fixed_on, factor)["F1"]})
    return rows


def main() -> None:
    """Print one table."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--data", type=Path, required=True, help="MoNuSeg: manifest.csv, images/, instance/")
    report("Cells found in MoNuSeg", compare(made.parse_args().data))


if __name__ == "__main__":
    main()
