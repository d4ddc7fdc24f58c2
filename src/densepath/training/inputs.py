"""Inputs of methods besides pixels, from the options of a run: classes, label maps, frozen networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densepath.annotations.cells.cell_points import CellPoints
from densepath.annotations.classes import FOLDERS, Classes, read_classes
from densepath.annotations.label_cache import label_images
from densepath.annotations.label_maps import LabelMaps
from densepath.concepts.image_labels import FromPath
from densepath.core.digests import digest_of, digest_of_tensors
from densepath.core.errors import UserError, that_or_these
from densepath.methods.base import Method
from densepath.methods.needs import Need
from densepath.nets.teachers import ACCEPTED, build_teacher
from densepath.nets.tokenizers import load_tokenizer
from densepath.sources.packing import SUFFIX
from densepath.sources.pixel_source import PixelSource
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.training.config import PretrainConfig
from densepath.training.recipes import name_of


def check_inputs(method: Method, config: PretrainConfig) -> None:
    """Check that the options of a run give what its method needs, before any file is read.

    Raises:
        UserError: an input is missing, or one is given that has no effect.
    """
    name, needs = name_of(config.method), list(method.needs().values())
    kinds = {need.kind for need in needs}
    if "teacher" in kinds and not config.teacher:
        raise UserError(f"{name} needs a teacher; name one with --teacher: {ACCEPTED}")
    if "tokenizer" in kinds and not config.tokenizer:
        raise UserError(f"{name} needs a tokenizer; train one with --config vq_kd and give its run: --tokenizer RUN")
    if "cells" in kinds and config.cells is None:
        raise UserError(f"{name} needs cells; find them with densepath cells --data DATA --out C and give --cells C")
    wanting = [need.labeller for need in needs if isinstance(need.labeller, FromPath)]
    if wanting and config.regions is None:
        raise UserError(f"{name} needs {wanting[0].what}; give it with --regions")
    given = {
        "labels": config.labels != FOLDERS and "classes" not in kinds,
        "regions": config.regions is not None and not wanting,
        "cells": config.cells is not None and "cells" not in kinds,
        "teacher": bool(config.teacher or config.teacher_weights) and "teacher" not in kinds,
        "tokenizer": bool(config.tokenizer) and "tokenizer" not in kinds,
    }
    if idle := [f"--{option}" for option, has_no_effect in given.items() if has_no_effect]:
        raise UserError(f"{name} with these options does not use {' and '.join(idle)}; leave {that_or_these(idle)} out")


def make_inputs(method: Method, config: PretrainConfig, images: PixelSource) -> dict[str, Any]:
    """The inputs that a method needs, by its names for them.

    Args:
        method: the method to train.
        config: has the paths of the files.
        images: the source of the run's images.

    Raises:
        UserError: a file is missing or invalid.
    """
    return {name: _make(need, config, images) for name, need in method.needs().items()}


def digests_of(method: Method, inputs: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the cells and of --regions among a method's inputs, which must be the same when a run is resumed.

    Label maps whose labels mean the same in all images are marked as such.

    Arguments as for :func:`checksums_of`.
    """
    found: dict[str, str] = {}
    for name, value in inputs.items():
        if isinstance(value, CellPoints):
            found |= {name: value.digest(), f"{name}_found": value.digest_of_results()}
        elif isinstance(value, LabelMaps) and isinstance(method.needs()[name].labeller, FromPath):
            found[name] = value.digest
            if value.classes:
                found[f"{name}_numbers"] = "kept"
    return {name: digest for name, digest in found.items() if digest}


def checksums_of(method: Method, inputs: Mapping[str, Any]) -> dict[str, str]:
    """A digest of a method's inputs of each kind but cells, whose digests are those of :func:`digests_of`.

    Args:
        method: the method to train.
        inputs: those of :func:`make_inputs`.
    """
    found: dict[str, list[str]] = {}
    for name, value in inputs.items():
        if isinstance(value, Classes):
            digest = digest_of([*value.names, digest_of_tensors({"labels": value.labels})])
        elif isinstance(value, LabelMaps):
            digest = value.digest
        elif isinstance(value, nn.Module):
            digest = digest_of_tensors(value.state_dict())
        else:
            continue
        found.setdefault(method.needs()[name].kind, []).append(digest)
    return {kind: digest_of(digests) for kind, digests in found.items()}


def _make(need: Need, config: PretrainConfig, images: PixelSource) -> Any:
    if need.kind == "classes":
        # Names in a store are relative to the folder of the images, and those of tiles to that of the slides
        relative = str(config.data).lower().endswith(SUFFIX) or isinstance(images, SlideTiles)
        root = "" if relative else config.data if Path(config.data).is_dir() else None
        return read_classes(images, str(config.labels), root)
    if need.kind == "cells":
        assert config.cells is not None, "call check_inputs first"
        return CellPoints(images, config.cells)
    if need.kind == "regions":
        labeller = need.labeller
        if isinstance(labeller, FromPath):
            assert config.regions is not None, "call check_inputs first"
            labeller = labeller.make(config.regions)
        assert labeller is not None
        return label_images(images, labeller, config.cache_dir)
    with torch.random.fork_rng(devices=[]):  # building the network must not change the method's initial weights
        if need.kind == "teacher":
            return build_teacher(str(config.teacher), str(config.teacher_weights or ""))
        return load_tokenizer(str(config.tokenizer))
