"""The images of LC25000 that come from one photograph, as a table for ``densepath probe``: ``file,label,patient``.

LC25000's authors rotated (up to 25 degrees) and flipped 1,250 photographs until there were 25,000 images (Borkowski
et al., arXiv:1912.12142), and did not publish which belong together. A rotation about the center, with the crop and
the zoom that remove its corners, shifts an image in log-polar coordinates, and a flip mirrors it. So the highest
correlation over shifts and mirror images is that of the contents. Images above a threshold are linked, and linked
images form a group. Images of different photographs that are linked by chance do no harm: no fold divides a group.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import map_coordinates
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from densepath.sources.listing import list_images

_SIDE = 112  # pixels to which images are reduced
_ANGLES, _RADII = 64, 36
_INNER, _OUTER = 4.0, 54.0  # pixels of the reduced image
_ZOOM = 4  # steps of the radius, each 7.5%: rotations by 0 and 25 degrees differ by a factor of 1.33
_ROWS = 50


def log_polar(path: Path) -> npt.NDArray[np.float32]:
    """The grey values around the center, (radii, angles)."""
    grey = np.asarray(Image.open(path).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
    radius = np.geomspace(_INNER, _OUTER, _RADII)[:, None]
    angle = np.arange(_ANGLES) * 2 * np.pi / _ANGLES
    center = (_SIDE - 1) / 2
    places = [center + radius * np.sin(angle), center + radius * np.cos(angle)]
    found: npt.NDArray[np.float32] = map_coordinates(grey, places, order=1)
    return found - found.mean(1, keepdims=True)  # rings without their means: colors alone prove nothing


def correlations(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The highest correlation of each pair of (N, radii, angles) over rotations, zooms and flips, (N, N)."""
    count = len(images)
    best = np.full((count, count), -1.0, np.float32)
    for flip in (False, True):
        other = images[:, :, ::-1] if flip else images
        for shift in range(-_ZOOM, _ZOOM + 1):
            mine = np.s_[max(0, shift) : _RADII + min(0, shift)]
            theirs = np.s_[max(0, -shift) : _RADII + min(0, -shift)]
            a, b = _spectra(images[:, mine]), _spectra(other[:, theirs])
            for first in range(0, count, _ROWS):
                cross = np.einsum("kir,kjr->ijk", a[:, first : first + _ROWS], b.conj(), optimize=True)
                peak = np.fft.irfft(cross, _ANGLES, axis=2).max(2)
                best[first : first + _ROWS] = np.maximum(best[first : first + _ROWS], peak)
    return np.maximum(best, best.T)


def _spectra(images: npt.NDArray[np.float32]) -> npt.NDArray[np.complex64]:
    """(frequencies, N, radii), such that correlations of equal images are 1."""
    scaled = images / np.linalg.norm(images, axis=(1, 2), keepdims=True)
    return np.ascontiguousarray(np.fft.rfft(scaled, axis=2).transpose(2, 0, 1)).astype(np.complex64)


def groups_of(similar: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[Any]:
    """(N,) the number of each image's group."""
    links = coo_array(similar > threshold)
    labels: npt.NDArray[Any] = connected_components(links, directed=False)[1]
    return labels


def main() -> None:
    """Write the table, and report the groups."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--data", required=True, help="a folder with a folder for each class")
    made.add_argument("--out", required=True, help="the table to write")
    made.add_argument("--threshold", type=float, default=0.5)
    asked = made.parse_args()
    root = Path(asked.data)
    rows = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        files = list(map(Path, list_images(folder)))
        similar = correlations(np.stack([log_polar(file) for file in files]))
        np.fill_diagonal(similar, 0)
        labels = groups_of(similar, asked.threshold)
        sizes = np.bincount(labels)
        around = [int((similar > asked.threshold + step).sum()) // 2 for step in (-0.1, -0.05, 0, 0.05, 0.1)]
        print(
            f"{folder.name}: {len(files)} images, {len(sizes)} groups, the largest of {sizes.max()}, "
            f"{(sizes == 1).sum()} of one image; pairs at thresholds from -0.1 to +0.1: {around}"
        )
        print(np.histogram(similar.max(1), bins=np.linspace(0, 1, 21))[0].tolist())
        rows += [
            (file.relative_to(root).as_posix(), folder.name, f"{folder.name} {k}")
            for file, k in zip(files, labels, strict=True)
        ]
    with open(asked.out, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "label", "patient"), *rows])


if __name__ == "__main__":
    main()
