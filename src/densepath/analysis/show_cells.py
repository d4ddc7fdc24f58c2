"""``densepath show cells``: cells drawn on slides, tiles and images, and the share of tokens that contain one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from PIL import Image

from densepath.analysis.cell_share import SHARE_COLUMNS, ShareTable, cellular_shares, draw_shares, write_shares
from densepath.analysis.panels import (
    FAINT,
    INK,
    OBJECTS,
    PanelGrid,
    add_panel_legend,
    picture_file,
    save,
    show,
)
from densepath.annotations.cells.cell_points import CellPoints, TilesOfSlides
from densepath.core.errors import UserError, counted, one_line
from densepath.core.file_beside import file_beside
from densepath.core.paths import AnyPath, as_path
from densepath.core.random import check_seed
from densepath.core.single_values import take_single_values
from densepath.core.streams import say
from densepath.sources.open import find_source
from densepath.sources.tiles.overview import read_overview
from densepath.sources.tiles.tiled_slide import open_tiled

_SLIDES, _COLUMNS = 3, 3
_ON_OVERVIEW = 20000  # cells; of more, every n-th is drawn
_DARK = "#0047ff"  # on an overview, where cells have one class
_CLASSES = (*OBJECTS, "#0047ff", "#ff1f3d", "#00703c", "#7a4100", "#8b00c9", FAINT)  # the last one for all others
_OTHERS = len(_CLASSES) - 1
_LEAST = 720  # pixels of an overview's longer side
_MPP = (0.25, 0.5, 1.0, 2.0)


@take_single_values
def show_cells(
    *,
    data: AnyPath,
    cells: AnyPath,
    out: str | Path,
    count: int = 6,
    seed: int = 0,
    share: bool = False,
    mpp: Sequence[float] = _MPP,
    view_size: int = 224,
    patch_size: int = 16,
    exclude: Sequence[str] = (),
) -> dict[str, Any]:
    """Draw cells on slides and tiles, or on images; or the share of tokens that contain a cell.

    With ``share``: crops of ``view_size`` pixels cover the tissue, at each of several µm per pixel. The cellular share
    of a crop is that of its tokens (patches) that contain at least one cell, the prior of DiRL. Where it is near 0 or 1
    there is only one region, and nothing to contrast. The table is printed and written next to the picture (.csv).

    Args:
        data: a folder that densepath tile wrote, or images: a folder, a text list of files, or a glob.
        cells: the folder that densepath cells wrote.
        out: a PNG file.
        count: number of tiles or images.
        seed: seed of their choice.
        share: draw the distribution of the cellular share instead.
        mpp: µm per pixel of the crops.
        view_size: side of a crop in pixels.
        patch_size: side of a token in pixels.
        exclude: patterns of slides or image files to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a
            name.

    Returns:
        The number of cells, or medians for each resolution; the picture as "picture".

    Raises:
        UserError: there are no such images or cells, or a file name that does not end in .png.
    """
    data, cells = as_path(data), as_path(cells)
    out = picture_file(out, data)
    beside = file_beside(out, ".csv", SHARE_COLUMNS) if share else None
    check_seed(seed)
    if count < 1:
        raise UserError(f"count is {count}; give 1 or more")
    images = find_source(data, exclude=exclude)
    points = CellPoints(images, cells)
    say(f"densepath: {points.describe()}")
    if beside is not None:
        table = cellular_shares(images, points, cells, mpp, view_size, patch_size)
        write_shares(table, beside)
        return {**_numbers(table), "picture": draw_shares(table, out), "table": beside}
    panels = len(images) if len(images) < count else count
    chosen = sorted(np.random.default_rng(seed).permutation(len(images))[:panels].tolist())
    tilings = images.tilings[:_SLIDES] if isinstance(images, TilesOfSlides) else []
    total = len(tilings) + len(chosen)
    grid = PanelGrid(-(-total // _COLUMNS), min(total, _COLUMNS), panel=3.0)
    axes = iter([axes for row in grid.axes for axes in row])
    for tiling in tilings:
        found, classes = points.of_slide(tiling.path)
        overview = read_overview(open_tiled(tiling))
        step = -(-max(len(found), 1) // _ON_OVERVIEW)
        height, width = overview.pixels.shape[:2]
        larger = max(1, _LEAST // max(height, width))
        shown = Image.fromarray(overview.pixels).resize((width * larger, height * larger), Image.Resampling.BICUBIC)
        places = found[::step] * np.divide(tiling.spacing[::-1], overview.spacing[::-1]) * larger
        panel = next(axes)
        show(panel, np.asarray(shown))
        size = float(np.clip(1500 / max(len(found), 1), 0.6, 9.0))
        _dots(panel, places, classes[::step], size, (_DARK,) if len(points.class_names) == 1 else _CLASSES)
        _label(panel, f"{one_line(tiling.name)}: {counted(len(found), 'cell')}")
    for position in chosen:
        pixels = images.spec.to_rgb(images.read(position))
        own = points.of(position)
        panel = next(axes)
        show(panel, pixels)
        _dots(panel, (own[:, :2] + 1) / 2 * pixels.shape[1::-1], own[:, 2], 9.0, _CLASSES)
        _label(panel, counted(len(own), "cell"))
    if len(points.class_names) > 1:
        names, others = points.class_names[:_OTHERS], len(points.class_names) - _OTHERS
        labels = [one_line(name) for name in names]
        labels += [f"others ({counted(others, 'class', 'classes')})"] if others > 0 else []
        colors = _CLASSES[: len(labels)]
        handles = [panel.scatter([], [], s=20, color=color, edgecolors="black", linewidths=0.5) for color in colors]
        add_panel_legend(grid.figure, handles, labels)
    return {"cells": points.count, "picture": save(grid.figure, out)}


def _dots(
    axes: Axes, places: npt.NDArray[np.floating], classes: npt.NDArray[np.generic], size: float, colors: Sequence[str]
) -> None:
    shown = [colors[min(int(number), len(colors) - 1)] for number in classes]
    axes.scatter(places[:, 0], places[:, 1], s=size, c=shown or None, edgecolors="black", linewidths=size / 30)


def _label(axes: Axes, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    axes.text(0.02, 0.98, text, transform=axes.transAxes, va="top", fontsize=7.5, color=INK, bbox=box)


def _numbers(table: ShareTable) -> dict[str, float]:
    """The medians and the shares of crops with one region, for the command line."""
    numbers: dict[str, float] = {}
    for each in table:
        numbers[f"{each.mpp:g} µm/px: crops"] = len(each.shares)
        numbers[f"{each.mpp:g} µm/px: median cellular share"] = each.quantile(0.5)
        numbers[f"{each.mpp:g} µm/px: crops with one region"] = each.one_region
    return numbers
