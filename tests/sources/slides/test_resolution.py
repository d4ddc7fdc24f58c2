"""µm per pixel: of files, and as the user gives them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from densepath.core.errors import UserError
from densepath.sources.slides.levels import disagree, downsamples
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.resolution import MppTable, from_aperio, from_ome, read_mpp_table


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Aperio Image Library v11\n10x10|AppMag = 20|MPP = 0.4990|User = a", 0.499),
        ("Aperio\n10x10|MPP=0,2527", 0.2527),
        ("Aperio\n10x10|MPP = 4.99e-1", 0.499),
        ("Aperio\n10x10|MPP = -0.25", None),
        ("Aperio\n10x10|AppMag = 40", None),  # a nominal magnification is not a measurement
        ("Aperio\n10x10|MPP = 0", None),
        ("Aperio\n10x10|MPP = 1.2.3", None),
    ],
)
def test_aperio(text: str, expected: float | None) -> None:
    assert from_aperio(text) == (None if expected is None else (expected, expected))


def test_ome_without_sizes_or_with_foreign_units_has_no_resolution() -> None:
    def ome(attributes: str) -> str:
        return f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Pixels {attributes}/></OME>'

    assert from_ome(ome('PhysicalSizeX="0.5" PhysicalSizeY="0.25"')) == (0.25, 0.5)
    millimeters = ome('PhysicalSizeX="0.0005" PhysicalSizeXUnit="mm" PhysicalSizeY="0.5"')
    assert from_ome(millimeters) == pytest.approx((0.5, 0.5))
    pixels = ome('PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeXUnit="pixel"')
    for text in ("", "<OME", ome(""), pixels, ome('PhysicalSizeX="a" PhysicalSizeY="1"')):
        assert from_ome(text) is None


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"resolution": (20000, 40000), "resolutionunit": "centimeter"}, (0.25, 0.5)),
        ({"resolution": (101600, 101600), "resolutionunit": "inch"}, (0.25, 0.25)),
        ({"resolution": (72, 72), "resolutionunit": "inch"}, None),
        ({"resolution": (96, 96), "resolutionunit": "none"}, None),
        ({"resolution": (0, 0), "resolutionunit": "centimeter"}, None),
    ],
)
def test_resolution_tags_of_a_microscope_are_taken_and_those_of_a_screen_are_not(
    given: dict[str, Any], expected: tuple[float, float] | None, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tiff", np.zeros((40, 40, 3), np.uint8), tile=(16, 16), photometric="rgb", **given)
    spacing = open_slide(tmp_path / "a.tiff").spacing
    assert spacing == (None if expected is None else pytest.approx(expected))


def test_a_table_overrides_slides_and_a_default_does_not(slides: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("WSI, mpp\nycbcr.tiff,0.2300\nj2k,0.26\nsub/x.svs,1\nelsewhere/rgb.svs,2\n")
    table = MppTable(tmp_path / "t.csv", default=0.5)
    assert table.given(slides["YCbCr"]) == 0.23 and table.given(slides["JPEG 2000"]) == 0.26
    assert table.given(slides["RGB without a marker"]) is None and table.given("a/sub/x.svs") == 1
    assert table.unknown([*slides.values(), "a/sub/x.svs"]).endswith("not in the data: elsewhere/rgb.svs; correct it")
    assert table.unknown([*slides.values(), "sub/x.svs", "elsewhere/rgb.svs"]) == ""
    assert open_slide(slides["JPEG 2000"], 0.26).mpp == (0.26, 0.26)


@pytest.mark.parametrize(
    "text",
    [
        "wsi;mpp\r\na;0,5\r\nb;0,25\r\n",
        "wsi\tmpp\na\t0.5\nb\t0.25\n",
        'wsi, mpp\n"a", "0.5"\n"b", "0.25"\n',
        "sep=;\n\nwsi;mpp\na;0.5\nb;0.25\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_as_spreadsheets_write_them(text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text, encoding=encoding, newline="")
    assert read_mpp_table(tmp_path / "t.csv") == {"a": 0.5, "b": 0.25}


def test_names_in_a_table_may_have_folders_and_need_not_be_of_one_slide(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("wsi,mpp\na/x,0.25\ny,0.5\n")
    table = MppTable(tmp_path / "t.csv")
    slides = ["S/a/x.svs", "S/b/x.svs", "S/a/y.svs", "S/b/y.svs"]
    assert [table.given(slide) for slide in slides] == [0.25, None, 0.5, 0.5]
    assert table.unknown(slides[:3]) == ""
    (tmp_path / "t.csv").write_text("wsi,mpp\nx,0.75\na/x,0.25\n")  # the longest path counts
    assert [MppTable(tmp_path / "t.csv").given(slide) for slide in slides[:2]] == [0.25, 0.75]
    (tmp_path / "t.csv").write_text("wsi,mpp\ny,0.25\ny.svs,0.5\n")
    with pytest.raises(UserError, match=r"t\.csv gives S/a/y\.svs two values, as y\.svs and as y; keep one"):
        MppTable(tmp_path / "t.csv").given(slides[2])
    assert "names of several slides, which all get its value: y (2 slides)" in table.unknown(slides)
    (tmp_path / "t.csv").write_text("wsi;mpp\nx;0,75\nS\\a\\x.svs;0,25\nb\\y;0,5\n")  # as Windows writes them
    table = MppTable(tmp_path / "t.csv")
    assert [table.given(slide) for slide in slides] == [0.25, 0.75, None, 0.5]
    assert "not in the data" not in table.unknown(slides)


def test_a_backslash_in_a_name_does_not_separate_folders_where_both_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("wsi,mpp\na/b.svs,0.25\na\\b.svs,0.5\n")
    table = MppTable(tmp_path / "t.csv")
    slides = ["/d/a/b.svs", "/d/a\\b.svs"]
    assert [table.given(slide) for slide in slides] == [0.25, 0.5]
    assert table.unknown(slides) == ""


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no rows with columns wsi and mpp"),
        ("name,size\na,1\n", "no rows with columns wsi and mpp"),
        ("wsi,mpp\na,x\n", "line 2 of .*'x' is not µm per pixel"),
        ("wsi,mpp\na,1_0\n", "line 2 of .*'1_0' is not µm per pixel"),
        ("wsi,mpp\na,\u0660.\u0665\n", "line 2 of .* is not µm per pixel"),
        ("wsi,mpp\na\n", "line 2 of .*'' is not µm per pixel"),
        ("wsi,mpp\na,0\n", "line 2 .*'0' is not"),
        ("wsi,mpp\na,nan\n", "line 2 .*'nan' is not"),
        ("wsi,mpp\na,0.5\na,0.25\n", "line 3 .* gives a a second value"),
        ("wsi,mpp,MPP\na,0.5,0.25\n", "two columns: mpp; rename one"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_wrong_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=message):
        MppTable(tmp_path / "t.csv")


def test_a_wrong_default_is_refused() -> None:
    for value in (0.0, -1.0, float("nan"), 1e4):
        with pytest.raises(UserError, match="default_mpp"):
            MppTable(default=value)
    with pytest.raises(UserError, match=r"no\.csv cannot be read"):
        MppTable("no.csv")


def test_whole_factors_explain_the_sizes_of_levels() -> None:
    """OpenSlide's mean of both ratios would be 4.000666 for the second."""
    assert downsamples([(2000, 3001), (500, 750), (125, 187), (667, 1000)]) == [(1, 1), (4, 4), (16, 16), (3, 3)]
    assert downsamples([(1000, 1000), (700, 700)])[1] == pytest.approx((10 / 7, 10 / 7))
    assert downsamples([(1000, 1000), (700, 710)])[1] == pytest.approx((10 / 7, 100 / 71))


@pytest.mark.parametrize("rounded", [math.floor, round, math.ceil])
@pytest.mark.parametrize("size", [(99004, 131372), (60000, 45123), (36832, 38474)])
def test_coarse_levels_are_reduced_by_powers_of_two(size: tuple[int, int], rounded: Callable[[float], int]) -> None:
    factors = [2**k for k in range(11)]
    sizes = [(rounded(size[0] / factor), rounded(size[1] / factor)) for factor in factors]
    assert downsamples(sizes) == [(factor, factor) for factor in factors]


def test_levels_that_show_another_area_disagree() -> None:
    assert not any(disagree((2000, 3001), size) for size in [(2000, 3001), (500, 750), (1, 2), (501, 751), (31, 46)])
    assert all(disagree((2000, 3001), size) for size in [(500, 600), (500, 500), (768, 1000)])
