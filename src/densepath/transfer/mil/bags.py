"""Bags of tiles: kept in memory as float16, or read each time where memory is too small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.streams import say
from densepath.core.system import available_memory, with_progress
from densepath.transfer.mil.slide_features import SlideFeatures, read_slide_features

_SHARE = 0.6  # of the available memory that bags may take


@dataclass(frozen=True, eq=False)
class Bag:
    """The tiles of one or more slides.

    Args:
        name: of the slide or the patient.
        files: the files of features of its slides.
        kept: (N, D) float16; None for a bag that is read each time.
    """

    name: str
    files: tuple[Path, ...]
    kept: Tensor | None = None

    def tiles(self) -> Tensor:
        """(N, D) float16."""
        if self.kept is not None:
            return self.kept
        return torch.from_numpy(np.concatenate([half(read_slide_features(file), file) for file in self.files]))


def read_bags(names: Sequence[str], files: Sequence[tuple[Path, ...]]) -> list[Bag]:
    """Read bags into memory, as many as fit; those that do not fit are read each time they are used.

    Args:
        names: of the bags.
        files: the files of each bag's slides.

    Raises:
        UserError: a file cannot be read or has no tiles; files differ in the width of their features or in what made
            them; the features hold NaN or Inf.
    """
    budget = _SHARE * available_memory()
    bags: list[Bag] = []
    first: tuple[Path, SlideFeatures] | None = None
    for name, own in with_progress(zip(names, files, strict=True), len(names), "reading features"):
        parts = []
        for file in own:
            slide = read_slide_features(file)
            first = first or (file, slide)
            _check_alike(file, slide, *first)
            parts.append(half(slide, file))
        tiles = parts[0] if len(parts) == 1 else np.concatenate(parts)
        budget -= tiles.nbytes
        bags.append(Bag(name, tuple(own), torch.from_numpy(tiles) if budget > 0 else None))
    if away := sum(bag.kept is None for bag in bags):
        say(f"densepath: {away} of {len(bags)} bags do not fit into memory and are read each time; --max_tiles helps")
    return bags


def half(slide: SlideFeatures, file: Path) -> np.ndarray:
    """(N, D) float16 features of a slide.

    Raises:
        UserError: they hold NaN or Inf, or numbers that are too large.
    """
    with np.errstate(over="ignore"):
        tiles = np.ascontiguousarray(slide.features, dtype=np.float16)
    if not np.isfinite(tiles).all():
        raise UserError(f"{file} has features of NaN, Inf or beyond 65504; compute them again in --precision 32")
    return tiles


def _check_alike(file: Path, slide: SlideFeatures, other: Path, first: SlideFeatures) -> None:
    if not len(slide.features):
        raise UserError(f"{file} has no tiles; remove this slide from the table, or tile it again")
    wide, before = slide.features.shape[1], first.features.shape[1]
    if wide != before:
        raise UserError(f"{file} has {wide} features for each tile, {other} has {before}; use those of one extractor")
    made, made_before = slide.extractor, first.extractor
    if made != made_before:
        raise UserError(
            f"{file} has features of {made or 'an unknown extractor'}, {other} of {made_before or 'an unknown one'}; "
            "use those of one extractor"
        )
