"""Pictures of cells, and the share of tokens that contain one."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
from matplotlib.figure import Figure
from PIL import Image

import densepath
from densepath.analysis import cell_share, show_cells
from densepath.core.errors import UserError
from densepath.synthetic.slide import SlidePainter, write_slide


@pytest.fixture
def cells(tmp_path: Path) -> tuple[Path, Path]:
    """Two images of 64 x 64 µm with cells in the upper left quarter, one in each square of 4 µm, and with none."""
    rows = ["slide,x_um,y_um", *(f"a,{x},{y}" for x in range(2, 32, 4) for y in range(2, 32, 4)), "b,63.9,63.9"]
    (tmp_path / "points.csv").write_text("\n".join(rows))
    for name in "ab":
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.full((128, 128, 3), 200, np.uint8)).save(tmp_path / "images" / f"{name}.png")
    options = {"source": "csv", "points": tmp_path / "points.csv", "default_mpp": 0.5, "workers": 0}
    densepath.cells(data=tmp_path / "images", out=tmp_path / "C", **options)  # type: ignore[arg-type]
    return tmp_path / "images", tmp_path / "C"


def test_the_share_of_tokens_with_a_cell_is_exact(cells: tuple[Path, Path], tmp_path: Path) -> None:
    data, folder = cells
    options = {"mpp": (0.5, 1.0), "view_size": 64, "patch_size": 8}
    made = densepath.show_cells(data=data, cells=folder, out=tmp_path / "s.png", share=True, **options)  # type: ignore[arg-type]
    with (tmp_path / "s.csv").open() as file:
        rows = {row["mpp"]: row for row in csv.DictReader(file)}
    # At 0.5 µm/px a crop is 32 µm, and a token 4 µm: one crop is full, six are empty, one has one token of 64.
    assert rows["0.5"]["crops"] == "8" and float(rows["0.5"]["one_region"]) == 7 / 8
    assert float(rows["0.5"]["mean"]) == pytest.approx((1 + 1 / 64) / 8, abs=1e-4)
    # At 1 µm/px a crop is the image, and a token 8 µm: 16 of 64, and 1 of 64.
    assert rows["1"]["crops"] == "2" and float(rows["1"]["mean"]) == pytest.approx((16 + 1) / 128, abs=1e-4)
    assert made["0.5 µm/px: crops"] == 8 and (tmp_path / "s.png").stat().st_size > 1000
    with pytest.raises(UserError, match="no crop of 512 px fits into the images"):
        densepath.show_cells(data=data, cells=folder, out=tmp_path / "t.png", share=True, view_size=512)
    with pytest.raises(UserError, match=r"cells\.csv exists, and the table of"):
        densepath.show_cells(data=data, cells=folder, out=folder / "cells.png", share=True)
    for wrong in ({"view_size": 0}, {"view_size": -16}, {"mpp": (0.5, float("nan"))}):
        with pytest.raises(UserError, match="µm per pixel are positive"):
            densepath.show_cells(data=data, cells=folder, out=tmp_path / "t.png", share=True, **wrong)  # type: ignore[arg-type]


def test_cells_are_drawn_where_they_are(cells: tuple[Path, Path], tmp_path: Path) -> None:
    data, folder = cells
    made = densepath.show_cells(data=data, cells=folder, out=tmp_path / "c.png", count=2)
    picture = np.asarray(Image.open(made["picture"]).convert("RGB")).astype(int)
    cyan = (picture[..., 0] < 80) & (picture[..., 1] > 180) & (picture[..., 2] > 200)
    columns = np.flatnonzero(cyan.any(axis=0))
    assert made["cells"] == 65 and columns.min() < 0.05 * picture.shape[1] < columns.max()
    assert cyan[: picture.shape[0] // 2, : picture.shape[1] // 4].sum() > 10 * cyan[picture.shape[0] // 2 :].sum() > 0


def test_classes_have_a_legend_of_their_colors(
    cells: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = cells
    figures: list[Figure] = []
    monkeypatch.setattr(show_cells, "save", lambda figure, path: figures.append(figure))
    (tmp_path / "points.csv").write_text("slide,x_um,y_um,class\na,9,9,stroma\na,30,30,immune\nb,9,9,tumor\n")
    options = {"source": "csv", "points": tmp_path / "points.csv", "default_mpp": 0.5, "workers": 0}
    densepath.cells(data=data, out=tmp_path / "D", **options)  # type: ignore[arg-type]
    densepath.show_cells(data=data, cells=tmp_path / "D", out=tmp_path / "c.png", count=2)
    (figure,) = figures
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["immune", "stroma", "tumor"]
    own = [tuple(handle.get_facecolor()[0]) for handle in legend.legend_handles]
    drawn = {tuple(color) for axes in figure.axes for dots in axes.collections for color in dots.get_facecolors()}
    assert len(set(own)) == 3 and drawn == set(own)
    box, figure_box = legend.get_window_extent(), figure.bbox
    assert box.x0 >= 0 and box.x1 <= figure_box.x1 and box.y0 >= 0
    assert all(axes.get_window_extent().y0 >= box.y1 for axes in figure.axes)


def test_classes_with_the_same_color_are_named_together(
    cells: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(show_cells, "save", lambda figure, path: figures.append(figure))
    rows = [f"{name},{9 + 3 * k},9,c{k:02}" for k in range(15) for name in "ab"]
    (tmp_path / "points.csv").write_text("\n".join(["slide,x_um,y_um,class", *rows]))
    options = {"source": "csv", "points": tmp_path / "points.csv", "default_mpp": 0.5, "workers": 0}
    densepath.cells(data=cells[0], out=tmp_path / "D", **options)  # type: ignore[arg-type]
    densepath.show_cells(data=cells[0], cells=tmp_path / "D", out=tmp_path / "c.png", count=2)
    (legend,) = figures[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [*(f"c{k:02}" for k in range(12)), "others (3 classes)"]
    own = [tuple(handle.get_facecolor()[0]) for handle in legend.legend_handles]
    drawn = [tuple(color) for color in figures[0].axes[0].collections[0].get_facecolors()]
    assert len(set(own)) == 13 and drawn == [*own, own[-1], own[-1]]


def test_the_table_of_shares_replaces_no_other_file(cells: tuple[Path, Path], tmp_path: Path) -> None:
    data, folder = cells
    index = (folder / "cells.csv").read_text()
    options = {"data": data, "cells": folder, "share": True, "mpp": (0.5,), "view_size": 64}
    with pytest.raises(UserError, match=r"cells\.csv exists, and the table of .* would replace it"):
        densepath.show_cells(out=folder / "cells.png", **options)  # type: ignore[arg-type]
    assert (folder / "cells.csv").read_text() == index
    for _ in range(2):  # its own table is replaced
        assert densepath.show_cells(out=tmp_path / "s.png", **options)["table"] == tmp_path / "s.csv"  # type: ignore[arg-type]


def test_a_class_has_one_color_in_all_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slide has some of the classes, which have other numbers in its file."""
    figures: list[Figure] = []
    monkeypatch.setattr(show_cells, "save", lambda figure, path: figures.append(figure))
    for name in "ab":
        write_slide(tmp_path / f"S/{name}.tif", size=(512, 512), levels=(1, 4))
    densepath.tile(data=tmp_path / "S", out=tmp_path / "T", mpp=0.5, size=128, min_tissue=0.0, workers=0)
    (tmp_path / "points.csv").write_text("slide,x,y,class\na,9,9,immune\na,99,99,stroma\nb,9,9,stroma\nb,99,99,tumor\n")
    options = {"source": "csv", "points": tmp_path / "points.csv", "workers": 0}
    densepath.cells(data=tmp_path / "T", out=tmp_path / "C", **options)  # type: ignore[arg-type]
    densepath.show_cells(data=tmp_path / "T", cells=tmp_path / "C", out=tmp_path / "c.png", count=1)
    (figure,) = figures
    immune, stroma, tumor = (tuple(handle.get_facecolor()[0]) for handle in figure.legends[0].legend_handles)
    drawn = [[tuple(color) for color in axes.collections[0].get_facecolors()] for axes in figure.axes[:2]]
    assert drawn == [[immune, stroma], [stroma, tumor]]


