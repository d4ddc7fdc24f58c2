"""Slides of two classes that only the arrangement of their cells tells apart: the data of the table ``dirl_small``."""

from __future__ import annotations

import csv
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError
from densepath.core.files import atomic_write, require_new_folder
from densepath.core.random import check_seed
from densepath.core.system import with_progress
from densepath.synthetic.slide import SlidePainter, write_slide
from densepath.synthetic.tissue_paint import develop
from densepath.synthetic.tissue_shapes import Array, at, on_canvas, paint_ellipses, scatter, smooth_noise

MIXED, SORTED = "mixed", "sorted"
LABELS = "labels.csv"
_MPP = 0.5  # µm per pixel
_SPACING = 8.0  # µm between cells: about one for a token of 16 px
_NESTS = 40.0  # µm, the wavelength of the nests of sorted cells
_STAIN, _CELLS, _ORDER = 7, 8, 9  # streams of random numbers; all slides have the same stain


class ArrangedPainter(SlidePainter):
    """A slide of large pale and small dark nuclei: the two kinds are mixed, or sorted into nests.

    Both classes with the same seed have the same outline, background and places of cells, and the same number of cells
    of each kind: only which place has which kind differs.

    Args:
        size: height and width in pixels.
        seed: of everything but the class.
        arrangement: "mixed" or "sorted".
    """

    def __init__(self, size: tuple[int, int], seed: int, arrangement: str) -> None:
        super().__init__(size, _MPP, seed)
        self.arrangement = arrangement

    def cells(self) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Places (N, 2) of all cells, y and x in pixels, and whether each is small and dark (N,)."""
        rng = np.random.default_rng((self.seed, _CELLS))
        share, small = rng.uniform(0.6, 0.75), rng.uniform(0.45, 0.55)
        points = scatter(rng, self.size, _SPACING / _MPP, 0.12)  # so far apart that nuclei hardly touch
        points = points[on_canvas(points, self.size)]
        points = points[rng.uniform(size=len(points)) < share]
        nests = at(smooth_noise(rng, self.size, _NESTS / _MPP), points)
        if self.arrangement == MIXED:
            nests = np.random.default_rng((self.seed, _ORDER)).permutation(nests)
        dark = np.zeros(len(points), np.bool_)
        dark[np.argsort(nests)[: round(small * len(points))]] = True
        return points, dark

    @cached_property
    def _whole(self) -> npt.NDArray[np.float32]:
        """The tissue (H, W, 3), everywhere."""
        rng = np.random.default_rng((self.seed, _STAIN))
        texture = 0.6 * smooth_noise(rng, self.size, 3.5 / _MPP) + 0.4 * smooth_noise(rng, self.size, 9 / _MPP)
        eosin = 0.42 + 0.1 * texture
        hematoxylin = (0.1 + 0.03 * texture).astype(np.float32)
        points, dark = self.cells()
        for chosen, long, short, amount, hollow in ((~dark, 3.3, 2.9, 0.75, 0.35), (dark, 2.2, 2.0, 1.3, 0.0)):
            n, nuclei = int(chosen.sum()), np.zeros(self.size, np.float32)
            a, b = (about * np.exp(0.12 * rng.standard_normal(n)) / _MPP for about in (long, short))
            paint_ellipses(nuclei, points[chosen], a, b, rng.uniform(0, np.pi, n), np.full(n, amount), hollow)
            hematoxylin = np.maximum(hematoxylin, nuclei)
        stains = np.stack([hematoxylin, eosin, np.zeros_like(eosin)])
        return develop(np.random.default_rng(_STAIN), stains).astype(np.float32)

    def _texture(self, top: int, left: int, height: int, width: int) -> npt.NDArray[np.float32]:
        out = np.zeros((height, width, 3), np.float32)
        part = self._whole[top : top + height, left : left + width]
        out[: part.shape[0], : part.shape[1]] = part
        return out


def write_arranged(dest: str | Path, *, pairs: int = 50, test: float = 0.4, side: int = 640, seed: int = 0) -> Path:
    """Write slides of two classes, which only the arrangement of their cells tells apart, and ``labels.csv``.

    The slides of a pair, one of each class, are equal but for which cell is where; a pair is a patient. Slides of
    training are in ``train/``, those of the test in ``test/``.

    Args:
        dest: a new folder.
        pairs: number of pairs of slides.
        test: share of the pairs that are the test.
        side: of a slide in pixels of 0.5 µm.
        seed: of all slides.

    Returns:
        ``dest``.

    Raises:
        UserError: a number is invalid, or the folder exists.
    """
    check_seed(seed)
    held = round(pairs * test)
    if not 0 < held < pairs or side < 512:
        raise UserError("give pairs for both training and test (--pairs, --test), and a side of 512 px or more")
    dest = Path(dest)
    require_new_folder(dest, "the slides")
    rows = []
    for pair in with_progress(range(pairs), pairs, "painting pairs of slides"):
        split = "test" if pair >= pairs - held else "train"
        state = int(np.random.SeedSequence((seed, pair)).generate_state(1)[0])
        for arrangement in (MIXED, SORTED):
            slide = f"{split}/{pair:03}_{'ab'[(state + (arrangement == SORTED)) % 2]}"  # the name tells no class
            path = dest / f"{slide}.tiff"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_slide(path, painter=ArrangedPainter((side, side), state, arrangement), levels=(1, 4), tile=128)
            rows.append((slide, arrangement, f"pair{pair:03}", split))
    with atomic_write(dest / LABELS) as part, part.open("w", newline="") as opened:
        csv.writer(opened).writerows([("slide", "label", "patient", "split"), *sorted(rows)])
    return dest
