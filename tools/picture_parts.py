"""What the pictures of methods consist of: procedural tissue, small runs on it, and panels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from densepath.analysis.panels import INK, LINES, OBJECTS, PanelGrid, frame, save, show
from densepath.analysis.pictures import _mosaic, _outline, colors_of
from densepath.api import pretrain
from densepath.core.affine import apply
from densepath.core.masking import enlarge
from densepath.methods import METHODS
from densepath.sources.batch import ImageBatch
from densepath.sources.loader import ImageBatches
from densepath.sources.open import open_images
from densepath.synthetic.tissue import write_tiles
from densepath.training.load_run import load_run
from densepath.views.maker import ViewMaker
from densepath.views.view import Batch

OUT = Path(__file__).parent.parent / "docs" / "pictures" / "methods"
_SEED, SIDE = 3, 96  # of the views, and their pixels
_COLORS, _LARGEST = (160, 96, 64, 40), 140_000  # of a picture: as many as its bytes allow; tissue compresses badly
_CORNERS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
_STEPS = {"moco_v2": 80, "dino": 25}
_PLAIN: dict[str, Any] = {"batch_size": 16, "view_size": 64, "seed": 0, "picture_every": 0}
_OPTIONS: dict[str, dict[str, Any]] = {"moco_v2": {"backbone": "regnetx_002"}, "dino": {"view_size": 96}}
Panel = np.ndarray | Callable[[Axes], None]


class Inputs:
    """Tiles of procedural tissue, and small runs on them."""

    def __init__(self, work: Path) -> None:
        self.work = work

    @cached_property
    def tiles(self) -> Path:
        if not (self.work / "tiles").is_dir():
            write_tiles(self.work / "tiles", 200, 160, seed=1)
        return self.work / "tiles"

    @cached_property
    def images(self) -> ImageBatch:
        """24 tiles; the first rows of pictures show the first of them."""
        return next(iter(ImageBatches(open_images(self.tiles), batch_size=24, seed=5, max_steps=1)))

    def views(self, name: str, size: int = SIDE, seed: int = _SEED) -> Batch:
        return ViewMaker(METHODS[name].views(), size, seed)(self.images)

    def run(self, name: str) -> Any:
        """The method of a small run."""
        folder = self.work / name
        if not (folder / "exported" / "backbone.safetensors").exists():
            options = {**_PLAIN, "max_steps": _STEPS[name], **_OPTIONS.get(name, {})}
            with torch.enable_grad():
                pretrain(f"{name}_small", data=self.tiles, out=folder, resume=True, **options)
        return load_run(folder)[0].eval()

    @cached_property
    def features(self) -> Any:
        """The backbone of a small run of MoCo-v2."""
        return self.run("moco_v2").exported_backbone()


def draw(
    name: str, titles: Sequence[str], rows: Sequence[Sequence[Panel]], breaks: Sequence[int] = (), side: float = 1.15
) -> None:
    """Write a picture with equal panels."""
    grid = PanelGrid(len(rows), len(titles), panel=side, titles=titles, breaks=breaks)
    for axes, row in zip(grid.axes, rows, strict=True):
        for panel, shown in zip(axes, row, strict=True):
            show(panel, shown) if isinstance(shown, np.ndarray) else shown(panel)
    path = save(grid.figure, OUT / f"{name}.png")
    image = Image.open(path).convert("RGB")
    for colors in _COLORS:
        image.quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= _LARGEST:
            break
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def rgb(batch: Batch, name: str, row: int) -> np.ndarray:
    """A view of an image; all of its crops if it has several."""
    pixels = batch[name].pixels
    return _mosaic([colors_of(pixels[k]) for k in range(row, len(pixels), len(batch))])


def written(image: np.ndarray, text: str) -> Panel:
    """An image with a text in its lower left corner."""

    def panel(axes: Axes) -> None:
        show(axes, image)
        label = axes.text(0.04, 0.05, text, color="white", size=8, weight="bold", transform=axes.transAxes)
        label.set_path_effects([withStroke(linewidth=2.5, foreground=INK)])

    return panel


def framed(image: np.ndarray, color: str) -> Panel:
    def panel(axes: Axes) -> None:
        show(axes, image)
        frame(axes, color)

    return panel


def outlined(inputs: Inputs, batch: Batch, names: Sequence[str], row: int) -> Panel:
    """An image with the outlines of its views."""

    def panel(axes: Axes) -> None:
        image = inputs.images.pixels[row].numpy()
        show(axes, image)
        for name, color in reversed(list(zip(names, LINES, strict=False))):
            for crop in range(row, len(batch[name].pixels), len(batch)):
                corners = (apply(batch[name].map[crop : crop + 1], _CORNERS[None])[0] + 1) / 2
                _outline(axes, (corners * torch.tensor(image.shape[1::-1])).numpy(), color)

    return panel


def of_views(inputs: Inputs, batch: Batch, names: Sequence[str], row: int) -> list[Panel]:
    """An image with outlines, and its views in frames of the same colors."""
    views = [framed(rgb(batch, name, row), color) for name, color in zip(names, LINES, strict=False)]
    return [outlined(inputs, batch, names, row), *views]


def pointed(image: np.ndarray, points: np.ndarray) -> Panel:
    """An image with numbered points (N, 2), x and y as shares of its sides; those outside are left out."""

    def panel(axes: Axes) -> None:
        show(axes, image)
        for number, (x, y) in enumerate(points, 1):
            if 0 <= x <= 1 and 0 <= y <= 1:
                spot = x * image.shape[1], y * image.shape[0]
                axes.plot(*spot, "o", ms=9, color=OBJECTS[number % 7], mec=INK, mew=1)
                axes.text(*spot, str(number), size=6.5, weight="bold", color=INK, ha="center", va="center")

    return panel


def boxed(image: np.ndarray, boxes: Sequence[tuple[float, float, float, float, str]]) -> Panel:
    """An image with rectangles: left, top, width and height in pixels, and a color."""

    def panel(axes: Axes) -> None:
        show(axes, image)
        for left, top, width, height, color in boxes:
            axes.add_patch(Rectangle((left, top), width, height, fill=False, ec="white", lw=3))
            axes.add_patch(Rectangle((left, top), width, height, fill=False, ec=color, lw=1.8))

    return panel


def hidden(image: np.ndarray, mask: torch.Tensor) -> np.ndarray:
    """An image with its masked patches (h, w) in grey."""
    full = enlarge(mask[None].float(), image.shape[0])[0, 0].numpy()[..., None]
    return image * (1 - full) + 0.82 * full


def in_colors(features: torch.Tensor) -> np.ndarray:
    """Features (C, h, w) as colors: their first three principal components."""
    flat = features.flatten(1).T
    flat = flat - flat.mean(0)
    parts = flat @ torch.linalg.svd(flat, full_matrices=False)[2][:3].T
    low, high = parts.quantile(0.02, 0), parts.quantile(0.98, 0)
    colors = ((parts - low) / (high - low)).clamp(0, 1)
    return colors.T.unflatten(1, features.shape[1:]).permute(1, 2, 0).numpy()


@torch.no_grad()
def maps_of(inputs: Inputs, pixels: torch.Tensor, stage: int = 5) -> torch.Tensor:
    features: torch.Tensor = inputs.features(pixels)[stage]
    return features


def vectors_of(inputs: Inputs, *views: torch.Tensor) -> list[torch.Tensor]:
    """Unit vectors of views, with the mean of all of them removed."""
    pooled = [maps_of(inputs, pixels).mean((2, 3)) for pixels in views]
    every = torch.cat(pooled)
    return [F.normalize((x - every.mean(0)) / every.std(0), dim=1) for x in pooled]


def contrast(inputs: Inputs, name: str, first: str, second: str, others: str, count: int, method: str) -> None:
    """Two views of images, and the other images that they are contrasted with, with their cosines."""
    batch = inputs.views(method)
    q, k = vectors_of(inputs, batch[first].pixels, batch[second].pixels)
    rows = []
    for row in range(2):
        cosines = k @ q[row]
        order = [i for i in cosines.argsort(descending=True).tolist() if i != row]
        shown = [order[round(place)] for place in np.linspace(0, len(order) - 1, count)] if count else []
        panels = of_views(inputs, batch, (first, second), row)
        panels[2] = written(rgb(batch, second, row), f"cos {cosines[row]:.2f}")
        rows.append([*panels, *(written(rgb(batch, second, i), f"cos {cosines[i]:.2f}") for i in shown)])
    draw(name, ["image", first, second, *[others] * count], rows, breaks=(1, 3) if count else (1,))
