"""The common layout of all pictures: grids of square panels with short labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from densepath.core.errors import UserError
from densepath.core.files import atomic_write, check_writable
from densepath.core.fonts import drawable
from densepath.sources.run_folders import refuse_among_images

INK = "#2b2b33"
FAINT = "#8a8a96"
# Distinguishable on pink and violet tissue, also with most kinds of color blindness.
LINES = ("#0072b2", "#e66100", "#009e73", "#b5179e", "#8c6d1f", "#4d4d4d")
# From the darkest to the lightest concept of a tile.
CONCEPTS = ("#3b0f70", "#2c6fbb", "#1fa39a", "#57b947", "#c6d92f", "#f9c22e", "#f3722c", "#d62f4b")
# Contrast with stained tissue.
OBJECTS = ("#00e5ff", "#ffe600", "#39ff6a", "#ff9d00", "#f5f5f5", "#9d8cff", "#ff5cff")
WRONG = "#ff1f3d"

DPI = 120
_GAP = 0.06  # inches between panels
_TITLE = 0.30  # inches above the columns
_BAR = 0.50  # inches for a bar of colors and its text
_FONT: dict[Any, Any] = {"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.edgecolor": FAINT}


class PanelGrid:
    """A figure of rows x columns of equal panels, placed to the pixel.

    Args:
        rows, columns: number of panels.
        panel: side of a panel in inches.
        titles: text above the columns.
        breaks: columns with a wider gap on their left.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        panel: float = 1.8,
        titles: Sequence[str] = (),
        breaks: Sequence[int] = (),
    ) -> None:
        top = _TITLE if titles else _GAP
        lefts = [_GAP + c * (panel + _GAP) + 3 * _GAP * sum(b <= c for b in breaks) for c in range(columns)]
        width = lefts[-1] + panel + _GAP
        height = top + rows * (panel + _GAP)
        self.figure = new_figure(width, height)
        self.axes = [
            [self._panel(x / width, 1 - (top + r * (panel + _GAP) + panel) / height, panel) for x in lefts]
            for r in range(rows)
        ]
        for x, title in zip(lefts, titles, strict=False):
            y = 1 - (top - 0.07) / height
            self.figure.text((x + panel / 2) / width, y, drawable(title), ha="center", va="bottom")

    def _panel(self, x: float, y: float, side: float) -> Axes:
        width, height = self.figure.get_size_inches()
        axes = self.figure.add_axes((x, y, side / width, side / height))
        axes.set_axis_off()
        return axes


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure with sides in inches, independent of pyplot's global state."""
    with matplotlib.rc_context(_FONT):
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
    return figure


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], place: Any = "upper left") -> None:
    """Add a legend above or below the panels: the figure grows by its height, and has the columns that fit.

    Args:
        figure: a finished figure, but for its layout, which is made tight.
        handles, labels: as for ``Figure.legend``.
        place: "upper left" or "lower center".
    """
    width, height = figure.get_size_inches()
    taken = _legend(figure, handles, labels, place)
    figure.set_size_inches(width, height + taken)
    share, above = taken / (height + taken), place.startswith("upper")
    figure.tight_layout(pad=0.7, rect=(0, 0 if above else share, 1, 1 - share if above else 1))


