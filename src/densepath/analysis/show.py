"""What a user can have drawn: the views that a recipe makes, the concepts that weights see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from densepath.analysis.concepts import find_concepts
from densepath.analysis.pictures import draw_concepts, draw_views
from densepath.core.errors import UserError
from densepath.images.batch import ImageBatch
from densepath.images.loader import ImageBatches
from densepath.images.sources import ImageFiles, PackedTiles, check_size, open_images
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights
from densepath.training.recipes import find_method, load_recipe, typed_options
from densepath.views.maker import ViewMaker


def show_views(
    *,
    data: str | Path,
    out: str | Path,
    config: str | Path = "concl",
    view_size: int | None = None,
    count: int = 6,
    seed: int = 0,
    epoch: int = 0,
) -> Path:
    """Draw images with the outlines of their views, and the views beside them, as a training sees them.

    Args:
        data: a folder of images, a text list of files, a glob, or a packed store.
        out: a PNG file.
        config: a recipe, or a run's config.yaml: which method, and how its views vary.
        view_size: height and width of the views in pixels, instead of the recipe's.
        count: how many images.
        seed: of the images that are drawn, and of their views.
        epoch: the same images have other views in another epoch.

    Returns:
        ``out``.

    Raises:
        UserError: no such images or recipe, or a file name that does not end in .png.
    """
    out = _picture(out)
    recipe = typed_options(load_recipe(config))
    size = recipe.get("view_size", 224) if view_size is None else view_size
    if type(size) is not int or size < 1:
        raise UserError(f"view_size is {size!r}; give a number of pixels")
    views = find_method(recipe.get("method", "concl")).views(recipe.get("augment"))
    images = open_images(data, cache="none")
    check_size(images, size // 2)
    batch = replace(_draw(images, count, seed), epoch=float(epoch))
    return draw_views(batch, ViewMaker(views, size, seed)(batch), out)


def show_concepts(
    *,
    data: str | Path,
    out: str | Path,
    weights: Sequence[str] = ("random",),
    backbone: str = "resnet18",
    stages: Sequence[int] = (3, 4, 5),
    num_concepts: int = 8,
    count: int = 6,
    seed: int = 0,
) -> Path:
    """Draw tiles and, beside each, the concepts that one or several weights see on it.

    Args:
        data: a folder of images, a text list of files, a glob, or a packed store.
        out: a PNG file.
        weights: files, run folders, "random", or timm names.
        backbone: a timm name.
        stages: which features f1..f5 are clustered.
        num_concepts: K.
        count: how many tiles.
        seed: of the tiles that are drawn, of random weights, and of the clusters' starts.

    Returns:
        ``out``.

    Raises:
        UserError: no such images, weights or stage, or a file name that does not end in .png.
    """
    out = _picture(out)
    batch = _draw(open_images(data, cache="none"), count, seed)
    tiles = [p[: int(h), : int(w)].numpy() for p, (h, w) in zip(batch.pixels, batch.sizes, strict=True)]
    columns: dict[str, list[np.ndarray]] = {}
    sources = [weights] if isinstance(weights, str) else weights
    for source in sources:
        torch.manual_seed(seed)
        network = build_backbone(backbone)
        load_weights(network, source)
        maps = [find_concepts(network, tile, stages, num_concepts, seed) for tile in tiles]
        name = f"{Path(source).stem} " if len(sources) > 1 else ""
        columns |= {f"{name}f{stage}": [m[stage] for m in maps] for stage in stages}
    return draw_concepts(tiles, columns, out, breaks=range(1, 1 + len(columns), len(stages)))


def _draw(images: ImageFiles | PackedTiles, count: int, seed: int) -> ImageBatch:
    """Some images of a source, by chance."""
    if not 1 <= count <= len(images):
        raise UserError(f"count is {count}; there are {len(images)} images to draw")
    return next(iter(ImageBatches(images, batch_size=count, seed=seed, max_steps=1)))


def _picture(out: str | Path) -> Path:
    if Path(out).suffix.lower() != ".png":
        raise UserError(f"a picture cannot be written to {out}; name a file that ends in .png")
    return Path(out)
