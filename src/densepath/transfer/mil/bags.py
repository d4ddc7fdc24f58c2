"""Bags of tiles: kept in memory as float16, or read each time where memory is too small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from densepath.core.errors import UserError, first_few
from densepath.core.records import UNLIKE
from densepath.core.streams import say
from densepath.core.system import available_memory, with_progress
from densepath.sources.tiles.tile_files import stored_text
from densepath.transfer.embed.slide_features import SlideFeatures, read_slide_features
from densepath.transfer.mil.extractor_record import ExtractorRecord
from densepath.transfer.mil.feature_files import slide_name

_EXTRACTOR = ("extractor", "encoder", "encoder_name", "model_name")  # as STAMP, TRIDENT and others name it
_SHARE = 0.6  # of the available memory that bags may take


@dataclass(frozen=True, eq=False)
class Bag:
    """The tiles of one or more slides.

    Args:
        name: of the slide or the patient.
        files: the files of features of its slides.
        lengths: numbers of tiles of these slides.
        kept: (N, D) float16; None for a bag that is read each time.
    """

    name: str
    files: tuple[Path, ...]
    lengths: tuple[int, ...]
    kept: Tensor | None = None

    def tiles(self) -> Tensor:
        """(N, D) float16."""
        if self.kept is not None:
            return self.kept
        return torch.from_numpy(np.concatenate([half(read_slide_features(file), file) for file in self.files]))


def read_bags(
    names: Sequence[str],
    files: Sequence[tuple[Path, ...]],
    see: Callable[[SlideFeatures], None] = lambda slide: None,
    mixed: bool = False,
) -> list[Bag]:
    """Read bags into memory, as many as fit; those that do not fit are read each time they are used.

    Args:
        names: of the bags.
        files: the files of each bag's slides.
        see: is called with the features of each slide.
        mixed: whether tiles that differ are reported and not refused.

    Raises:
        UserError: a file cannot be read or has no tiles; files differ in the width of their features, in what made
            them or in the tiles; the features hold NaN or Inf.
    """
    budget = _SHARE * available_memory()
    bags: list[Bag] = []
    known, others = _Known(), list[str]()
    for name, own in with_progress(zip(names, files, strict=True), len(names), "reading features"):
        parts = []
        for file in own:
            slide = read_slide_features(file)
            check_place(file, slide)
            known.check(file, slide)
            others += [f"{file} has features of tiles with {other}" for other in known.other_tiles(file, slide)]
            if others and not mixed:
                raise UserError(f"{others[0]}; use tiles of one kind")
            see(slide)
            parts.append(half(slide, file))
        tiles = parts[0] if len(parts) == 1 else np.concatenate(parts)
        budget -= tiles.nbytes
        lengths = tuple(map(len, parts))
        bags.append(Bag(name, tuple(own), lengths, torch.from_numpy(tiles) if budget > 0 else None))
    if others:
        say(f"densepath: warning: the study has tiles of several kinds: {first_few(others, 1)}")
    if away := sum(bag.kept is None for bag in bags):
        say(f"densepath: {away} of {len(bags)} bags do not fit into memory and are read each time; --max_tiles helps")
    return bags


def half(slide: SlideFeatures, file: Path) -> np.ndarray:
    """(N, D) float16 features of a slide.

    Raises:
        UserError: they hold NaN or Inf, or numbers that are too large.
    """
    tiles = torch.from_numpy(np.ascontiguousarray(slide.features)).half()  # several times as fast as NumPy's
    if tiles.numel() and not all(bound.isfinite() for bound in tiles.aminmax()):  # they are NaN if any number is
        raise UserError(f"{file} has features of NaN, Inf or beyond 65504; compute them again in --precision 32")
    return tiles.numpy()


def extractor_of(slide: SlideFeatures) -> str:
    """What made the features of a slide, as far as its file says; "" if it does not."""
    notes = slide.notes
    if "weights_digest" in notes:
        backbone = str(notes.get("backbone")).removesuffix(UNLIKE)  # up to version 0.1 it was recorded without the mark
        return f"{backbone} {notes['weights_digest'][:12]} stage {notes.get('stage')} {notes.get('pool')}"
    return str(next((notes[name] for name in _EXTRACTOR if notes.get(name)), ""))


class _Known:
    """What the first files of a study say: each property is that of the first file that knows it."""

    def __init__(self) -> None:
        self._first: tuple[Path, int, str] | None = None
        self._tiles: dict[str, tuple[Path, ExtractorRecord]] = {}

    def check(self, file: Path, slide: SlideFeatures) -> None:
        """Refuse features of another extractor.

        Raises:
            UserError: they are, or there are no tiles.
        """
        if not len(slide):
            raise UserError(f"{file} has no tiles; remove this slide from the table, or tile it again")
        wide, made = slide.features.shape[1], extractor_of(slide)
        self._first = self._first or (file, wide, made)
        other, before, made_before = self._first
        if wide != before:
            raise UserError(
                f"{file} has {wide} features for each tile, {other} has {before}; use those of one extractor"
            )
        if made != made_before:
            raise UserError(
                f"{file} has features of {made or 'an unknown extractor'}, {other} of "
                f"{made_before or 'an unknown one'}; use those of one extractor"
            )

    def other_tiles(self, file: Path, slide: SlideFeatures) -> list[str]:
        """In what the tiles differ from those of a file before; [] if they are alike."""
        record = ExtractorRecord.of(slide)
        for what in record.tiles():
            self._tiles.setdefault(what, (file, record))
        found = ((other, before.unlike(record)) for other, before in self._tiles.values())
        return [f"{differs} in {other}" for other, differs in found if differs][:1]


def check_place(file: Path, slide: SlideFeatures) -> None:
    """Refuse coordinates of another slide: by its name, or because they lie outside of this one."""
    name = str(slide.notes.get("name", "")).rpartition("/")[2]
    if name and slide_name(name) != slide_name(stored_text(file.name)):
        raise UserError(f"{file} has coordinates of the slide {name}; make these features again")
    extent = [slide.notes.get(f"level0_{side}") for side in ("width", "height")]
    if slide.corners is None or slide.unit != "px" or None in extent or not len(slide):
        return
    if (slide.corners.max(0) >= np.array(extent, float)).any():
        raise UserError(
            f"{file} has tiles outside of its slide of {extent[0]} x {extent[1]} pixels: coordinates of another slide; "
            "make these features again"
        )
