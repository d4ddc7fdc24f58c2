"""Pictures: the views of a batch, concepts on tiles, objects on images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke
from skimage.segmentation import find_boundaries
from torch import Tensor

from densepath.analysis.panels import (
    CONCEPTS,
    INK,
    LINES,
    OBJECTS,
    WRONG,
    PanelGrid,
    frame,
    save,
    show,
)
from densepath.annotations.coco import CocoImages
from densepath.core.affine import apply, identity, warp_points
from densepath.core.boxes import onto_boxes
from densepath.core.resampling import sample
from densepath.core.slices import upright
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.detection.instances import objects_of
from densepath.transfer.detection.object_colors import color_numbers, near_boxes
from densepath.transfer.detection.overlay import match_masks
from densepath.views.view import Batch

_RGB = PixelSpec()
_CORNERS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
_POINTS = _CORNERS / 2
_SHOWN_SCORE = 0.5  # detections with a lower score are not drawn


def draw_views(images: ImageBatch, batch: Batch, path: str | Path, spec: PixelSpec = _RGB) -> Path:
    """Draw each image with the outlines of its views, and the views next to it.

    A dot marks one corner of each view, so that flips and rotations are visible. Numbers mark four points of the first
    view in all views that show them. Several crops of one view share a panel, without numbers. Of volumes, the middle
    axial slices are drawn, with the anterior side on top and in mm, without numbers, and the outlines are those of the
    views' middle slices.

    Args:
        images: the images that the views were made from.
        batch: the views.
        path: a PNG file.
        spec: what the images' numbers mean, and how the views are normalized.
    """
    grid = PanelGrid(len(batch), 1 + len(batch.views), titles=["image", *batch.views], breaks=[1])
    for row, axes in enumerate(grid.axes):
        *depth, height, width = images.sizes[row].tolist()
        image = images.pixels[row, depth[0] // 2] if depth else images.pixels[row]
        if images.extent is not None:
            image = _tile(images, row)
        colors = _image_colors(image[:height, :width], spec)
        show(axes[0], upright(colors) if depth else colors)
        sides = torch.tensor([width, height], dtype=torch.float32)
        if depth and images.spacing is not None:
            sides *= images.spacing[row, 1:].flip(0)
            axes[0].set_aspect(float(sides[1] / height / (sides[0] / width)))
        first = next(iter(batch.views.values()))
        # The first view is drawn last: it lies on top.
        for view, color, panel in reversed(list(zip(batch.views.values(), cycle(LINES), axes[1:], strict=False))):
            crops = range(row, len(view.pixels), len(batch))
            show(panel, _mosaic([colors_of(view.pixels[crop], spec) for crop in crops]))
            frame(panel, color)
            down, across = view.pixels.shape[-2:]
            at = 0.96 if depth else 0.04
            panel.plot(across * at, down * at, "o", color=color, ms=5, mec="white", mew=0.8)
            if depth:
                x, y = (view.map[row, :2, :2] * sides.unsqueeze(1)).norm(dim=0).tolist()
                panel.set_aspect(y / down / (x / across))
            for crop in crops:
                corners = F.pad(_CORNERS, (0, len(depth))).unsqueeze(0)
                corners = apply(view.map[crop : crop + 1], corners)[0, :, :2]
                corners = (1 + (-corners if depth else corners)) / 2 * torch.tensor([width, height])
                _outline(axes[0], corners.numpy(), color)
            if not depth and len(batch.views) > 1 and len(view.pixels) == len(first.pixels) == len(batch):
                moved, inside = warp_points(_POINTS[None], first.map[row : row + 1], view.map[row : row + 1])
                _number(panel, moved[0], inside[0], view.pixels.shape[2:])
    return save(grid.figure, path)


def _tile(images: ImageBatch, row: int) -> Tensor:
    """An image (H, W, C) at its own resolution, from the pixels that a slide stores."""
    assert images.boxes is not None and images.extent is not None
    rows = slice(row, row + 1)
    maps = onto_boxes(identity(1), images.sizes[rows], *images.boxes[rows].unbind(1))
    pixels = images.pixels[rows].cpu().movedim(-1, 1)
    image = sample(pixels, maps.float(), images.sizes[row].tolist(), extent=images.extent[rows])
    return image[0].movedim(0, -1).round().to(images.pixels.dtype)


def _number(panel: Axes, points: Tensor, inside: Tensor, size: Sequence[int]) -> None:
    """Write the number of each point (N, 2), x y in normalized coordinates, onto a view of ``size`` (H, W)."""
    for number, (x, y) in enumerate(((points + 1) / 2 * torch.tensor(size[::-1])).tolist(), 1):
        if inside[number - 1]:
            text = panel.text(x, y, str(number), color="white", size=8, weight="bold", ha="center", va="center")
            text.set_path_effects([withStroke(linewidth=2, foreground=INK)])


def _mosaic(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles (H, W, 3) of one size in rows of a square, row by row, with white between them."""
    if len(tiles) == 1:
        return tiles[0]
    across = math.ceil(math.sqrt(len(tiles)))
    height, width = tiles[0].shape[:2]
    gap = max(1, width // 24)
    mosaic = np.ones((across * (height + gap) - gap, across * (width + gap) - gap, 3))
    for number, tile in enumerate(tiles):
        top, left = number // across * (height + gap), number % across * (width + gap)
        mosaic[top : top + height, left : left + width] = tile
    return mosaic


def _image_colors(image: Tensor, spec: PixelSpec) -> np.ndarray:
    """What a picture shows of stored values (H, W, C): (H, W, 3)."""
    if spec.ndim == 2 and spec.channels in (1, 3):
        return spec.to_rgb(image.cpu().numpy())
    colors = _shown_channels(spec.apply_window(image.movedim(-1, 0).float().cpu()))
    return colors.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _shown_channels(pixels: Tensor) -> Tensor:
    """Of pixels (C, H, W), colors or the first channel."""
    return pixels if len(pixels) == 3 else pixels[:1]


def colors_of(pixels: Tensor, spec: PixelSpec = _RGB) -> np.ndarray:
    """The colors (H, W, 3) in [0, 1] of pixels (C, *spatial) that were normalized as ``spec`` says.

    Of volumes, those of the middle axial slice, upright; of other pixels than RGB, the grey of the first channel.
    """
    flat = pixels if pixels.ndim == 3 else pixels[:, pixels.shape[1] // 2]
    colors = _shown_channels(spec.restore(flat.detach().float().cpu().unsqueeze(0))[0])
    made = colors.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return made if pixels.ndim == 3 else upright(made)


def draw_concepts(
    tiles: Sequence[np.ndarray],
    columns: Mapping[str, Sequence[np.ndarray]],
    path: str | Path,
    *,
    breaks: Sequence[int] = (1,),
) -> Path:
    """Draw tiles and, next to each, the concepts of several sources.

    Args:
        tiles: images (H, W, 3) uint8.
        columns: title -> a label map (h, w) for each tile, at its own resolution.
        path: a PNG file.
        breaks: columns with a wider gap on their left; the tiles are column 0.
    """
    grid = PanelGrid(len(tiles), 1 + len(columns), titles=["tile", *columns], breaks=breaks)
    for row, (tile, axes) in enumerate(zip(tiles, grid.axes, strict=True)):
        show(axes[0], tile)
        for panel, maps in zip(axes[1:], columns.values(), strict=True):
            show(panel, paint_concepts(tile, maps[row]))
    return save(grid.figure, path)


def paint_concepts(tile: np.ndarray, labels: np.ndarray, strength: float = 0.62) -> np.ndarray:
    """A tile blended with the colors of its concepts, from violet for the darkest to red for the lightest.

    Args:
        tile: (H, W, 3) uint8.
        labels: (h, w) ids; every entry covers an equal part of the tile.
        strength: weight of the concept's color.

    Returns:
        (H, W, 3) float in [0, 1].
    """
    height, width = tile.shape[:2]
    rows = np.arange(height) * labels.shape[0] // height
    columns = np.arange(width) * labels.shape[1] // width
    full = labels[np.ix_(rows, columns)]
    grey = tile.mean(axis=2) / 255
    ids = np.unique(full)
    from_dark = ids[np.argsort([grey[full == i].mean() for i in ids])]
    palette = np.array([to_rgb(c) for c in CONCEPTS])
    places = np.linspace(0, len(palette) - 1, max(len(ids), 2))
    colors = np.stack([np.interp(places, np.arange(len(palette)), palette[:, c]) for c in range(3)], axis=1)
    painted = np.empty((height, width, 3))
    for place, i in enumerate(from_dark):
        painted[full == i] = colors[place]
    # The brightness of the tissue stays visible.
    mixed = strength * painted + (1 - strength) * grey[..., None]
    mixed[find_boundaries(full, mode="inner")] *= 0.75
    return mixed


def draw_detections(
    images: CocoImages, runs: Mapping[str, str | Path], path: str | Path, *, indices: Sequence[int]
) -> Path:
    """Draw images with the outlines of their objects, and next to each the detections of detectors.

    A detection has the color of the true object that it matches (mask IoU of at least 0.5, or box IoU if a detector
    finds boxes only), and is red if there is no match. Dashed red outlines: true objects without a detection.

    Args:
        images: a data set with its ground truth.
        runs: title -> folder of a detection run.
        path: a PNG file.
        indices: indices of the images to draw.
    """
    found = {title: json.loads((Path(run) / "predictions.json").read_text()) for title, run in runs.items()}
    grid = PanelGrid(len(indices), 1 + len(runs), titles=["truth", *runs], breaks=[1])
    for axes, index in zip(grid.axes, indices, strict=True):
        sample = images[index]
        truth = list(sample["masks"])
        boxes = [(int(y1), int(x1), int(y2), int(x2)) for x1, y1, x2, y2 in np.asarray(sample["boxes"]).round()]
        numbers = color_numbers(near_boxes(boxes))  # objects that touch differ
        colors = [OBJECTS[numbers[i] % len(OBJECTS)] for i in range(len(truth))]
        paint_objects(axes[0], sample["image"], truth, colors)
        for panel, results in zip(axes[1:], found.values(), strict=True):
            confident = [r for r in results if r["image_id"] == sample["image_id"] and r["score"] >= _SHOWN_SCORE]
            wanted, masks = objects_of(sample, confident)
            matches = match_masks(wanted, masks)
            missed = [mask for number, mask in enumerate(wanted) if number not in matches]
            drawn = [*missed, *masks], [WRONG] * len(missed) + [WRONG if m is None else colors[m] for m in matches]
            paint_objects(panel, sample["image"], *drawn, dashed=len(missed))
    return save(grid.figure, path)


def paint_objects(
    axes: Axes, image: np.ndarray, masks: Sequence[np.ndarray], colors: Sequence[str], dashed: int = 0
) -> None:
    """Show an image (H, W, 3) uint8 with the outlines of objects, masks (H, W) bool, in a panel; the first dashed."""
    show(axes, image)
    height, width = image.shape[:2]
    # One pixel of background around the mask closes the outlines of objects at the border.
    xs, ys = np.arange(-1, width + 1) + 0.5, np.arange(-1, height + 1) + 0.5
    for number, (mask, color) in enumerate(zip(masks, colors, strict=True)):
        if mask.any():
            padded = np.pad(mask, 1).astype(float)
            style = "dashed" if number < dashed else "solid"
            axes.contour(xs, ys, padded, levels=[0.5], colors="#1a1a1a", linewidths=2.8, linestyles=style)
            axes.contour(xs, ys, padded, levels=[0.5], colors=color, linewidths=1.7, linestyles=style)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _outline(axes: Axes, corners: np.ndarray, color: str) -> None:
    for line, ink in ((3.2, "white"), (1.9, color)):
        axes.add_patch(Polygon(corners, fill=False, ec=ink, lw=line, joinstyle="round", clip_on=False))
    axes.plot(*corners[0], "o", color=color, ms=5, mec="white", mew=0.8, clip_on=False)
