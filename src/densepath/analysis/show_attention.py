"""``densepath show attention``: whether the attention of vision transformers is sparse, over images and on slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from densepath.analysis.attention import BINS, AttentionShares, LastAttention, aggregated
from densepath.analysis.attention_shares import plot_shares, write_shares
from densepath.analysis.center_views import center_views, chosen
from densepath.analysis.panels import PanelGrid, add_color_bar, save, show
from densepath.analysis.pictures import colors_of
from densepath.analysis.short_names import short_names
from densepath.analysis.source import network_for, planar, report_source
from densepath.core.errors import UserError
from densepath.core.paths import AnyPath, as_path, as_texts
from densepath.core.random import check_seed
from densepath.core.single_values import take_single_values
from densepath.core.slices import nearest
from densepath.sources.open import open_images
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.sources.run_folders import refuse_among_images
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile_files import SlideTiling
from densepath.sources.tiles.tiled_slide import open_tiled
from densepath.training.caller_state import state_of_the_caller
from densepath.training.hardware import choose_device
from densepath.transfer.slides.heat_map import COLORS, GrowingMap, write_map

TABLE, PLOT, OVERLAYS, HEAT_MAPS = "attention.csv", "distribution.png", "overlays.png", "heat_maps"
_HIGHEST = 4.0  # of the colors, which are those of logarithms from 1/4
_STRENGTH = 0.55
_QUERY = "#ffe600"

Query = tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class _Network:
    """Weights whose attention is shown."""

    attention: LastAttention
    spec: PixelSpec
    size: int
    grid: tuple[int, int]
    device: torch.device

    def maps(self, pixels: Tensor, query: Query) -> tuple[Tensor, Tensor, Tensor]:
        """The attention (B, H, n, n) of views, its prefix (B, H), and a value (B, n) for each token, 1 on average: the
        mean of the heads' aggregated attention, or of what a query gives it."""
        attention, prefix = self.attention(pixels)
        if query is None:
            return attention, prefix, aggregated(attention).mean(1)
        row = query[0] * self.grid[1] + query[1]
        return attention, prefix, attention[:, :, row].mean(1) * attention.shape[-1]


