"""``densepath show tokens``: whether features tell tokens with cells from those of the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from torch import Tensor, nn

from densepath.analysis.center_views import center_views, chosen
from densepath.analysis.panels import INK, LINES, add_legend, new_figure, picture_file, save
from densepath.analysis.separation import Floats, Gaussian, bhattacharyya, jensen_shannon
from densepath.analysis.short_names import short_names
from densepath.analysis.source import check_finite, network_for, planar, report_source
from densepath.annotations.cells.blobs import find_cells
from densepath.annotations.cells.cell_points import CellPoints
from densepath.core.affine import identity, warp_points
from densepath.core.csv_files import table_writer
from densepath.core.errors import UserError, counted
from densepath.core.file_beside import file_beside
from densepath.core.fonts import drawable
from densepath.core.paths import AnyPath, as_path, as_texts
from densepath.core.random import check_seed
from densepath.core.regions import point_counts
from densepath.core.single_values import take_single_values
from densepath.core.streams import say
from densepath.sources.open import find_source
from densepath.sources.pixel_source import PixelSource
from densepath.sources.slides.resolution import check_mpp
from densepath.training.caller_state import state_of_the_caller
from densepath.training.hardware import choose_device

GROUPS = ("cells", "background")
_COLUMNS = ("weights", "tokens_of_each", "jensen_shannon", "bhattacharyya")
_COLORS = (LINES[0], LINES[1])

Cells = Callable[[int], Any]  # position -> (N, 2) x, y in normalized coordinates of the image


@dataclass(frozen=True, eq=False)
class Separation:
    """Tokens in the plane, and how far their groups are apart.

    Args:
        points: of cells and of the background, (N, 2) each.
        divergence: Jensen-Shannon divergence of their normal distributions in nats.
        distance: Bhattacharyya distance.
    """

    points: tuple[Floats, Floats]
    divergence: float
    distance: float


@take_single_values
@state_of_the_caller()
def show_tokens(
    *,
    data: AnyPath,
    weights: Sequence[AnyPath],
    out: str | Path,
    cells: AnyPath | None = None,
    mpp: float | None = None,
    backbone: str | nn.Module | None = None,
    view_size: int | None = None,
    count: int = 200,
    tokens: int = 2000,
    perplexity: float = 30.0,
    seed: int = 0,
    devices: str = "auto",
    exclude: Sequence[str] = (),
) -> dict[str, Any]:
    """Draw tokens with cells and of the background in two dimensions (t-SNE), and measure how far they are apart.

    A token is a position of the deepest feature map; it is one of cells if a cell's center lies in it. A normal
    distribution is fitted to the points of each group; their Jensen-Shannon divergence (nats, at most 0.693) and
    Bhattacharyya distance are DiRL's table 10, in which DiRL is above Cellback, and Cellback above DINO. They are
    written next to the picture (.csv).

    Args:
        data: a folder of images, a text list of files, a glob, a packed store, or the folder of ``densepath tile``.
        weights: one or more of: a file, a run folder, "random", a timm name, "hf-hub:OWNER/NAME" or the folder of such
            a model.
        out: a PNG file.
        cells: the folder that ``densepath cells`` wrote; by default cells are found as that does by default.
        mpp: µm per pixel of images that do not say it, to find cells.
        backbone: a timm name, or in Python a network; default: that of the weights.
        view_size: side of the center crop of an image in pixels; default: what the weights were trained for, or 224.
        count: number of images, chosen at random; all if there are fewer.
        tokens: tokens of each group, chosen at random; DiRL has 30,000.
        perplexity: of t-SNE.
        seed: seed of the choices, of t-SNE, and of random weights.
        devices: "auto" (a GPU, or the CPU if there is none) or "cpu".
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.

    Returns:
        Divergence and distance for all weights, and the files.

    Raises:
        UserError: there are no such images, weights or cells, or too few tokens of a group.
    """
    data, cells = as_path(data), as_path(cells)
    out, sources = picture_file(out, data), as_texts(weights)
    table = file_beside(out, ".csv", _COLUMNS)
    check_seed(seed)
    if not sources or count < 1 or tokens < 3 or not perplexity > 0:
        raise UserError(
            "give at least one of --weights, a --count of 1 or more, --tokens of 3 or more, and a perplexity"
        )
    check_mpp("mpp", mpp, 0.5)
    names, table = short_names(sources, "weights"), out.with_suffix(".csv")
    images = planar(find_source(data, exclude=exclude), data)
    report_source(images)
    held: Cells
    if cells is not None:
        points = CellPoints(images, cells)
        say(f"densepath: {points.describe()}")
        held = lambda position: points.of(position)[:, :2]  # noqa: E731
    else:
        held = _finder(images, mpp)
    found: dict[str, Separation] = {}
    for name, source in zip(names, sources, strict=True):
        groups = _sample(source, backbone, images, held, view_size, count, tokens, seed, choose_device(devices))
        found[name] = separate(groups, perplexity, seed)
    _write(found, table)
    front = {name: f"{name}: " if len(names) > 1 else "" for name in names}
    numbers = {f"{front[name]}jensen_shannon": own.divergence for name, own in found.items()}
    numbers |= {f"{front[name]}bhattacharyya": own.distance for name, own in found.items()}
    return {**numbers, "picture": _draw(found, out), "table": table}


def separate(groups: tuple[Floats, Floats], perplexity: float, seed: int) -> Separation:
    """Map the tokens of both groups (N, D) to the plane together, and compare the groups there.

    Args:
        groups: tokens of cells and of the background.
        perplexity: of t-SNE.
        seed: of t-SNE.

    Raises:
        UserError: there are too few tokens for the perplexity.
    """
    from sklearn.manifold import TSNE

    tokens = np.concatenate(groups)
    if perplexity >= len(tokens):
        raise UserError(f"perplexity is {perplexity:g}, but there are {len(tokens)} tokens; give a smaller one")
    plane = TSNE(perplexity=perplexity, random_state=seed % 2**32, init="pca").fit_transform(tokens).astype(np.float64)
    points = plane[: len(groups[0])], plane[len(groups[0]) :]
    fitted = Gaussian.of(points[0]), Gaussian.of(points[1])
    return Separation(points, jensen_shannon(*fitted), bhattacharyya(*fitted))


def _finder(images: PixelSource, mpp: float | None) -> Cells:
    """Finds the cells of an image, once for all weights."""
    known: dict[int, Any] = {}

    def find(position: int) -> Any:
        if position not in known:
            spacing = images.spacing(torch.tensor([position]))
            own = spacing[0].tolist() if spacing is not None and bool(torch.isfinite(spacing).all()) else mpp
            if own is None:
                raise UserError("the images do not say their µm per pixel, which finding cells needs; give --mpp")
            pixels = images.spec.to_rgb(images.read(position))
            known[position] = find_cells(pixels, own) / np.array(pixels.shape[1::-1]) * 2 - 1
        return known[position]

    return find


def _sample(
    source: str,
    backbone: str | nn.Module | None,
    images: PixelSource,
    cells: Cells,
    view_size: int | None,
    count: int,
    tokens: int,
    seed: int,
    device: torch.device,
) -> tuple[Floats, Floats]:
    """As many tokens (N, D) of cells as of the background, drawn from the center crops of some images.

    Raises:
        UserError: there are fewer than three of a group, or the network gives numbers that are not finite.
    """
    network, spec, trained = network_for(images, source, backbone, seed)
    network.eval().to(device)
    embedding: Any = getattr(getattr(network.net, "model", None), "patch_embed", None)
    size = (trained or (224 if embedding is None else int(embedding.img_size[0]))) if view_size is None else view_size
    network.check_size(size, size)
    parts: tuple[list[Tensor], list[Tensor]] = [], []
    views = center_views(images, chosen(images, count, seed), spec, size, device=device, what="tokens")
    with torch.no_grad():
        for index, pixels, maps in views:
            features = network(pixels)[network.deepest]  # (B, D, h, w)
            for row, position in enumerate(index.tolist()):
                points = torch.as_tensor(cells(position), dtype=torch.float32)[None]
                moved = warp_points(points, identity(1), maps[row : row + 1].cpu())[0]
                holds = point_counts(moved, features.shape[2:])[0].flatten() > 0
                flat = features[row].flatten(1).T.float().cpu()
                for part, mask in zip(parts, (holds, ~holds), strict=True):
                    part.append(flat[mask])
    found = [torch.cat(part) for part in parts]
    check_finite(torch.cat(found), "feature map")
    least = min(tokens, *map(len, found))
    if least < 3:
        raise UserError(
            f"{counted(len(found[0]), 'token has', 'tokens have')} cells and {len(found[1])} none; give more images "
            "with --count, or other µm per pixel"
        )
    rng = np.random.default_rng(seed)
    drawn = [part.double().numpy()[np.sort(rng.permutation(len(part))[:least])] for part in found]
    return drawn[0], drawn[1]


def _write(found: Mapping[str, Separation], path: Path) -> None:
    with table_writer(path) as writer:
        writer.writerow(_COLUMNS)
        for name, own in found.items():
            writer.writerow([name, len(own.points[0]), f"{own.divergence:.6g}", f"{own.distance:.6g}"])


def _draw(found: Mapping[str, Separation], path: Path) -> Path:
    """A panel for each of the weights: tokens, and two standard deviations of each group."""
    figure = new_figure(3.2 * len(found), 3.6)
    for axes, (name, own) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for points, color in zip(own.points, _COLORS, strict=True):
            axes.scatter(*points.T, s=3, color=color, alpha=0.35, lw=0, rasterized=True)
            _outline(axes, Gaussian.of(points), color)
        axes.autoscale()  # also to the outlines
        axes.set_title(drawable(name), fontsize=9, loc="left", color=INK)
        axes.set_xlabel(f"JS {own.divergence:.3f}, Bhattacharyya {own.distance:.3f}", fontsize=8, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", "datalim")
    add_legend(figure, [axes.scatter([], [], s=27, color=color) for color in _COLORS], GROUPS)
    return save(figure, path)


def _outline(axes: Axes, fitted: Gaussian, color: str) -> None:
    lengths, directions = np.linalg.eigh(fitted.covariance)
    angle = float(np.degrees(np.arctan2(directions[1, 1], directions[0, 1])))
    width, height = 4 * np.sqrt(lengths[1]), 4 * np.sqrt(lengths[0])
    axes.add_patch(
        Ellipse(
            (fitted.mean[0], fitted.mean[1]), width, height, angle=angle, fill=False, color=color, lw=1.5, clip_on=False
        )
    )