def test_cells_are_drawn_at_their_place_on_pixels_that_are_not_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = SlidePainter((640, 768), mpp=1.0, seed=3).part(0, 0, 640, 768).repeat(2, axis=1)  # 1 x 0.5 µm
    stored = {"tile": (64, 64), "compression": "zlib", "resolution": (2e4, 1e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tiff", pixels, photometric="rgb", metadata=None, **stored)
    densepath.tile(data=tmp_path / "a.tiff", out=tmp_path / "T", mpp=1.0, size=64, workers=0)
    (tmp_path / "points.csv").write_text("slide,x_um,y_um\na,384,320\n")  # the middle
    densepath.cells(data=tmp_path / "T", out=tmp_path / "C", source="csv", points=tmp_path / "points.csv", workers=0)
    shown, places = [], []
    monkeypatch.setattr(show_cells, "show", lambda panel, image: shown.append(image.shape[1::-1]))
    monkeypatch.setattr(show_cells, "_dots", lambda panel, points, *rest: places.append(points))
    densepath.show_cells(data=tmp_path / "T", cells=tmp_path / "C", out=tmp_path / "c.png", count=1)
    assert (places[0][0] / shown[0]).tolist() == pytest.approx([0.5, 0.5], abs=0.02)


def test_no_bar_of_a_resolution_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(cell_share, "save", lambda figure, path: figures.append(figure))
    table = [cell_share.Shares(0.5, np.linspace(0, 1, 100)), cell_share.Shares(1.0, np.full(10, 0.52))]
    cell_share.draw_shares(table, tmp_path / "s.png")
    assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 1 for axes in figures[0].axes)
