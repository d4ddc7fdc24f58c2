"""How much of a crop is cells: the share of its tokens that contain one, at several µm per pixel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densepath.analysis.curves import style_curve
from densepath.analysis.panels import FAINT, INK, LINES, new_figure, save
from densepath.annotations.cells.areas import inside_any
from densepath.annotations.cells.cell_files import cell_path, read_cell_rows, read_cells
from densepath.annotations.cells.cell_points import CellPoints, TilesOfSlides
from densepath.core.csv_files import table_writer
from densepath.core.errors import UserError, counted
from densepath.sources.pixel_source import PixelSource
from densepath.sources.slides.resolution import spacing_of_text

SHARE_COLUMNS = ("mpp", "crops", "mean", "p10", "median", "p90", "one_region")  # those of the histogram are next
_TISSUE = 0.5  # least share of a crop that tiles cover
_BINS = 20


@dataclass(frozen=True, eq=False)
class Shares:
    """The cellular shares of crops.

    Args:
        mpp: µm per pixel of the crops.
        shares: (N,) of each crop, from 0 to 1.
    """

    mpp: float
    shares: npt.NDArray[np.float64]

    def quantile(self, q: float) -> float:
        """A quantile of the shares; NaN without crops."""
        return float(np.quantile(self.shares, q)) if len(self.shares) else float("nan")

    @property
    def one_region(self) -> float:
        """The share of crops whose tokens all contain cells, or none."""
        return float(np.isin(self.shares, (0, 1)).mean()) if len(self.shares) else float("nan")

    def histogram(self) -> npt.NDArray[np.float64]:
        """The share of crops in each of 20 bins from 0 to 1."""
        counts = np.histogram(self.shares, _BINS, (0, 1))[0]
        return counts / max(len(self.shares), 1)


ShareTable = list[Shares]


@dataclass(frozen=True, eq=False)
class _Area:
    """The cells (N, 2) of a slide or image in µm, its height and width in µm, and its tiles or None."""

    points: npt.NDArray[np.float64]
    side: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.float64] | None


def cellular_shares(
    images: PixelSource, points: CellPoints, folder: str | Path, mpp: Sequence[float], view_size: int, patch_size: int
) -> ShareTable:
    """The cellular shares of the crops that cover all slides or images, without overlap.

    Args:
        images: tiles of slides: crops count that tiles cover by half or more; or images.
        points: their cells.
        folder: of the cells.
        mpp: µm per pixel of crops.
        view_size, patch_size: sides of a crop and of a token in pixels.

    Raises:
        UserError: no crop fits into an image at any resolution, or the images' µm per pixel are unknown.
    """
    whole = patch_size > 0 and view_size > 0 and view_size % patch_size == 0
    if not (whole and mpp and all(0 < each < math.inf for each in mpp)):
        raise UserError(
            f"view_size {view_size}, patch_size {patch_size}, mpp {list(mpp)}: crops have a whole number of patches, "
            "and µm per pixel are positive"
        )
    table: list[list[npt.NDArray[np.float64]]] = [[] for _ in mpp]
    for area in _areas(images, points, folder):
        for own, each in zip(table, mpp, strict=True):
            own.append(_of_area(area, each * patch_size, view_size // patch_size))
    made = [Shares(float(each), np.concatenate(own)) for each, own in zip(mpp, table, strict=True)]
    if not any(len(each.shares) for each in made):
        raise UserError(f"no crop of {view_size} px fits into the images at {min(mpp):g} µm/px; give a smaller --mpp")
    return made


def _areas(images: PixelSource, points: CellPoints, folder: str | Path) -> Iterator[_Area]:
    if isinstance(images, TilesOfSlides):
        for tiling in images.tilings:
            cells = read_cells(cell_path(folder, points.name_of(tiling.path)))
            spacing = np.array(tiling.spacing)
            yield _Area(cells.points * spacing[::-1], np.array(tiling.extent) * spacing, tiling.boxes_um())
        return
    names = {points.name_of(images.names(position)) for position in range(len(images))}
    for row in read_cell_rows(folder):
        if row["slide"] in names and row["cells"]:
            if not row["mpp"]:
                raise UserError("the µm per pixel of the images are unknown; run densepath cells with --default_mpp")
            cells, spacing = read_cells(cell_path(folder, row["slide"])), np.array(spacing_of_text(row["mpp"]))
            yield _Area(cells.points * spacing[::-1], np.array(cells.extent) * spacing, None)


def _of_area(area: _Area, token: float, across: int) -> npt.NDArray[np.float64]:
    """The shares of the crops of ``across`` x ``across`` tokens, with sides in µm, that lie inside an area."""
    crops = ((area.side + 1e-6) // (token * across)).astype(int)  # along y and x
    if not crops.all():
        return np.zeros(0)
    places = (area.points[:, ::-1] // token).astype(int)
    places = places[(places < crops * across).all(axis=1)]
    held = np.zeros(crops * across, np.bool_)
    held[tuple(places.T)] = True
    shares: npt.NDArray[np.float64] = _means(held, across).ravel()
    if area.boxes is None:
        return shares
    y, x = (grid.ravel() for grid in np.indices(held.shape))
    centers = np.stack([x + 0.5, y + 0.5], axis=1) * token
    covered = inside_any(centers, area.boxes).reshape(held.shape)
    return shares[_means(covered, across).ravel() >= _TISSUE]


def _means(values: npt.NDArray[np.bool_], across: int) -> npt.NDArray[np.float64]:
    rows, columns = (length // across for length in values.shape)
    means: npt.NDArray[np.float64] = values.reshape(rows, across, columns, across).mean((1, 3))
    return means


def write_shares(table: ShareTable, path: Path) -> None:
    """Write the table as CSV: a row for each resolution, with its histogram."""
    edges = [f"{low / _BINS:.2f}-{(low + 1) / _BINS:.2f}" for low in range(_BINS)]
    with table_writer(path) as writer:
        writer.writerow([*SHARE_COLUMNS, *edges])
        for each in table:
            mean = each.shares.mean() if len(each.shares) else float("nan")
            facts = [mean, *(each.quantile(q) for q in (0.1, 0.5, 0.9)), each.one_region, *each.histogram()]
            writer.writerow([f"{each.mpp:g}", len(each.shares), *(f"{fact:.4f}" for fact in facts)])


def draw_shares(table: ShareTable, path: Path) -> Path:
    """Draw the distributions, a panel for each resolution."""
    shown = [each for each in table if len(each.shares)]
    figure = new_figure(2.6 * len(shown), 2.5)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, each in zip(panels, shown, strict=True):
        axes.stairs(each.histogram(), np.linspace(0, 1, _BINS + 1), fill=True, color=LINES[0], alpha=0.7)
        axes.axvline(each.quantile(0.5), color=INK, lw=1, ls=(0, (3, 2)))
        crops = f"{counted(len(each.shares), 'crop')}, {each.one_region:.0%} with one region"
        style_curve(
            axes, f"{each.mpp:g} µm/px, median {each.quantile(0.5):.2f}\n{crops}", "share of tokens with a cell"
        )
        axes.set_xlim(0, 1)
    panels[0].set_ylim(bottom=0)  # once all are drawn: it also fixes the top, which they share
    panels[0].set_ylabel("share of crops", fontsize=8, color=FAINT)
    figure.tight_layout(pad=0.7)
    return save(figure, path)
