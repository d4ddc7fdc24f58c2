"""Slides with what was found on them as layers: tissue, tiles, attention, objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from densepath.annotations.cells.cell_files import CELLS, cell_path, read_cell_rows, read_cells
from densepath.core.errors import UserError, one_line
from densepath.core.geojson import polygons_in
from densepath.core.json_files import load_json
from densepath.report.blocks import Layers, Picture
from densepath.report.embedded import below, encode, encode_pixels
from densepath.report.paths import inside, own_file, recorded_data
from densepath.report.runs import Run
from densepath.runs.folder import read_config
from densepath.sources.decode import read_image
from densepath.sources.listing import SUFFIXES as IMAGES
from densepath.sources.slides.find import SUFFIXES
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.resolution import spacing_of_text
from densepath.sources.tiles.tile_files import SLIDES, SlideTiling, is_tile_folder, read_slide_rows, read_tile_folder
from densepath.sources.tiles.tiled_slide import open_tiled
from densepath.transfer.slides.overview import SlidePicture, slide_picture

_OUTLINES = {"tissue": "tissue", "objects": "geojson", "attention": "attention"}  # layer -> the folder of its GeoJSON
_COLORS = {"tissue": (0, 140, 0), "tiles": (40, 60, 255), "objects": (220, 30, 30), "attention": (40, 60, 255)}
_CLASS_COLORS = ((0, 70, 255), (255, 200, 0), (0, 200, 90), (220, 30, 160), (255, 110, 0), (0, 200, 220))
_TILES = "tiles"  # a folder of tile in one of predict
_SIDE = 900  # pixels
_MOST_CELLS, _MOST_CLASSES = 200_000, 6
_LARGEST = 2**26  # bytes of a GeoJSON

Rings = Sequence[npt.NDArray[np.float64]]  # (N, 2) x, y in pixels of level 0
Shape = tuple[Rings, float | None]  # a polygon, and its value from 0 to 1


def slide_layers(run: Run, most: int) -> tuple[list[Layers], list[str]]:
    """Of at most ``most`` slides in a folder of ``tile``, ``cells`` or ``predict``, the slide and what was found.

    Returns:
        The slides, and lines on those that are left out.
    """
    folder = run.path
    try:
        own_file(folder, SLIDES), own_file(folder, CELLS)
        of_cells = (folder / CELLS).is_file()
        inner = own_file(folder, _TILES)  # of predict, which has cut new slides into tiles
        place = run.data if of_cells else inner if is_tile_folder(inner) else folder  # the folder of tiles
        known = [row for row in (read_cell_rows(folder) if of_cells else read_slide_rows(place)) if row["path"]]
        rows = [row for row in known if below(folder, row["slide"])][:most]
    except (UserError, OSError, LookupError):
        return [], []
    tilings = _tilings(place, [row["slide"] for row in rows])
    roots = [folder, *_recorded(run)]
    made, lines = [], []
    for row in rows:
        name, path = row["slide"], _started(run, row["path"])
        if not inside(path, *roots) or not path.name.lower().endswith((*SUFFIXES, *IMAGES)):
            lines.append(f"{name}: {row['path']} is not an image in the run folder or its data, and is not read")
            continue
        tiling = tilings.get(name)
        try:
            picture = _slide_picture(path, row, tiling, plain=of_cells and not is_tile_folder(place))
        except (UserError, OSError, ValueError) as error:
            lines.append(f"{name}: the slide cannot be read ({one_line(str(error))})")
            continue
        files = {layer: f"{part}/{name}.geojson" for layer, part in _OUTLINES.items()}
        shapes = {layer: _shapes(folder, file, lines) or _shapes(place, file, lines) for layer, file in files.items()}
        if tiling is not None:
            boxes = tiling.boxes_um() / np.tile(tiling.spacing, 2)
            shapes["tiles"] = [([_rectangle(*box)], None) for box in boxes.tolist()]
        layers = _cells(folder, name, picture, lines) if of_cells else {}
        layers |= {layer: _drawn(picture, own, layer) for layer, own in shapes.items() if own}
        if layers:
            made.append(Layers(name, Picture(encode_pixels(picture.pixels, _SIDE), name), layers))
    if len(known) > len(rows):
        lines.insert(0, f"The first {len(rows)} of {len(known):,} slides are drawn.")
    return made, lines


def _slide_picture(path: Path, row: Mapping[str, str], tiling: SlideTiling | None, plain: bool) -> SlidePicture:
    """A slide as a small picture, with the µm per pixel that its folder knows; or an image, if ``plain``.

    Raises:
        UserError: it cannot be read.
    """
    if tiling is not None:
        return slide_picture(open_tiled(replace(tiling, path=str(path))), _SIDE)
    spacing = spacing_of_text(row["mpp"]) if row.get("mpp") else None
    try:
        return slide_picture(replace(open_slide(path), given=spacing), _SIDE)
    except UserError:
        if not plain:
            raise
    small = Image.fromarray(pixels := read_image(path))
    small.thumbnail((_SIDE, _SIDE))
    step = pixels.shape[0] / small.height, pixels.shape[1] / small.width
    y, x = spacing or (1.0, 1.0)
    return SlidePicture(np.asarray(small), step, (y * step[0], x * step[1]))


def _tilings(folder: Path, names: Sequence[str]) -> dict[str, SlideTiling]:
    """The tiles of slides in a folder of ``tile``, as far as it has some."""
    if not names or not is_tile_folder(folder) or not all(inside(each, folder) for each in folder.glob("*/*.h5")):
        return {}
    try:
        return {each.name: each for each in read_tile_folder(folder, names)}
    except (UserError, OSError, LookupError):
        return {}


def _recorded(run: Run) -> list[Path]:
    """The folders of the images of a run; those of a folder of tiles, if these are its data."""
    data = run.data.parent if run.data.is_file() else run.data
    if any(sign in str(data) for sign in "*?["):  # a pattern: what is before it
        data = next(part for part in data.parents if not any(sign in str(part) for sign in "*?["))
    found = [data] if run.config.get("data") else []
    if found and is_tile_folder(data):
        with suppress(UserError):
            slides = Path(str((read_config(data) or {}).get("data") or data))
            found.append(slides.parent if slides.is_file() else slides)
    return found


def _started(run: Run, path: str) -> Path:
    """A path of a table, which may start where the run was started."""
    return recorded_data({"data": path}, run.sessions)


def _cells(folder: Path, name: str, picture: SlidePicture, lines: list[str]) -> dict[str, Picture]:
    """The cells of a slide as dots in the color of their class: a layer for each class, up to a number of them."""
    try:
        path = own_file(folder, cell_path(folder, name).relative_to(folder))
        cells = read_cells(path)
    except (UserError, OSError):
        return {}
    height, width = picture.pixels.shape[:2]
    step = -(-max(len(cells), 1) // _MOST_CELLS)
    places = (np.asarray(cells.points[::step])[:, ::-1] / picture.step).astype(np.int64)  # y, x in the picture
    classes, found = np.asarray(cells.classes[::step]), {}
    if len(cells.class_names) > _MOST_CLASSES:
        lines.append(f"{name}: the first {_MOST_CLASSES} of {len(cells.class_names)} classes of cells are drawn")
    for number, label in enumerate(cells.class_names[:_MOST_CLASSES]):
        own = places[classes == number]
        canvas = np.zeros((height, width, 4), np.uint8)
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):  # a dot of four pixels
            y, x = np.clip(own[:, 0] + dy, 0, height - 1), np.clip(own[:, 1] + dx, 0, width - 1)
            canvas[y, x] = (*_CLASS_COLORS[number % len(_CLASS_COLORS)], 255)
        some = f", one of {step} drawn" if step > 1 else ""
        title = f"{label} ({int((cells.classes == number).sum()):,}{some})"
        found[title] = Picture(encode(Image.fromarray(canvas), _SIDE), title)
    return found


def _shapes(folder: Path, name: str, lines: list[str]) -> list[Shape]:
    """The polygons of a GeoJSON file of QuPath; with their attention, if they have one, relative to the highest."""
    try:
        path = own_file(folder, name)
        if path.stat().st_size > _LARGEST:
            lines.append(f"{name} is larger than {_LARGEST // 2**20} MiB, and is not drawn")
            return []
        content = load_json(path, "GeoJSON")
        features: list[Mapping[str, Any]] = content["features"] if isinstance(content, dict) else content
        found: list[Shape] = []
        for feature in features:
            measured = (feature.get("properties") or {}).get("measurements")
            values = [v for v in measured.values() if isinstance(v, float)] if isinstance(measured, dict) else []
            named = values and all("attention" in name for name in measured or ())
            attention = max(values) if named else None
            found += [(rings, attention) for rings in polygons_in(feature["geometry"])]
    except (OSError, UserError, LookupError, TypeError, ValueError, AttributeError):
        return []
    highest = max((value for _, value in found if value is not None), default=1.0) or 1.0
    return [(rings, None if value is None else value / highest) for rings, value in found]


def _drawn(picture: SlidePicture, shapes: Sequence[Shape], layer: str) -> Picture:
    """Polygons as a transparent picture of the slide's size: outlines, or filled with the color of their value."""
    height, width = picture.pixels.shape[:2]
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    scale = np.array(picture.step[::-1])
    for rings, value in shapes:
        for ring in rings:
            points = [tuple(point) for point in (np.asarray(ring) / scale).tolist()]
            if len(points) > 2 and value is not None:
                red, green, blue, _ = matplotlib.colormaps["viridis"](value, bytes=True)
                draw.polygon(points, fill=(int(red), int(green), int(blue), 150))
            elif len(points) > 2:
                draw.line([*points, points[0]], fill=(*_COLORS[layer], 255), width=2 if layer != "tiles" else 1)
    return Picture(encode(image, _SIDE), layer)


def _rectangle(top: float, left: float, height: float, width: float) -> npt.NDArray[np.float64]:
    return np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]])
