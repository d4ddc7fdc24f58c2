"""``densepath show similarity``: distributions of the similarity of regions within images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import nn

from densepath.analysis.curves import style_curve
from densepath.analysis.panels import INK, LINES, new_figure, picture_file, save
from densepath.analysis.short_names import short_names
from densepath.analysis.similarity import BINS, Distribution, region_similarities
from densepath.analysis.source import network_for, planar, report_source
from densepath.core.errors import UserError
from densepath.core.fonts import drawable
from densepath.core.paths import AnyPath, as_texts
from densepath.core.single_values import take_single_values
from densepath.sources.open import open_images
from densepath.training.caller_state import state_of_the_caller
from densepath.training.hardware import choose_device

_STEPS = 80  # bars of a histogram over the visible range
_LINE = 0.17  # inches, of the legend below a panel
_HIDDEN = 0.002  # share of the pairs that may lie left of the visible range


@take_single_values
@state_of_the_caller()
def show_similarity(
    *,
    data: Sequence[AnyPath],
    out: str | Path,
    weights: Sequence[AnyPath] = ("random",),
    backbone: str | nn.Module | None = None,
    stage: int | None = None,
    view_size: int = 224,
    count: int = 500,
    seed: int = 0,
    devices: str = "auto",
    exclude: Sequence[str] = (),
) -> dict[str, Any]:
    """Draw how similar the regions within an image are, for one or several sources of images and weights.

    A region is a position of the last feature map (a token of a vision transformer). The cosine similarities of all
    pairs within an image are pooled over the images: one distribution per source, one panel per set of weights. In the
    Conv-MIM paper (Figure 2) the similarities are higher in pathology than in photographs: structures span more of the
    image.

    Args:
        data: up to six folders of images, text lists of files, globs, or packed stores.
        out: a PNG file.
        weights: files, run folders, "random", or timm names.
        backbone: a timm name, or in Python a network; default: that of the weights, resnet18 for random ones.
        stage: stage 1 to 5 whose positions are the regions; default: the deepest, 7 x 7 positions of a ResNet.
        view_size: height and width in pixels of the center crop of an image.
        count: number of images per source, chosen at random; all if there are fewer.
        seed: seed of the choice of images, and of random weights.
        devices: "auto" (a GPU, or the CPU if there is none) or "cpu".
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.

    Returns:
        Median and mean of each distribution and the overlap (shared area) of each pair; ``out`` as "picture".

    Raises:
        UserError: no such images, weights or stage, a source that is given twice, more sources than there are colors,
            or a file name that does not end in .png.
    """
    sources, networks = as_texts(data), as_texts(weights)
    out = picture_file(out, *sources)
    if not sources or not networks:
        raise UserError("data or weights is empty; give at least one source of images and one of weights")
    if len(sources) > len(LINES):
        raise UserError(f"{len(sources)} sources are too many for one picture; give at most {len(LINES)}")
    images = dict(
        zip(
            short_names(sources, "data"),
            (planar(open_images(source, cache="none", exclude=exclude), source) for source in sources),
            strict=True,
        )
    )
    device = choose_device(devices)
    for each in images.values():
        report_source(each)
    panels: dict[str, dict[str, Distribution]] = {}
    for name, source in zip(short_names(networks, "weights"), networks, strict=True):
        panels[name] = {}
        for title, each in images.items():
            network, spec, _ = network_for(each, source, backbone, seed)
            panels[name][title] = region_similarities(
                network.to(device), each, stage=stage, view_size=view_size, count=count, seed=seed, spec=spec
            )
    draw_similarities(panels, out)
    return {**_table(panels), "picture": out}


def draw_similarities(panels: Mapping[str, Mapping[str, Distribution]], path: Path) -> Path:
    """Draw distributions: one panel per set of weights, with a histogram and its median for each source.

    Args:
        panels: weights -> source -> distribution.
        path: a PNG file.
    """
    figure = new_figure(3.6 * len(panels), 2.6 + _LINE * max(map(len, panels.values())))
    low = min(found.quantile(_HIDDEN) for panel in panels.values() for found in panel.values())
    for axes, (name, panel) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        for (title, found), color in zip(panel.items(), LINES[: len(panel)], strict=True):
            paint_density(axes, found, low, color, f"{title}, median {found.quantile(0.5):.3f}")
        overlaps = _overlaps(panel)
        note = f", overlap {next(iter(overlaps.values())):.2f}" if len(overlaps) == 1 else ""
        style_curve(axes, name + note, "cosine similarity of regions")
        axes.set_ylim(bottom=0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="upper left", bbox_to_anchor=(-0.03, -0.2))
    figure.tight_layout(pad=0.7)
    return save(figure, path)


def paint_density(axes: Axes, found: Distribution, low: float, color: str, label: str) -> None:
    """Plot the density of a distribution from ``low`` to 1 in a panel, with a line at its median."""
    width = max(1, round((1 - low) * BINS / 2 / _STEPS))  # in bins
    first = int((low + 1) * BINS / 2) // width * width
    shares = np.append(found.shares()[first:], np.zeros(-(BINS - first) % width)).reshape(-1, width).sum(1)
    edges = -1 + (first + width * np.arange(len(shares) + 1)) * 2 / BINS
    axes.stairs(shares * BINS / 2 / width, edges, fill=True, color=color, alpha=0.35, lw=0)
    axes.stairs(shares * BINS / 2 / width, edges, color=color, lw=1.2, label=drawable(label))
    axes.axvline(found.quantile(0.5), color=color, lw=1, ls=(0, (3, 2)))


def _overlaps(panel: Mapping[str, Distribution]) -> dict[str, float]:
    return {f"overlap {a} and {b}": panel[a].overlap(panel[b]) for a, b in combinations(panel, 2)}


def _table(panels: Mapping[str, Mapping[str, Distribution]]) -> dict[str, float]:
    table: dict[str, float] = {}
    for name, panel in panels.items():
        rows = {f"{title} {what}": value for title, found in panel.items() for what, value in _facts(found).items()}
        front = f"{name}: " if len(panels) > 1 else ""
        table |= {front + row: value for row, value in (rows | _overlaps(panel)).items()}
    return table


def _facts(found: Distribution) -> dict[str, float]:
    return {"median": found.quantile(0.5), "mean": found.mean}