@take_single_values
@state_of_the_caller()
def show_attention(
    *,
    data: AnyPath,
    weights: Sequence[AnyPath],
    out: str | Path,
    backbone: str | nn.Module | None = None,
    view_size: int | None = None,
    count: int = 200,
    examples: int = 4,
    query: Sequence[int] | None = None,
    heat_maps: int = 0,
    seed: int = 0,
    devices: str = "auto",
    exclude: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure how sparse the attention of vision transformers is, and draw it on images and slides.

    The aggregated attention of a token is the sum of its column in the attention of the last block; 1 is the share that
    each token gets if all get the same. Tokens below 0.5 and above 2 are sparse: DiRL's figures 4 and 5 compare their
    shares. Class and register tokens are left out, and the rows sum to 1 again. Written are ``attention.csv`` with a
    row for each head and for the mean of the heads, ``distribution.png``, ``overlays.png``, and
    ``heat_maps/NAME/SLIDE``.

    Args:
        data: a folder of images, a text list of files, a glob, a packed store, or the folder of ``densepath tile``.
        weights: one or more of: a file, a run folder, "random", a timm name, "hf-hub:OWNER/NAME" or the folder of such
            a model, all of vision transformers.
        out: the folder of the results.
        backbone: a timm name, or in Python a network; default: that of the weights.
        view_size: side of the center crop of an image in pixels; default: what the weights were trained for.
        count: number of images, chosen at random; all if there are fewer.
        examples: number of images that are drawn.
        query: ROW COL of a token, from 0: draw the attention that it gives to all tokens instead.
        heat_maps: number of slides, chosen at random, whose attention is written as a heat map, all tiles of each; of
            tiles only.
        seed: seed of the choice of images and slides, and of random weights.
        devices: "auto" (a GPU, or the CPU if there is none) or "cpu".
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.

    Returns:
        The share of tokens in the three bins for all weights, the number of images, and the files.

    Raises:
        UserError: there are no such images or weights, weights are not of a vision transformer, or the query lies
            outside of the tokens.
    """
    data = as_path(data)
    out, sources = Path(out), as_texts(weights)
    check_seed(seed)
    if not sources or count < 1 or examples < 0 or heat_maps < 0:
        raise UserError("give at least one of --weights, a --count of 1 or more, and numbers that are not negative")
    if out.suffix.lower() == ".png" or out.is_file():
        raise UserError(f"the results are a folder, and {out} is a file; name a folder")
    names = short_names(sources, "weights")
    images = planar(open_images(data, cache="none", exclude=exclude), data)
    if heat_maps and not isinstance(images, SlideTiles):
        raise UserError("heat maps are for slides; give the folder of densepath tile as --data")
    if not isinstance(images, SlideTiles):
        refuse_among_images(out, data)
    report_source(images)
    asked = _query(query)
    networks = {
        name: _load(source, backbone, images, view_size, asked, seed, choose_device(devices))
        for name, source in zip(names, sources, strict=True)
    }
    shares = {name: _measure(network, images, chosen(images, count, seed)) for name, network in networks.items()}
    files = {"table": write_shares(shares, out / TABLE), "picture": plot_shares(shares, out / PLOT)}
    if examples:
        shown = chosen(images, min(examples, count), seed)
        files["overlays"] = _overlays(networks, images, shown, asked, out / OVERLAYS)
    if heat_maps and isinstance(images, SlideTiles):
        drawn = [images.tilings[place] for place in chosen(images.tilings, heat_maps, seed).tolist()]
        for name, network in networks.items():
            _heat_maps(network, drawn, asked, out / HEAT_MAPS / name.lstrip("/"))
        files["heat_maps"] = out / HEAT_MAPS
    front = {name: f"{name}: " if len(names) > 1 else "" for name in names}
    table = {
        f"{front[name]}{bin}": float(value)
        for name, own in shares.items()
        for bin, value in zip(BINS, own.shares()[-1], strict=True)
    }
    return {**table, "images": next(iter(shares.values())).views, **files}


def _query(query: Sequence[int] | None) -> Query:
    if query is None:
        return None
    if len(query) != 2 or min(query) < 0:
        raise UserError(f"query is {list(query)}; give the row and the column of a token, from 0")
    return int(query[0]), int(query[1])


def _load(
    source: str,
    backbone: str | nn.Module | None,
    images: PixelSource,
    view_size: int | None,
    query: Query,
    seed: int,
    device: torch.device,
) -> _Network:
    network, spec, trained = network_for(images, source, backbone, seed)
    attention = LastAttention(network.eval().to(device))
    size = (trained or int(network.net.model.patch_embed.img_size[0])) if view_size is None else view_size
    network.check_size(size, size)
    grid = network.grid(network.deepest, size, size)
    if query is not None and (query[0] >= grid[0] or query[1] >= grid[1]):
        raise UserError(f"query is {list(query)}, but {source} has {grid[0]} x {grid[1]} tokens; count from 0")
    return _Network(attention, spec, size, (grid[0], grid[1]), device)


def _measure(network: _Network, images: PixelSource, positions: Tensor) -> AttentionShares:
    found = AttentionShares(network.attention.heads)
    size = network.attention.batch_size(network.size)
    views = center_views(
        images, positions, network.spec, network.size, device=network.device, batch_size=size, what="attention"
    )
    for _, pixels, _ in views:
        found.add(*network.attention(pixels))
    return found


def _overlays(
    networks: Mapping[str, _Network], images: PixelSource, positions: Tensor, query: Query, path: Path
) -> Path:
    """Each image, and the attention of all weights on it."""
    grid = PanelGrid(len(positions), 1 + len(networks), titles=["image", *networks], breaks=[1])
    rows = {position: row for row, position in enumerate(positions.tolist())}
    for column, network in enumerate(networks.values(), 1):
        views = center_views(images, positions, network.spec, network.size, device=network.device, batch_size=1)
        for index, pixels, _ in views:
            axes = grid.axes[rows[int(index)]]
            colors = colors_of(pixels[0], network.spec)
            if column == 1:
                show(axes[0], colors)
            values = network.maps(pixels, query)[2][0].reshape(network.grid).double().cpu().numpy()
            show(axes[column], _mixed(colors, values))
            if query is not None:
                side = network.size // network.grid[0], network.size // network.grid[1]
                corner = query[1] * side[1], query[0] * side[0]
                axes[column].add_patch(Rectangle(corner, side[1], side[0], fill=False, color=_QUERY, lw=1.5))
    ticks = {1 / _HIGHEST: f"1/{_HIGHEST:g}", 1.0: "1", _HIGHEST: f"{_HIGHEST:g}"}
    scale = {float(_share(np.float64(value))): text for value, text in ticks.items()}
    add_color_bar(grid.figure, COLORS, scale, "attention (1: uniform)")
    return save(grid.figure, path)


def _share(values: Any) -> Any:
    """Positions of attention in the colors, from 0 to 1."""
    with np.errstate(divide="ignore"):
        return (np.log2(values) / np.log2(_HIGHEST) / 2 + 0.5).clip(0, 1)


def _mixed(colors: npt.NDArray[Any], values: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """An image (H, W, 3) with the colors of values (h, w) on it."""
    rows, columns = (nearest(n, m) for n, m in zip(colors.shape[:2], values.shape, strict=True))
    over = colormaps[COLORS](_share(values))[..., :3][rows][:, columns]
    return (1 - _STRENGTH) * colors + _STRENGTH * over


def _heat_maps(network: _Network, tilings: Sequence[SlideTiling], query: Query, out: Path) -> None:
    """The attention of all tokens of some slides' tiles, each tile a view of its own."""
    for tiling in tilings:
        own, slide = SlideTiles([tiling]), open_tiled(tiling)
        tiles, side = tiling.boxes_um(), np.divide(tiling.size * tiling.mpp, network.grid)
        corners = np.indices(network.grid).reshape(2, -1).T * side  # (n, 2) in µm
        found = GrowingMap(slide, float(side.min()))
        size = network.attention.batch_size(network.size)
        views = center_views(
            own,
            torch.arange(len(own)),
            network.spec,
            network.size,
            device=network.device,
            batch_size=size,
            share=1.0,
            what=f"attention in {tiling.name}",
        )
        for index, pixels, _ in views:
            values = network.maps(pixels, query)[2].reshape(-1, 1).float().cpu().numpy()
            places = (tiles[index.numpy(), None, :2] + corners).reshape(-1, 2)
            found.add(np.concatenate([places, np.broadcast_to(side, places.shape)], axis=1), values)
        label = "attention of the tile's tokens" if query is None else f"attention of token {query[0]}, {query[1]}"
        write_map(out / tiling.name, slide, found.done(), label=f"{label} (1: uniform)", limits=(0.0, 2.0))