def add_panel_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Add a legend below the panels of a :class:`PanelGrid`, as :func:`add_legend`: the figure grows by its height."""
    _grow(figure, _legend(figure, handles, labels, "lower center") + _GAP)


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], place: Any) -> float:
    """Add a legend with the columns that fit; its height in inches."""
    options: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": INK, "borderaxespad": 0.3}
    columns, labels = len(labels), [drawable(label) for label in labels]
    legend = figure.legend(handles, labels, **options, loc=place, ncols=columns)
    while columns > 1 and legend.get_window_extent().width > figure.bbox.width:
        legend.remove()
        columns -= 1
        legend = figure.legend(handles, labels, **options, loc=place, ncols=columns)
    return float(legend.get_window_extent().height / figure.dpi)


def _grow(figure: Figure, below: float) -> None:
    """Add inches below the panels of a :class:`PanelGrid`, which keep their size."""
    width, height = figure.get_size_inches()
    whole = height + below
    figure.set_size_inches(width, whole)
    for text in figure.texts:
        text.set_y((text.get_position()[1] * height + below) / whole)
    for axes in figure.axes:
        box = axes.get_position(original=True)  # the other one is that of an image in the changed figure
        axes.set_position((box.x0, (box.y0 * height + below) / whole, box.width, box.height * height / whole))


def add_color_bar(figure: Figure, colors: str, ticks: Mapping[float, str], label: str) -> None:
    """Explain colors below the panels of a :class:`PanelGrid`: the figure grows by the height of a bar.

    Args:
        figure: the finished figure.
        colors: the name of matplotlib's colors.
        ticks: position in the bar, from 0 to 1 -> its text.
        label: what the colors mean.
    """
    _grow(figure, _BAR)
    width, whole = figure.get_size_inches()
    side = min(1.8, width - 4 * _GAP)
    bar = figure.add_axes(((width - side) / 2 / width, (_BAR - 0.12) / whole, side / width, 0.1 / whole))
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=colors, aspect="auto", extent=(0, 1, 0, 1))
    bar.set_xticks(list(ticks), list(ticks.values()))
    bar.set_yticks([])
    bar.tick_params(labelsize=7.5, color=FAINT, labelcolor=INK, length=2, pad=1)
    bar.set_xlabel(label, fontsize=8, color=INK, labelpad=1)


def show(axes: Axes, image: np.ndarray) -> None:
    """Show an image (H, W, 3) in a panel. Coordinates are pixels; the image's edges are at 0, W and H."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation="antialiased", aspect="equal")


def frame(axes: Axes, color: str) -> None:
    """Draw a frame around the image of a panel."""
    box = axes.images[0].get_extent()
    axes.add_patch(
        matplotlib.patches.Rectangle(
            (box[0], box[3]), box[1] - box[0], box[2] - box[3], fill=False, color=color, lw=2.0, clip_on=False
        )
    )


def compose(columns: Sequence[Sequence[tuple[str, Path]]], path: str | Path, *, note: str = "") -> Path:
    """Combine pictures into one: columns side by side, each with its pictures from top to bottom, with headings.

    Args:
        columns: (heading, PNG file) of each picture of a column, from top to bottom.
        path: a PNG file.
        note: text below the first column.
    """
    head, gap = round(0.34 * DPI), round(0.16 * DPI)
    pictures = [[(heading, np.asarray(Image.open(file).convert("RGB"))) for heading, file in c] for c in columns]
    widths = [max(p.shape[1] for _, p in column) for column in pictures]
    heights = [sum(head + p.shape[0] for _, p in column) for column in pictures]
    canvas = np.full((max(heights), sum(widths) + gap * (len(widths) - 1), 3), 255, np.uint8)
    figure = new_figure(canvas.shape[1] / DPI, canvas.shape[0] / DPI)
    left = 0
    for column, width, used in zip(pictures, widths, heights, strict=True):
        top, spare = 0, (max(heights) - used) // max(len(column) - 1, 1)
        for heading, picture in column:
            x, y = (left + round(_GAP * DPI)) / canvas.shape[1], 1 - (top + 0.7 * head) / canvas.shape[0]
            figure.text(x, y, heading, weight="bold", size=11, ha="left", va="baseline")
            top += head
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            top += picture.shape[0] + spare
        left += width + gap
    x, y = _GAP * DPI / canvas.shape[1], 1 - (heights[0] + 0.1 * DPI) / canvas.shape[0]
    figure.text(x, y, note, size=9, ha="left", va="top", linespacing=1.5)
    figure.figimage(canvas, zorder=-1)
    return save(figure, path)


def picture_file(out: str | Path, *data: str | Path) -> Path:
    """Check the path of a picture to be written.

    Args:
        out: the path.
        data: the images that are drawn.

    Raises:
        UserError: it does not end in .png, lies among these images, or cannot be written.
    """
    if Path(out).suffix.lower() != ".png":
        raise UserError(f"a picture cannot be written to {out}; use a file name that ends in .png")
    refuse_among_images(out, *data)
    check_writable(out)
    return Path(out)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, atomically."""
    path = Path(path)
    with atomic_write(path) as part, matplotlib.rc_context(_FONT):
        figure.savefig(part, format="png", dpi=figure.dpi)
    return path
