"""Tissue on overviews: painted ones, whose tissue is known exactly, with everything that users' slides have on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFilter

from densepath.core.polygons import fill
from densepath.sources.slides.open import open_slide
from densepath.sources.tiles import overview as overview_module
from densepath.sources.tiles.overview import Overview, read_overview
from densepath.sources.tiles.tissue import Tissue, find_tissue, tissue_mask
from densepath.synthetic.slide import SlidePainter, write_slide

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
_MPP = 8.0
_SIZE = (240, 320)
_INKS = {"green": (30, 120, 60), "blue": (40, 60, 160), "red": (200, 30, 40), "black": (25, 25, 28)}


def _means(pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    height, width = pixels.shape[:2]
    return pixels.reshape(height // 4, 4, width // 4, 4, -1).mean((1, 3))


@pytest.fixture(scope="module")
def painted() -> tuple[Pixels, Mask]:
    """A section at 8 µm per pixel, and its tissue."""
    painter = SlidePainter((_SIZE[0] * 4, _SIZE[1] * 4), mpp=2.0, seed=3)
    pixels = painter.part(0, 0, *painter.size)
    coarse = Image.fromarray(painter.tissue)  # squares of 32 px, from one before the slide
    place = (1.0, 1.0, 1 + painter.size[1] / 32, 1 + painter.size[0] / 32)
    share = np.asarray(coarse.resize(_SIZE[::-1], Image.Resampling.BILINEAR, place))
    return _means(pixels).round().astype(np.uint8), share > 0.25


def _iou(found: Mask, truth: Mask) -> float:
    return float((found & truth).sum() / (found | truth).sum())


def _marked(pixels: Pixels, ink: tuple[int, int, int], line: list[tuple[int, int]]) -> tuple[Pixels, Mask]:
    """A pen's stroke of 0.3 mm, out of focus, and where it is."""
    image, where = Image.fromarray(pixels), Image.new("L", pixels.shape[1::-1])
    ImageDraw.Draw(where).line(line, fill=255, width=38)
    soft = where.filter(ImageFilter.GaussianBlur(1.5))
    image.paste(Image.new("RGB", image.size, ink), mask=soft)
    return np.array(image), np.asarray(soft) > 8


def test_the_tissue_of_a_section_is_found(painted: tuple[Pixels, Mask]) -> None:
    pixels, truth = painted
    assert _iou(tissue_mask(pixels, _MPP), truth) > 0.95
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3)))
    assert _iou(tissue_mask(blurred, _MPP), truth) > 0.93
    noise = np.random.default_rng(0).normal(0, 1, pixels.shape)
    pale = (245 - (245 - pixels.astype(float)) * 0.3 + noise).round().clip(0, 255).astype(np.uint8)
    assert _iou(tissue_mask(pale, _MPP), truth) > 0.88


@pytest.mark.parametrize("ink", _INKS)
def test_marks_of_a_pen_are_not_tissue(ink: str, painted: tuple[Pixels, Mask]) -> None:
    pixels, truth = painted
    beside, stroke = _marked(pixels, _INKS[ink], [(12, 10), (300, 10)])
    found = tissue_mask(beside, _MPP)
    assert _iou(found, truth & ~stroke) > 0.93 and not found[:24].any()
    across, stroke = _marked(pixels, _INKS[ink], [(60, 60), (250, 190)])
    found = tissue_mask(across, _MPP)
    assert not (found & stroke).any() and _iou(found, truth & ~stroke) > 0.87
    kept = tissue_mask(across, _MPP, pen="keep")
    assert (kept & stroke & truth).sum() >= (0.95 if ink != "black" else 0) * (stroke & truth).sum()


@pytest.mark.parametrize("color", [(0.5, 0.75, 1.0), (1.0, 0.6, 0.3), (0.1, 1.0, 0.95), (1.0, 0.6, 0.7)])
def test_other_stains_are_tissue(color: tuple[float, ...], painted: tuple[Pixels, Mask]) -> None:
    """DAB, aniline blue of a trichrome stain, blood, light green: of some of them, ink has the same color."""
    pixels, truth = painted
    density = np.log(246 / (pixels[..., 1].astype(float) + 1))[..., None].clip(0)
    stained = (246 * np.exp(-density * 1.5 * np.array(color))).round().clip(0, 255).astype(np.uint8)
    assert _iou(tissue_mask(stained, _MPP), truth) > 0.93


