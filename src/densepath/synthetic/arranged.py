"""Slides of two classes that only the arrangement of their cells tells apart: the data of the table ``dirl_small``."""

from __future__ import annotations

from functools import cached_property
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densepath.core.csv_files import write_rows
from densepath.core.errors import UserError
from densepath.core.files import require_new_folder
from densepath.core.random import check_seed
from densepath.core.single_values import take_single_values
from densepath.core.system import with_progress
from densepath.synthetic.slide import SlidePainter, write_slide
from densepath.synthetic.tissue_paint import develop
from densepath.synthetic.tissue_shapes import Array, at, on_canvas, paint_ellipses, scatter, smooth_noise

SPREAD, CLUSTERED = "spread", "clustered"
LABELS = "labels.csv"
_MPP = 0.5  # µm per pixel
_SPACING = 8.0  # µm between places of cells: nuclei hardly touch
_CLUSTERS = 13.0  # µm, the wavelength of the noise that makes clusters of some 40 µm, the size of tiles
_SQUARE = 80.0  # µm, the side of squares that have the same number of nuclei in both classes
_STAIN, _CELLS, _ORDER = 7, 8, 9  # streams of random numbers; all slides have the same stain


class ArrangedPainter(SlidePainter):
    """A slide of nuclei that are spread evenly, or gathered in clusters with gaps between them.

    Both classes with the same seed have the same outline and background, and places of which the nuclei take some: in
    each square of 80 µm equally many, of the same sizes. Only which places they take differs.

    Args:
        size: height and width in pixels.
        seed: of everything but the class.
        arrangement: "spread" or "clustered".
    """

    def __init__(self, size: tuple[int, int], seed: int, arrangement: str) -> None:
        super().__init__(size, _MPP, seed)
        self.arrangement = arrangement

    def cells(self) -> Array:
        """Places (N, 2) of all cells, y and x in pixels."""
        rng = np.random.default_rng((self.seed, _CELLS))
        share = rng.uniform(0.4, 0.5)
        points = scatter(rng, self.size, _SPACING / _MPP, 0.12)
        points = points[on_canvas(points, self.size)]
        order = at(smooth_noise(rng, self.size, _CLUSTERS / _MPP), points)
        if self.arrangement == SPREAD:
            order = np.random.default_rng((self.seed, _ORDER)).permutation(order)
        squares = np.unique(points // (_SQUARE / _MPP), axis=0, return_inverse=True)[1].ravel()
        taken = np.zeros(len(points), np.bool_)
        for square in range(squares.max(initial=-1) + 1):
            own = np.flatnonzero(squares == square)
            taken[own[np.argsort(order[own])[: round(share * len(own))]]] = True
        return points[taken]

    @cached_property
    def _whole(self) -> npt.NDArray[np.float32]:
        """The tissue (H, W, 3), everywhere."""
        rng = np.random.default_rng((self.seed, _STAIN))
        texture = 0.6 * smooth_noise(rng, self.size, 3.5 / _MPP) + 0.4 * smooth_noise(rng, self.size, 9 / _MPP)
        eosin = 0.42 + 0.1 * texture
        hematoxylin = (0.1 + 0.03 * texture).astype(np.float32)
        points, nuclei = self.cells(), np.zeros(self.size, np.float32)
        n = len(points)
        a, b = (about * np.exp(0.12 * rng.standard_normal(n)) / _MPP for about in (2.8, 2.4))
        paint_ellipses(nuclei, points, a, b, rng.uniform(0, np.pi, n), np.full(n, 1.0), 0.2)
        stains = np.stack([np.maximum(hematoxylin, nuclei), eosin, np.zeros_like(eosin)])
        return develop(np.random.default_rng(_STAIN), stains).astype(np.float32)

    def _texture(self, top: int, left: int, height: int, width: int) -> npt.NDArray[np.float32]:
        out = np.zeros((height, width, 3), np.float32)
        part = self._whole[top : top + height, left : left + width]
        out[: part.shape[0], : part.shape[1]] = part
        return out


@take_single_values
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
    held = round(pairs * test) if 0 < test < 1 else 0
    if not 0 < held < pairs or side < 512:
        raise UserError("give pairs for both training and test (--pairs, --test), and a side of 512 px or more")
    dest = Path(dest)
    require_new_folder(dest, "the slides")
    rows = []
    for pair in with_progress(range(pairs), pairs, "painting pairs of slides"):
        split = "test" if pair >= pairs - held else "train"
        state = int(np.random.SeedSequence((seed, pair)).generate_state(1)[0])
        for arrangement in (SPREAD, CLUSTERED):
            slide = f"{split}/{pair:03}_{'ab'[(state + (arrangement == CLUSTERED)) % 2]}"  # the name tells no class
            path = dest / f"{slide}.tiff"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_slide(path, painter=ArrangedPainter((side, side), state, arrangement), levels=(1, 4), tile=128)
            rows.append({"slide": slide, "label": arrangement, "patient": f"pair{pair:03}", "split": split})
    write_rows(dest / LABELS, list(rows[0]), sorted(rows, key=itemgetter("slide")))
    return dest
