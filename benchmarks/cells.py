"""Scores the built-in finder of cells against Otsu's threshold and a watershed, on images with instance maps.

The data are MoNuSeg: a folder with manifest.csv (name, label_kind, mpp_from_xml), images/ and instance/. Images with
instance maps count, about 0.25 µm/px; coarser ones are means of squares of pixels. A found point is correct within 1.5
µm (6 px at 0.25 µm/px) of the center of an instance; each belongs to one of the other side, as many as possible.

The parameters of both are fixed on six of the thirteen images, and the scores are those of the other seven. Which six
they are decides more than the method, so that this is repeated for many random choices of them: the weights of the
finder are fitted, and the parameters of the watershed searched over all combinations at 0.5 µm/px. The weights in
``densepath/annotations/cells/blobs.py`` are those of every second image in the order of their names.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

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
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.measure import report
from densepath.annotations.cells.blobs import MPP as FINDER_MPP
from densepath.annotations.cells.blobs import StainLevels, at_mpp, candidates, most_likely
from densepath.annotations.cells.finders import center_points

Pixels = npt.NDArray[np.uint8]
Points = npt.NDArray[np.floating]
MPP, NEAR = 0.25, 1.5  # µm per pixel of the images; µm within which a point is correct
FIXED_ON = 6  # images
CENTERED, PENALTY = 1.3, 30.0  # µm within which a candidate is fitted as a nucleus; weight of the squared weights
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


Counts = npt.NDArray[np.int64]  # pairs, points and cells of an image


def f1(counts: Sequence[Counts]) -> float:
    """F1 in percent over several images together."""
    pairs, points, cells = np.sum(counts, axis=0).tolist()
    return 200 * pairs / max(1, points + cells)


class Images:
    """The images at three resolutions, and what both methods find in them; each is computed once."""

    def __init__(self, data: Path) -> None:
        self.images = read(data)

    @cache  # noqa: B019
    def candidates(self, number: int, factor: int) -> tuple[Points, Points]:
        """The finder's candidates in µm, and their features."""
        image = at_mpp(reduced(self.images[number][0], factor), MPP * factor)
        levels = StainLevels.of([image])
        assert levels is not None
        return candidates(image, levels)

    @cache  # noqa: B019
    def watershed(self, number: int, factor: int, choice: tuple[float, ...]) -> Counts:
        """The counts of the watershed with some parameters."""
        image, true = self.images[number]
        found = otsu_watershed(reduced(image, factor), MPP * factor, **dict(zip(GRID, choice, strict=True)))
        return np.array([matched(found * MPP * factor, true), len(found), len(true)])

    def blobs(self, number: int, factor: int, weights: Points, bias: float) -> Counts:
        """The counts of the finder with some weights."""
        true = self.images[number][1]
        points, features = self.candidates(number, factor)
        found = most_likely(points, features @ weights + bias) * FINDER_MPP
        return np.array([matched(found, true), len(found), len(true)])

    def fitted(self, numbers: Sequence[int]) -> tuple[Points, float]:
        """The weights and the bias of the finder's logistic function, from some images at 0.5 and 1 µm/px."""
        found = [self.candidates(k, factor) for k in numbers for factor in (2, 4)]
        true = [self.images[k][1] for k in numbers for _ in (2, 4)]
        near = [cKDTree(c).query(p * FINDER_MPP)[0] < CENTERED for c, (p, _) in zip(true, found, strict=True)]
        scaler, model = StandardScaler(), LogisticRegression(C=1 / PENALTY, max_iter=1000)
        model.fit(scaler.fit_transform(np.concatenate([features for _, features in found])), np.concatenate(near))
        weights = model.coef_[0] / scaler.scale_
        return weights, float(model.intercept_[0] - weights @ scaler.mean_)

    def searched(self, numbers: Sequence[int]) -> tuple[float, ...]:
        """The best parameters of the watershed on some images."""
        choices = itertools.product(*GRID.values())
        return max(choices, key=lambda choice: f1([self.watershed(k, 2, choice) for k in numbers]))

    def compare(self, first: Sequence[int], weights: Points, bias: float) -> dict[str, tuple[float, float]]:
        """F1 of both methods at each resolution on all other images."""
        others, choice = [k for k in range(len(self.images)) if k not in first], self.searched(first)
        return {
            f"{MPP * factor:g} µm/px": (
                f1([self.blobs(k, factor, weights, bias) for k in others]),
                f1([self.watershed(k, factor, choice) for k in others]),
            )
            for factor in (1, 2, 4)
        }


def main() -> None:
    """Print a table for the usual choice of the six images, and one for random choices."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--data", type=Path, required=True, help="MoNuSeg: manifest.csv, images/, instance/")
    made.add_argument("--splits", type=int, default=100, help="number of random choices of the six images")
    asked = made.parse_args()
    images = Images(asked.data)
    count = len(images.images)
    first = list(range(0, count, 2))[:FIXED_ON]
    weights, bias = images.fitted(first)
    print([float(f"{weight:.3g}") for weight in weights], round(bias, 3), images.searched(first), flush=True)
    rows = [
        {"case": case, "blobs, F1": blobs, "watershed, F1": watershed}
        for case, (blobs, watershed) in images.compare(first, weights, bias).items()
    ]
    report("Every second image", rows)
    random = np.random.default_rng(0)
    choices = [random.permutation(count)[:FIXED_ON].tolist() for _ in range(asked.splits)]
    found = [images.compare(six, *images.fitted(six)) for six in choices]
    rows = []
    for case in found[0] if found else ():
        blobs, watershed = np.array([each[case] for each in found]).T
        row = {"case": case, "blobs, mean F1": blobs.mean(), "watershed, mean F1": watershed.mean()}
        rows.append(row | {"blobs is better, %": 100 * float((blobs > watershed).mean())})
    if rows:
        report(f"{asked.splits} random choices of the six images", rows)


if __name__ == "__main__":
    main()
