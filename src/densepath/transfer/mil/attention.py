"""The attention of the tiles of a slide: a table, QuPath's GeoJSON, a heat map, and the most extreme tiles."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from densepath.core.csv_files import table_writer
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.output_names import unused_name
from densepath.core.streams import say
from densepath.runs.closing import draw_safely
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.find import find_slides
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.slide import Slide
from densepath.sources.tiles.identity import identity_of, identity_of_slide, is_identity
from densepath.sources.tiles.tiled_slide import CHANGED
from densepath.transfer.embed.slide_features import SlideFeatures
from densepath.transfer.mil.feature_files import Names, slide_names
from densepath.transfer.mil.tile_sheet import draw_extremes
from densepath.transfer.probe.metrics import Floats
from densepath.transfer.slides.heat_map import files_of_map, write_heat_map

ATTENTION = "attention"  # a folder, and the name of a measurement
_DECIMALS = 6  # of pixels, which are computed from µm


class AttentionFiles:
    """Writes the attention in slides; pictures only of slides that can be opened.

    Args:
        out: the folder.
        classes: names of the classes.
        slides: a folder of slides; by default they are where the features were made from them.
        names: of all slides, after none of which a sheet of tiles is named.
    """

    def __init__(
        self, out: Path, classes: Sequence[str], slides: str | Path | None = None, names: Iterable[str] = ()
    ) -> None:
        self._out, self._classes, self._folder, self._all = out, classes, slides, frozenset(names)
        paths = [] if slides is None else find_slides(slides)
        below = slide_names([os.path.relpath(path, slides or "") for path in paths])
        self._paths = dict(zip(below, paths, strict=True))
        self._names = Names(list(self._paths))

    def write(
        self, name: str, tiles: SlideFeatures, attention: Floats, shown: int, drawn: bool = True
    ) -> list[int] | None:
        """Write ``NAME.csv``, and as far as the file of features says where its tiles are, the other files.

        Args:
            name: of the slide.
            tiles: the tiles; their features are not used.
            attention: (1, N), or (K, N), for each class.
            shown: the class whose attention is drawn.
            drawn: whether there are pictures.

        Returns:
            What the slide is known by, for :meth:`shows`, also if it has no pictures; None if they were not asked for,
            or drawing them failed.
        """
        stem = self._out / name
        write_table(stem.with_name(f"{stem.name}.csv"), tiles, attention, self._classes)
        slide, identity = self._open(name, tiles, drawn)
        spacing = tiles.spacing or (slide.spacing if slide is not None else None)
        if (boxes := boxes_px(tiles, spacing)) is not None:
            write_geojson(stem.with_name(f"{stem.name}.geojson"), boxes, attention, self._classes)
        if not drawn:
            return None
        if slide is None:
            return identity
        if spacing is None or tiles.corners is None:
            unknown = "the places of its tiles" if tiles.corners is None else "its µm per pixel"
            say(f"densepath: {name} has no pictures, as {unknown} are unknown")
            return identity
        own = attention[shown if len(attention) > 1 else 0]
        own = own / own.mean()  # 1 is the mean, however many tiles there are
        label = "attention" if len(attention) == 1 else f"attention for {self._classes[shown]}"
        label += " (mean 1)"
        um = tiles.boxes_um(spacing)
        done = (
            draw_safely(lambda: write_heat_map(stem, slide, um, own, label=label)[1]),
            draw_safely(lambda: draw_extremes(self._sheet(name), slide, um, own, label)),
        )
        return identity if all(done) else None

    def _sheet(self, name: str) -> Path:
        """The sheet of tiles of a slide, which is not the heat map of another slide."""
        return self._out / f"{unused_name(f'{name}_tiles', self._all)}.png"

    def unusual(self, name: str) -> list[str]:
        """The name of the sheet of tiles, if it is another one because of other slides."""
        sheet = self._sheet(name)
        return [sheet.name] if sheet != self._out / f"{name}_tiles.png" else []

    def files(self, name: str) -> list[Path]:
        """The files of a slide, of which some may be missing."""
        stem = self._out / name
        own = [stem.with_name(f"{stem.name}{end}") for end in (".csv", ".geojson")]
        return [*own, self._sheet(name), *files_of_map(stem)]

    def shows(self, name: str, noted: str | None, drawn: list[int] | None) -> bool:
        """Whether the pictures of a slide need not be drawn: this was tried with the slide as it is, or there is none.

        Args:
            name: of the slide.
            noted: its path, as the features name it.
            drawn: what :meth:`write` returned.
        """
        try:
            path = self._path(name, noted)
        except UserError:
            path = None
        if path is None:
            return drawn is not None or self._folder is None
        return drawn == identity_of(path)

    def _path(self, name: str, noted: str | None) -> str | None:
        """The slide of a name, if it is there. Raises UserError."""
        path = self._paths.get(self._names.find(name, "the features") or "", noted)
        return path if path is not None and os.path.exists(path) else None

    def _open(self, name: str, tiles: SlideFeatures, drawn: bool) -> tuple[Slide | None, list[int]]:
        """The slide, if it can be read, and its identity, if it is there; else says why, if it was to be drawn."""
        identity: list[int] = []
        try:
            if (path := self._path(name, slide_path(tiles))) is not None:
                identity = identity_of(path)
                return _open_as(path, tiles), identity
            if drawn and self._folder is not None:
                say(f"densepath: {name} has no pictures, as its slide is not in {self._folder}")
        except UserError as error:
            if drawn:
                say(f"densepath: {name} has no pictures: {error}")
        return None, identity


def _open_as(path: str, tiles: SlideFeatures) -> Slide:
    """A slide with the µm per pixel of its tiles, as far as their file says.

    Raises:
        CorruptImage: it cannot be read, or is not the one that was tiled.
    """
    slide = replace(open_slide(path), given=tiles.spacing)
    height, width = slide.size
    noted = tuple(tiles.notes.get(f"level0_{side}", own) for side, own in (("width", width), ("height", height)))
    if noted != (width, height):
        raise CorruptImage(path, f"not the slide that was tiled: {width} x {height} px, not {noted[0]} x {noted[1]} px")
    known = tiles.notes.get("slide")  # of densepath embed: the name, and what the files were known by
    if isinstance(known, list) and not is_identity(known[1:3], identity_of_slide(path), path):
        raise CorruptImage(path, f"not the slide that was tiled: {CHANGED}")
    return slide


def slide_path(tiles: SlideFeatures) -> str | None:
    """The path of their slide, which ``densepath embed`` notes."""
    path = tiles.notes.get("slide_path")
    return path if isinstance(path, str) else None


def boxes_px(tiles: SlideFeatures, spacing: tuple[float, float] | None) -> Floats | None:
    """(N, 4) left, top, width, height of tiles in pixels of level 0; None if that is unknown."""
    if tiles.corners is None or (tiles.unit == "um" and spacing is None):
        return None
    known = spacing or (1.0, 1.0)
    boxes = np.round(tiles.boxes_um(known) / np.array([*known, *known]), _DECIMALS)
    return boxes[:, [1, 0, 3, 2]]


def write_table(path: Path, tiles: SlideFeatures, attention: Floats, classes: Sequence[str]) -> None:
    """A row for each tile: its corner as the features have it, if they have one, and its attention.

    Args:
        path: a CSV file.
        tiles: the tiles.
        attention: (1, N), or (K, N), for each class.
        classes: names of the classes.
    """
    unit = "" if tiles.unit == "px" else "_um"
    with table_writer(path) as writer:
        places = [f"x{unit}", f"y{unit}"] if tiles.corners is not None else []
        writer.writerow(["tile", *places, *_names(len(attention), classes)])
        for tile, values in enumerate(attention.T):
            place = [f"{value:.10g}" for value in tiles.corners[tile]] if tiles.corners is not None else []
            writer.writerow([tile, *place, *(f"{value:.6g}" for value in values)])


def write_geojson(path: Path, boxes: Floats, attention: Floats, classes: Sequence[str]) -> None:
    """The tiles as QuPath's objects in pixels of level 0, each with its attention as measurements.

    Args:
        path: a GeoJSON file.
        boxes: (N, 4) left, top, width, height.
        attention, classes: as for :func:`write_table`.
    """
    names = _names(len(attention), classes)
    features = []
    for (x, y, width, height), values in zip(boxes.tolist(), attention.T.tolist(), strict=True):
        ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
        properties = {"objectType": "tile", "measurements": dict(zip(names, values, strict=True))}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    with atomic_write(path) as part:
        part.write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n")


def _names(rows: int, classes: Sequence[str]) -> list[str]:
    return [ATTENTION] if rows == 1 else [f"{ATTENTION}_{name}" for name in classes]
