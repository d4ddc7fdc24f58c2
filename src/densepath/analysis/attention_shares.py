"""How attention is distributed over tokens: as a table, and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densepath.analysis.attention import BINS, AttentionShares
from densepath.analysis.curves import style_curve
from densepath.analysis.panels import FAINT, INK, LINES, new_figure, save
from densepath.core.csv_files import table_writer


def write_shares(shares: Mapping[str, AttentionShares], path: Path) -> Path:
    """A row for each head, and for the mean of the heads."""
    with table_writer(path) as writer:
        names = [bin.replace(" ", "_") for bin in BINS]
        writer.writerow(["weights", "head", "images", "tokens", *names, "on_class_and_registers"])
        for name, own in shares.items():
            heads = [*map(str, range(own.heads)), "mean"]
            for head, bins, row, prefix in zip(heads, own.bins, own.shares(), own.prefix / own.views, strict=True):
                writer.writerow([name, head, own.views, bins.sum(), *(f"{value:.6f}" for value in (*row, prefix))])
    return path


def plot_shares(shares: Mapping[str, AttentionShares], path: Path) -> Path:
    """A panel for each of the weights: the distribution, and the shares of the three bins, as in DiRL's figure 4."""
    figure = new_figure(3.0 * len(shares), 2.5)
    panels = figure.subplots(1, len(shares), squeeze=False, sharey=True)[0]
    reach = max(_reach(*own.density()) for own in shares.values())
    for axes, (name, own) in zip(panels, shares.items(), strict=True):
        edges, density = own.density()
        centers = np.sqrt(edges[1:] * edges[:-1])
        for color, part in ((LINES[1], (centers < 0.5) | (centers > 2)), (LINES[0], (centers >= 0.5) & (centers <= 2))):
            axes.stairs(np.where(part, density, 0), edges, fill=True, color=color, alpha=0.75)
        axes.set_xscale("log", base=2)
        axes.set_xlim(2.0**-reach, 2.0**reach)
        for edge in (0.5, 2):
            axes.axvline(edge, color=FAINT, lw=1, ls=(0, (3, 2)))
        for place, share in zip((1 / 6, 1 / 2, 5 / 6), own.shares()[-1], strict=True):
            axes.text(place, 0.98, f"{share:.1%}", transform=axes.transAxes, ha="center", va="top", size=9, color=INK)
        style_curve(axes, name, "aggregated attention of a token (1: uniform)")
        ticks = {1 / 32: "1/32", 1 / 8: "1/8", 0.5: "0.5", 1: "1", 2: "2", 8: "8", 32: "32"}
        inside = {place: text for place, text in ticks.items() if abs(np.log2(place)) <= reach}
        axes.set_xticks(list(inside), list(inside.values()))
    panels[0].set_ylim(0, 1.2 * panels[0].get_ylim()[1])
    panels[0].set_ylabel("share of tokens", fontsize=8, color=FAINT)
    figure.tight_layout(pad=0.7)
    return save(figure, path)


def _reach(edges: npt.NDArray[np.float64], density: npt.NDArray[np.float64]) -> float:
    """The logarithm to which a picture of a histogram extends on both sides of 1, so that no token is left out."""
    used = np.flatnonzero(density)
    return float(np.ceil(max(4.0, *np.abs(np.log2([edges[used[0]], edges[used[-1] + 1]])))))
