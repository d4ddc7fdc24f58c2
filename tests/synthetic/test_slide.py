"""Procedural slides."""

from pathlib import Path

import numpy as np
import pytest

from densepath.core.errors import UserError
from densepath.sources.slides.open import open_slide
from densepath.synthetic.slide import SlidePainter, write_slide


@pytest.fixture(scope="module")
def painter() -> SlidePainter:
    return SlidePainter((900, 1100), mpp=1.0, seed=2)


def test_a_pixel_depends_on_its_place_and_the_seed_only(painter: SlidePainter) -> None:
    whole = painter.part(0, 0, 900, 1100)
    for top, left, height, width in [(0, 0, 1, 1), (300, 310, 100, 90), (640, 700, 260, 400), (319, 319, 66, 66)]:
        part = painter.part(top, left, height, width)
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])
    assert (SlidePainter((900, 1100), 1.0, 3).part(400, 500, 50, 50) != whole[400:450, 500:550]).any()


def test_tissue_lies_on_glass(painter: SlidePainter) -> None:
    whole = painter.part(0, 0, 900, 1100)
    tissue = np.ptp(whole.astype(int), axis=2) > 30  # colored
    assert 0.2 < tissue.mean() < 0.7 and tissue[400:500, 500:600].mean() > 0.6
    border = np.concatenate([whole[:8].reshape(-1, 3), whole[:, :8].reshape(-1, 3)])
    assert (border == border[0]).all() and border.min() > 235


@pytest.mark.parametrize("layout, codec", [("tiff", "JPEG"), ("aperio", "JPEG"), ("aperio", "JPEG 2000")])
def test_a_written_slide_shows_what_was_painted(layout: str, codec: str, painter: SlidePainter, tmp_path: Path) -> None:
    kinds = {"layout": layout, "codec": codec}
    path = write_slide(tmp_path / "s.tiff", size=(900, 1100), mpp=1.0, levels=(1, 2, 8), tile=128, seed=2, **kinds)  # type: ignore[arg-type]
    slide = open_slide(path)
    assert slide.mpp == pytest.approx((1.0, 1.0)) and slide.vendor == layout and slide.file.problems == ()
    assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2), (8, 8)] and slide.levels[0].codec == codec
    whole = painter.part(0, 0, 900, 1100).astype(float)
    for number, factor in enumerate((1, 2, 8)):
        height, width = 900 // factor, 1100 // factor
        means = whole[: height * factor, : width * factor].reshape(height, factor, width, factor, 3).mean((1, 3))
        read = slide.read(number, (0, 0, height, width))
        error, moved = (np.abs(read - other).mean() for other in (means, np.roll(means, 1, axis=1)))
        assert error < 5 and error < moved / 2


def test_wrong_numbers_are_refused(tmp_path: Path) -> None:
    for given in (
        {"size": (0, 9)},
        {"tile": 100},
        {"levels": (2, 4)},
        {"levels": (1, 4, 6)},
        {"levels": (1, 3)},
        {"mpp": 0.0},
    ):
        with pytest.raises(UserError):
            write_slide(tmp_path / "a.tiff", **given)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