def test_borders_padding_shadows_and_dust_are_not_tissue(painted: tuple[Pixels, Mask]) -> None:
    pixels, truth = painted
    rng = np.random.default_rng(0)
    framed = pixels.copy()
    framed[:10], framed[-12:], framed[:, :8] = 0, (8, 6, 9), rng.integers(0, 9, (len(pixels), 8, 3))
    framed[:, -10:] = 255
    y, x = np.mgrid[: _SIZE[0], : _SIZE[1]]
    light = 1 - 0.12 * x / _SIZE[1]
    for _ in range(12):
        top, left = rng.integers(15, _SIZE[0] - 15), rng.integers(15, _SIZE[1] - 15)
        light *= 1 - 0.5 * np.exp(-((y - top) ** 2 + (x - left) ** 2) / (2 * rng.uniform(1, 6) ** 2))
    found = tissue_mask((framed * light[..., None]).round().astype(np.uint8), _MPP)
    assert _iou(found, truth) > 0.9
    assert not found[:10].any() and not found[-12:].any() and not found[:, :8].any() and not found[:, -10:].any()


def test_slides_without_tissue_have_none() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:200, :300]
    glass = rng.normal((244, 242, 245), 1.5, (200, 300, 3))
    shade = glass * (1 - 0.2 * x / 300)[..., None]
    dust = shade * (1 - 0.6 * np.exp(-((y - 90) ** 2 + (x - 140) ** 2) / 90))[..., None]
    empty = [glass, shade, dust, glass * 0, glass * 0 + 255, glass * 0 + 128, rng.uniform(0, 12, glass.shape)]
    empty += [_marked(glass.clip(0, 255).astype(np.uint8), ink, [(20, 30), (280, 150)])[0] for ink in _INKS.values()]
    for pixels in empty:
        assert not tissue_mask(pixels.round().clip(0, 255).astype(np.uint8), _MPP).any()


def test_holes_are_kept_or_filled_and_small_ones_are_always_filled(painted: tuple[Pixels, Mask]) -> None:
    pixels = np.full((120, 160, 3), (244, 242, 245), np.uint8)
    pixels[10:110, 10:150] = painted[0][120, 160]
    pixels[30:60, 30:70] = pixels[80:90, 100:110] = (244, 242, 245)  # 0.077 and 0.006 mm²
    kept, filled = (tissue_mask(pixels, _MPP, holes=holes) for holes in ("keep", "fill"))
    assert not kept[36:54, 36:64].any() and kept[80:90, 100:110].all() and filled[12:108, 12:148].all()


def _tissue(mask: Mask, spacing: tuple[float, float] = (8.0, 7.5), origin: tuple[float, float] = (-1.0, 2.0)) -> Tissue:
    pixels = np.zeros((*mask.shape, 3), np.uint8)
    return Tissue(mask, spacing, origin, Overview(pixels, spacing, origin))


def test_the_share_of_a_rectangle_is_exact() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((9, 11)) < 0.5
    tissue = _tissue(mask)
    fine = np.pad(mask.repeat(80, axis=0).repeat(75, axis=1), 200)  # 0.1 µm
    boxes = np.round(np.concatenate([rng.uniform(-15, 50, (40, 2)), rng.uniform(0.5, 45, (40, 2))], axis=1), 1)
    expected = []
    for top, left, height, width in boxes:
        y, x = round((top + 1) * 10) + 200, round((left - 2) * 10) + 200
        expected.append(fine[max(y, 0) : y + round(height * 10), max(x, 0) : x + round(width * 10)].sum() / 100)
    assert np.allclose(tissue.share(boxes) * boxes[:, 2] * boxes[:, 3], expected, atol=1e-6)
    assert tissue.mm2 == pytest.approx(mask.sum() * 60e-6)


def test_outlines_hold_exactly_the_tissue(painted: tuple[Pixels, Mask]) -> None:
    mask = tissue_mask(painted[0], _MPP)
    again = np.zeros_like(mask)
    for rings in _tissue(mask).outlines():
        top, left, part = fill([(ring - (2.0, -1.0)) / (7.5, 8.0) for ring in rings], *mask.shape)
        again[top : top + len(part), left : left + part.shape[1]] |= part
    assert (again == mask).all()


def test_an_overview_is_the_mean_of_the_slide_in_parts_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, many = (
        open_slide(write_slide(tmp_path / name, size=(600, 700), mpp=1.0, levels=levels))
        for name, levels in (("one.tiff", (1,)), ("many.tiff", (1, 4)))
    )
    whole = read_overview(one)
    assert whole.spacing == (8.0, 8.0) and whole.pixels.shape == (75, 87, 3)
    full = one.read(0, (0, 0, 600, 696)).reshape(75, 8, 87, 8, 3).mean((1, 3))
    assert np.abs(whole.pixels - full).mean() < 2.5
    monkeypatch.setattr(overview_module, "_PART", 64)
    assert (read_overview(one).pixels == whole.pixels).all()
    with monkeypatch.context() as patched:  # of a huge slide
        patched.setattr(overview_module, "_MOST", 75 * 87)
        assert read_overview(one).spacing == (16.0, 16.0)
        assert read_overview(one.with_mpp(100.0)).pixels.shape == whole.pixels.shape  # bounded, too
    assert np.abs(read_overview(many, 8.0).pixels.astype(int) - whole.pixels[:75, :87]).mean() < 2.5
    assert _iou(find_tissue(one).mask, find_tissue(many).mask) > 0.97
