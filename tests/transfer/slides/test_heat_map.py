"""Heat maps: the values of rectangles at their places in µm, in files that other programs read."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import openslide
import pytest
import tifffile
from disks import fail_in_part, paint, write_levels
from PIL import Image

from densepath.core.errors import UserError
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.slide import Slide
from densepath.sources.tiles import overview as overview_module
from densepath.sources.tiles.overview import read_overview
from densepath.transfer.mil.tile_sheet import draw_extremes
from densepath.transfer.slides import overview
from densepath.transfer.slides.heat_map import GrowingMap, heat_map, write_density, write_heat_map
from densepath.transfer.slides.principal import principal_colors

BOXES = np.array([[10.0, 20.0, 40.0, 40.0], [10.0, 60.0, 40.0, 40.0], [120.0, 30.0, 40.0, 40.0]])
VALUES = np.array([0.0, 5.0, 10.0])


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    pixels = paint((801, 622), 0.23, [], (0, 0, 184, 143))
    return open_slide(write_levels(tmp_path_factory.mktemp("slide") / "a.tiff", pixels, 0.23))


def at(slide: Slide, level: int, y: float, x: float) -> list[int]:
    """The color of a place in µm."""
    down = slide.levels[level].downsample
    place = [int(um / mpp / step) for um, mpp, step in zip((y, x), slide.mpp, down, strict=True)]
    return slide.read(level, (*place, 1, 1))[0, 0].tolist()


def test_equal_maps_are_equal_files(slide: Slide, tmp_path: Path) -> None:
    """They do not say when and on which machine they were made."""
    first, second = (
        [path.read_bytes() for path in write_heat_map(tmp_path / name, slide, BOXES, VALUES, label="attention")]
        for name in "ab"
    )
    assert first == second
    other = write_heat_map(tmp_path / "c", slide, BOXES[::-1], VALUES, label="attention")[0].read_bytes()
    assert _uuid(other) != _uuid(first[0])


def _uuid(data: bytes) -> bytes:
    return data.split(b"UUID=")[1][:48]


def test_values_lie_at_their_rectangles(slide: Slide, tmp_path: Path) -> None:
    tiff, png = write_heat_map(tmp_path / "deep" / "map", slide, BOXES, VALUES, label="attention")
    found = open_slide(tiff)
    assert found.vendor == "ome-tiff" and len(found.levels) > 1
    extents = [np.multiply(each.size, each.mpp) for each in (slide, found)]
    assert np.all(extents[1] >= extents[0]) and np.all(extents[1] - extents[0] <= found.mpp)
    colors = np.rint(matplotlib.colormaps["viridis"]([0.0, 0.5, 1.0])[:, :3] * 255).astype(int).tolist()
    for level in range(len(found.levels)):
        margin = 3 * found.mpp[0] * found.levels[level].downsample[0]
        for (top, left, height, width), color in zip(BOXES, colors, strict=True):
            for y in (top + margin, top + height - margin):
                for x in (left + margin, left + width - margin):
                    assert at(found, level, y, x) == color
        assert at(found, level, 90, 60) == [255, 255, 255]
    with tifffile.TiffFile(tiff) as file:
        assert 'PhysicalSizeXUnit="µm"' in file.ome_metadata
        assert "attention: viridis from 0 to 10" in file.ome_metadata
        reduced = file.series[0].levels[1].pages[0].get_resolution("micrometer")
        np.testing.assert_allclose(np.multiply(reduced, found.mpp[::-1]), 0.5, rtol=1e-6)
    with openslide.OpenSlide(tiff) as other:
        assert [float(other.properties[f"openslide.mpp-{axis}"]) for axis in "yx"] == pytest.approx(found.mpp, rel=1e-6)
    with Image.open(png) as picture:
        scale = 801 / (picture.height - 48)  # pixels of the slide; below the slide is a scale bar
        place = (int(140 / 0.23 / scale), int(50 / 0.23 / scale))
        pixel = picture.getpixel(place[::-1])
        tissue = slide.read(0, (608, 217, 1, 1))[0, 0]
        assert np.abs(np.array(pixel) - (tissue + np.array(colors[2])) / 2).max() <= 3


def test_rectangles_that_overlap_are_averaged_and_borders_cut(slide: Slide) -> None:
    boxes = [[0, 0, 40, 40], [0, 20, 40, 40], [170, 130, 40, 40], [100, 0, 40, 40]]
    found = heat_map(slide, boxes, [2.0, 4.0, 7.0, np.nan])
    values, mpp = found.values[..., 0], found.spacing[0]
    assert values[5, int(10 / mpp)] == 2 and values[5, int(30 / mpp)] == 3 and values[5, int(50 / mpp)] == 4
    assert values[-1, -1] == 7 and np.isnan(values[int(120 / mpp), 3])
    assert np.nanmax(values) == 7 and not np.isinf(values).any()
    assert max(heat_map(slide, [[0, 0, 0.1, 0.1]], [1.0]).values.shape) <= 2048
    with pytest.raises(UserError, match="3 rectangles"):
        heat_map(slide, BOXES, [1.0, 2.0])


def test_a_map_grows_in_parts(slide: Slide) -> None:
    parts = GrowingMap(slide, 40.0)
    for part in (slice(0, 2), slice(2, 3)):
        parts.add(BOXES[part], VALUES[part, None].astype(np.float32))
    np.testing.assert_array_equal(parts.done().values, heat_map(slide, BOXES, VALUES).values)


def test_colors_and_maps_without_values(slide: Slide, tmp_path: Path) -> None:
    tiff, _ = write_heat_map(tmp_path / "colors", slide, BOXES, np.eye(3))
    assert [at(open_slide(tiff), 0, top + 20, left + 20) for top, left, *_ in BOXES] == (255 * np.eye(3)).tolist()
    tiff, png = write_heat_map(tmp_path / "empty", slide, np.zeros((0, 4)), [])
    assert (open_slide(tiff).read(0, (0, 0, 5, 5)) == 255).all() and png.exists()


def test_densities_are_counts_by_area(tmp_path: Path) -> None:
    """A slide of two by three squares of 250 µm; the last two have no tissue, and one of them has a point."""
    slide = open_slide(write_levels(tmp_path / "b.tiff", paint((125, 188), 4.0, [], (0, 0, 500, 500)), 4.0))
    points = [(10, 20), (240, 249), (30, 260), (400, 700), (499, 751)]
    tiff, _ = write_density(tmp_path / "density", slide, points, lambda boxes: (boxes[:, 1] < 400).astype(float))
    found, colors = open_slide(tiff), (matplotlib.colormaps["viridis"](np.linspace(0, 1, 3))[:, :3] * 255).round()
    shown = [[at(found, 0, y, x) for x in (125, 375, 625)] for y in (125, 375)]
    expected = [[colors[2], colors[1], [255] * 3], [colors[0], colors[0], colors[2]]]
    assert shown == [[list(map(int, color)) for color in row] for row in expected]
    with tifffile.TiffFile(tiff) as file:
        assert "from 0 to 31.9" in file.ome_metadata  # two in 250 x 250.7 µm


def test_principal_colors_follow_the_features() -> None:
    rng = np.random.default_rng(0)
    place = rng.uniform(-1, 1, (500, 3)) * (9, 4, 1)
    axes = np.linalg.qr(rng.normal(size=(16, 3)))[0]
    colors = principal_colors((place @ axes.T + rng.normal(size=16)).astype(np.float16))
    assert colors.shape == (500, 3) and colors.min() == 0 and colors.max() == 1
    inner = (colors > 0) & (colors < 1)
    for axis in range(3):
        both = np.corrcoef(place[inner[:, axis], axis], colors[inner[:, axis], axis])
        assert abs(both[0, 1]) > 0.98
    assert (principal_colors(np.zeros((1, 4))) == 0.5).all()
    assert np.isfinite(principal_colors(np.full((9, 2), np.nan))).all()


def test_no_label_is_cut(slide: Slide, tmp_path: Path) -> None:
    """On narrow slides, and on a sheet of one tile in a row."""
    label = "attention for a class with a long name (mean 1)"
    narrow = np.asarray(overview.framed(Image.new("RGB", (30, 90), "white"), (1.0, 1.0), label))
    sheet = np.asarray(Image.open(draw_extremes(tmp_path / "s.png", slide, BOXES[:2], np.array([0.5, 1.5]), label)))
    for picture, most in ((narrow[90:], 600), (sheet[:24], 600)):
        ink = np.flatnonzero((picture < 128).any((0, 2)))
        assert 320 < ink.max() < picture.shape[1] - 5 < most


def test_lengths_of_scale_bars() -> None:
    assert [overview.nice_length(most) for most in (1, 9.9, 10, 49.9, 2000, 0.3)] == [1, 5, 10, 20, 2000, 0.2]


def test_numbers_beside_a_scale_are_short_and_never_in_powers() -> None:
    given = [0.0, 1.254, 980.0, 999.6, 3920.4, -123456.0]
    assert overview.shown_apart(given) == ["0", "1.25", "980", "1,000", "3,920", "-123,000"]
    narrow = np.linspace(0.9922, 1.0078, 5).tolist()  # with three digits the third and fourth are 1
    assert overview.shown_apart(narrow) == ["0.9922", "0.9961", "1", "1.004", "1.008"]
    assert overview.shown_apart([2.0, 2.0]) == ["2", "2"]


def test_a_picture_is_white_where_a_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not a result: what was made of the slide does not depend on it, as tissue does."""
    path = write_levels(tmp_path / "a.tiff", paint((128, 192), 0.5, [], (0, 0, 64, 96)), 0.5)
    slide = open_slide(path)
    fail_in_part(monkeypatch, path, 4)
    with pytest.raises(CorruptImage, match="Input/output error"):
        read_overview(slide, 0.5)
    pixels = overview.slide_picture(slide).pixels
    assert (pixels[64:, 64:128] == 255).all() and (pixels[:64] != 255).any(-1).all() and (pixels[64:, :64] != 255).all()
    monkeypatch.setattr(overview_module, "_FAILURES", 3)
    with pytest.raises(CorruptImage, match="Input/output error"):
        overview.slide_picture(slide)
