"""``densepath show``: the views of a recipe, the concepts of sources and weights, the reconstructions of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import nn

from densepath.analysis.concepts import find_concepts
from densepath.analysis.panels import picture_file
from densepath.analysis.pictures import draw_concepts, draw_views
from densepath.analysis.reconstruction import draw_reconstruction
from densepath.analysis.short_names import short_names
from densepath.analysis.source import network_for, report_source
from densepath.annotations.label_cache import check_color
from densepath.concepts.build import build_source
from densepath.concepts.image_labels import FromPath, ImageLabels
from densepath.core.errors import UserError, counted
from densepath.core.paths import AnyPath, as_path, as_texts
from densepath.core.random import check_seed
from densepath.core.records import CONFIG
from densepath.core.single_values import take_single_values
from densepath.methods import METHODS
from densepath.nets.backbones import build_backbone
from densepath.runs.folder import read_config
from densepath.sources.batch import ImageBatch
from densepath.sources.loader import DrawViews
from densepath.sources.names import AllNames
from densepath.sources.open import check_size, open_images
from densepath.sources.other_bits import seen_as
from densepath.sources.pixel_source import PixelSource, bits_of
from densepath.training.caller_state import state_of_the_caller
from densepath.training.config import PretrainConfig
from densepath.training.load_run import load_run, pixels_of, read_run
from densepath.training.recipes import find_method
from densepath.training.reconstruction_images import first_images
from densepath.training.resolve import resolve
from densepath.views.declarations import without_color
from densepath.views.maker import ViewMaker

Columns = dict[str, list[np.ndarray]]  # title -> a label map for each tile


@take_single_values
@state_of_the_caller()
def show_views(
    *,
    data: AnyPath,
    out: str | Path,
    config: AnyPath = "concl",
    view_size: int | tuple[int, ...] | None = None,
    count: int = 6,
    seed: int = 0,
    exclude: Sequence[str] = (),
    epoch: int = 0,
) -> Path:
    """Draw images with the outlines of their views, and the views as in training.

    Args:
        data: a folder of images, a text list of files, a glob, or a packed store.
        out: a PNG file.
        config: a recipe, or a run's config.yaml: the method and the augmentation of its views.
        view_size: side of the views in pixels, or their size along each axis, instead of the recipe's.
        count: number of images.
        seed: seed of the choice of images and of their views.
        epoch: epoch of the views; each epoch has different views of the same images.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.

    Returns:
        ``out``.

    Raises:
        UserError: no such images or recipe, or a file name that does not end in .png.
    """
    data, config = as_path(data), as_path(config)
    out = picture_file(out, data)
    given = {} if view_size is None else {"view_size": view_size}
    recipe = resolve(PretrainConfig, config, {"data": data, "out": out, **given})
    size, method = recipe.view_size, find_method(recipe.method)
    images = open_images(data, cache="none", exclude=exclude)
    check_size(images, recipe.shortest_side // 2)
    spec = images.spec.override(recipe.mean, recipe.std, recipe.window, bits_of(images))
    run = read_config(Path(config).parent) if Path(config).name == CONFIG else None
    known = pixels_of(run) if run is not None and "pixels" in run else spec
    if known.channels == spec.channels:  # a run from weights normalizes as they were trained
        spec = spec.override(known.mean, known.std)
    with torch.random.fork_rng(devices=[]):  # some views depend on the options of the method
        made = method(build_backbone(str(recipe.backbone), spec.channels), **(recipe.method_options or {}))
    views, _ = without_color(made.views(recipe.augment), method.views(), spec)
    views = {name: view for name, view in views.items() if name not in made.unused_views}  # as in training
    batch = replace(_draw(images, count, seed), epoch=float(epoch))
    return draw_views(batch, ViewMaker(views, size, seed, spec)(batch), out, spec)


@take_single_values
@state_of_the_caller()
def show_concepts(
    *,
    data: AnyPath,
    out: str | Path,
    concepts: Sequence[str] = ("kmeans",),
    weights: Sequence[AnyPath] = ("random",),
    backbone: str | nn.Module | None = None,
    stages: Sequence[int] = (3, 4, 5),
    num_concepts: int = 8,
    grid_size: int = 3,
    superpixel_scale: int = 50,
    nucleus_radius: float = 8.0,
    saliency: str | None = None,
    regions: str | None = None,
    count: int = 6,
    seed: int = 0,
    exclude: Sequence[str] = (),
) -> Path:
    """Draw tiles and, next to each, the concepts of one or several sources.

    Args:
        data: a folder of images, a text list of files, a glob, or a packed store.
        out: a PNG file.
        concepts: sources of concepts, as in ConCL's option of this name: "kmeans", "grid", "superpixels", "nuclei",
            "saliency", "files".
        weights: for kmeans: weights of the backbone: files, run folders, "random", or timm names.
        backbone: for kmeans: a timm name, or in Python a network; default: that of the weights, resnet18 for random
            ones.
        stages: for kmeans: stages f1..f5 whose features are clustered.
        num_concepts: for kmeans: number of clusters K.
        grid_size: for grid: concepts per side.
        superpixel_scale: for superpixels: scale parameter of Felzenszwalb's algorithm.
        nucleus_radius: for nuclei: radius of a nucleus in pixels.
        saliency: for saliency: a model or a folder of masks.
        regions: for files: a folder of label maps.
        count: number of tiles.
        seed: seed of the choice of tiles, of random weights, and of the initial clusters.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.

    Returns:
        ``out``.

    Raises:
        UserError: no such images, concepts, weights or stage, or a file name that does not end in .png.
    """
    data = as_path(data)
    out = picture_file(out, data)
    names = short_names(concepts, "concepts")
    images = open_images(data, cache="none", exclude=exclude)
    batch = _draw(images, count, seed)
    stored = [images.read(position) for position in batch.index.tolist()]
    tiles = [images.spec.to_rgb(pixels) for pixels in stored]
    groups: list[Columns] = []
    for name in names:
        if name == "kmeans":
            groups += _clusters(stored, images, as_texts(weights), backbone, stages, num_concepts, seed)
            continue
        if name == "cells":
            raise UserError("concepts cells are made of cells; draw those with densepath show cells")
        source = build_source(
            name,
            num_concepts=num_concepts,
            stage=max(stages),
            grid_size=grid_size,
            superpixel_scale=superpixel_scale,
            nucleus_radius=nucleus_radius,
        )
        if isinstance(source, ImageLabels):
            labeller = source.labeller
            if isinstance(labeller, FromPath):
                path = {"saliency": saliency, "files": regions}[name]
                if path is None:
                    option = "saliency" if name == "saliency" else "regions"
                    raise UserError(f"concepts {name} need {labeller.what}; give it with --{option}")
                labeller = labeller.make(path)
            check_color(labeller, images.spec)
            labeller.begin(AllNames(images))
            files = (images.names(position) for position in batch.index.tolist())
            groups.append({name: [labeller.label(*pair) for pair in zip(tiles, files, strict=True)]})
        else:
            groups.append({name: [np.arange(grid_size**2).reshape(grid_size, grid_size)] * count})
    columns = {title: maps for group in groups for title, maps in group.items()}
    return draw_concepts(tiles, columns, out, breaks=list(accumulate(map(len, groups), initial=1))[:-1])


@take_single_values
@state_of_the_caller()
def show_reconstruction(
    *,
    data: AnyPath,
    run: AnyPath,
    out: str | Path,
    count: int = 6,
    seed: int = 0,
    exclude: Sequence[str] = (),
) -> Path:
    """Draw the reconstructions of a run that predicts pixels: visible patches, target and prediction of views.

    Args:
        data: a folder of images, a text list of files, a glob, or a packed store.
        run: the folder of a run of a method that predicts pixels; the run may still be in progress.
        out: a PNG file.
        count: number of images.
        seed: seed of the choice of images, of their views, and of the masks.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.

    Returns:
        ``out``.

    Raises:
        UserError: no such images or run, a run whose method predicts no pixels or that has no checkpoint yet, or a file
            name that does not end in .png.
    """
    data, run = as_path(data), as_path(run)
    out, run = picture_file(out, data), Path(run)
    name = read_run(run)["method"]
    if not find_method(name).predicts_pixels():
        predicting = ", ".join(known for known, method in METHODS.items() if method.predicts_pixels())
        raise UserError(f"the method {name} of {run} does not predict pixels; give a run of one of: {predicting}")
    method, record, _ = load_run(run)
    config = resolve(PretrainConfig, run / CONFIG, {})
    size = config.view_size
    images = open_images(data, cache="none", exclude=exclude)
    check_size(images, config.shortest_side // 2)
    spec = pixels_of(record)
    if (spec.channels, spec.ndim) != (images.spec.channels, images.spec.ndim):
        raise UserError(
            f"the run in {run} was trained on images with {counted(spec.channels, 'channel')}, but those of {data} "
            f"have {images.spec.channels}; give such images"
        )
    spec = seen_as(spec, images)
    views, _ = without_color(method.views(config.augment), method.views(), spec)
    maker = ViewMaker(views, size, seed, spec)
    made = maker(_draw(images, count, seed, maker.draw))
    return draw_reconstruction(method.eval().reconstruct(made), out, spec, panel=1.8)


def _clusters(
    tiles: list[np.ndarray],
    images: PixelSource,
    weights: Sequence[str],
    backbone: str | nn.Module | None,
    stages: Sequence[int],
    num_concepts: int,
    seed: int,
) -> list[Columns]:
    """The clusters of the features of several weights, on tiles as they are stored."""
    groups = []
    for source, title in zip(weights, short_names(weights, "weights"), strict=True):
        network, spec, _ = network_for(images, source, backbone, seed)
        maps = [find_concepts(network, tile, stages, num_concepts, seed, spec) for tile in tiles]
        name = f"{title} " if len(weights) > 1 else ""
        groups.append({f"{name}f{stage}": [m[stage] for m in maps] for stage in stages})
    return groups


def _draw(images: PixelSource, count: int, seed: int, draw: DrawViews | None = None) -> ImageBatch:
    """A random batch of images of a source; with ``draw`` only the boxes that their views need."""
    check_seed(seed)
    if not 1 <= count <= len(images):
        raise UserError(f"count is {count}; give a number from 1 to {len(images)}, the number of images")
    report_source(images)
    return first_images(images, count, seed, draw)
