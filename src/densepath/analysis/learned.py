"""What a backbone has learned so far: concepts and attention on a few images, and features of many for a map."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from densepath.analysis.attention import LastAttention, aggregated
from densepath.analysis.concepts import TileTooSmall, find_concepts
from densepath.analysis.pictures import paint_concepts
from densepath.core.files import atomic_write
from densepath.core.random import permute
from densepath.nets.backbones import Backbone
from densepath.sources.corrupt import CorruptImage
from densepath.sources.pixel_source import PixelSource, PixelSpec

FEATURES = "features.npz"
_SHOWN, _MAPPED, _LEAST_MAPPED = 6, 200, 48  # images
_SIDE, _THUMBNAIL = 224, 64  # pixels
_STAGE, _CONCEPTS = 4, 8
_AT_ONCE = 16  # images


@torch.no_grad()
def draw_learned(backbone: Backbone, images: PixelSource, folder: Path, step: int, seed: int) -> list[Path]:
    """Draw what a backbone finds in the same images as at other steps: ``densepath report`` puts a slider over them.

    ``concepts_STEP.png`` has a row of images, a row with the clusters of their features, and, of a vision transformer,
    one with the attention of its last block. ``features.npz`` has the features of more images with their thumbnails,
    for a map.

    Args:
        backbone: the backbone, in evaluation mode.
        images: images of two dimensions in grey or RGB; of others, nothing is drawn.
        folder: where to write.
        step: the number of optimizer steps done.
        seed: decides which images are drawn.

    Returns:
        The pictures.
    """
    if images.spec.ndim != 2 or images.spec.channels not in (1, 3) or len(images) < _SHOWN:
        return []
    squares = _squares(images, _positions(len(images), seed))
    drawn = _draw_rows(backbone, [pixels for _, pixels in squares[:_SHOWN]], images.spec, folder, step, seed)
    if len(squares) >= _LEAST_MAPPED:
        _write_features(backbone, squares, images, folder / FEATURES)
    return drawn


def _positions(count: int, seed: int) -> list[int]:
    """Which of ``count`` images are drawn, in this order."""
    drawn = min(count, _MAPPED) if count >= _LEAST_MAPPED else _SHOWN
    return [int(position) for position in permute(torch.arange(drawn), count, seed, 0)]


def _squares(images: PixelSource, positions: Sequence[int]) -> list[tuple[int, npt.NDArray[Any]]]:
    """The middle squares of images as they are stored, each with the position of its image."""
    found = []
    for position in positions:
        try:
            pixels = images.read(position)
        except CorruptImage:
            continue
        side = min(pixels.shape[:2])
        top, left = ((length - side) // 2 for length in pixels.shape[:2])
        found.append((position, pixels[top : top + side, left : left + side]))
    return found


def _draw_rows(
    backbone: Backbone, tiles: Sequence[npt.NDArray[Any]], spec: PixelSpec, folder: Path, step: int, seed: int
) -> list[Path]:
    """The picture of some tiles; none if they are too small for concepts."""
    stage = _STAGE if _STAGE in backbone.stages else max(backbone.stages)
    shown = [spec.to_rgb(tile) for tile in tiles]
    try:
        concepts = [find_concepts(backbone, tile, (stage,), _CONCEPTS, seed, spec)[stage] for tile in tiles]
    except TileTooSmall:
        return []
    painted = [paint_concepts(*pair) for pair in zip(shown, concepts, strict=True)]
    rows = [shown, [(255 * each).round().astype(np.uint8) for each in painted]]
    if backbone.patch_size > 1 and len({tile.shape for tile in tiles}) == 1:
        rows.append(_attention(backbone, tiles, shown, spec))
    sides = [[_resized(tile) for tile in row] for row in rows]
    picture = np.concatenate([np.concatenate(row, axis=1) for row in sides])
    path = folder / f"concepts_{step:07d}.png"
    with atomic_write(path) as part:
        Image.fromarray(picture).save(part, format="PNG")
    return [path]


def _attention(
    backbone: Backbone, tiles: Sequence[npt.NDArray[Any]], shown: Sequence[npt.NDArray[np.uint8]], spec: PixelSpec
) -> list[npt.NDArray[np.uint8]]:
    """Tiles with the attention that each patch gets, on average over the heads, from blue to yellow."""
    pixels = _network_input(tiles, spec, backbone)
    given, _ = LastAttention(backbone)(pixels)
    patch = backbone.patch_size
    maps = aggregated(given).mean(1).unflatten(1, (pixels.shape[2] // patch, pixels.shape[3] // patch))
    drawn = []
    for tile, values in zip(shown, maps.float().cpu().numpy(), strict=True):
        scaled = (values - values.min()) / max(float(np.ptp(values)), 1e-9)
        colors = (matplotlib.colormaps["viridis"](scaled)[..., :3] * 255).astype(np.uint8)
        large = np.asarray(Image.fromarray(colors).resize(tile.shape[1::-1], Image.Resampling.BICUBIC))
        drawn.append((0.4 * tile + 0.6 * large).astype(np.uint8))
    return drawn


def _network_input(tiles: Sequence[npt.NDArray[Any]], spec: PixelSpec, backbone: Backbone) -> Tensor:
    """Squares as a batch (B, C, S, S) of one size that the network takes."""
    stride = max(max(backbone.strides[stage]) for stage in backbone.stages)
    side = max(stride, min(_SIDE, max(len(tile) for tile in tiles)) // stride * stride)
    made = []
    for tile in tiles:
        stored = torch.from_numpy(np.ascontiguousarray(tile)).float().permute(2, 0, 1).unsqueeze(0)
        made.append(F.interpolate(stored, (side, side), mode="bilinear", antialias=True, align_corners=False))
    pixels = spec.normalize(spec.apply_window(torch.cat(made)))
    return pixels.to(next(backbone.parameters()).device)


def _write_features(
    backbone: Backbone, squares: Sequence[tuple[int, npt.NDArray[Any]]], images: PixelSource, path: Path
) -> None:
    features, spec = [], images.spec
    tiles = [pixels for _, pixels in squares]
    for start in range(0, len(tiles), _AT_ONCE):
        pixels = _network_input(tiles[start : start + _AT_ONCE], spec, backbone)
        stage = max(backbone.stages)
        features.append(backbone(pixels, last=stage)[stage].mean((2, 3)).float().cpu())
    sheet = np.concatenate([_resized(spec.to_rgb(tile), _THUMBNAIL) for tile in tiles])
    thumbnails = io.BytesIO()
    Image.fromarray(sheet).save(thumbnails, "JPEG", quality=80)
    names = [Path(str(images.names(position))).name for position, _ in squares]
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez(
            file,
            features=torch.cat(features).half().numpy(),
            names=np.array([name.encode("utf-8", "replace").decode() for name in names]),
            thumbnails=np.frombuffer(thumbnails.getvalue(), np.uint8),
        )


def _resized(tile: npt.NDArray[np.uint8], side: int = _SIDE) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling.BICUBIC))
