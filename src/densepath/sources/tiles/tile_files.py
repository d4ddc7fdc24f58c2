"""The tiles of slides in files: an HDF5 file for each slide, in TRIDENT's layout, in the folder of a ``tile`` run."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.csv_files import read_rows
from densepath.core.errors import UserError, errors_as, one_line, refuse
from densepath.core.files import atomic_write
from densepath.core.keywords import quoted
from densepath.core.records import CONFIG, is_record
from densepath.core.spelling import composed
from densepath.sources.listing import matches_any
from densepath.sources.slides.resolution import Spacing
from densepath.sources.tiles.identity import read_record

SLIDES = "slides.csv"
_FOLDERS = "*mpp_*px_*px_overlap"
_PATCHES, _SUFFIX, _TISSUE = "patches", "_patches.h5", "tissue"
AT_10X = 10.0  # µm per pixel times magnification


@dataclass(frozen=True, eq=False)
class SlideTiling:
    """The tiles of one slide.

    Args:
        name: of the slide, unique among the slides of a folder; it may contain "/".
        path: of the slide.
        corners: (N, 2) int64: x, y of the upper left corners in pixels of level 0.
        mpp: µm per pixel of a tile.
        size: side of a tile in pixels at ``mpp``; its side in µm is ``size * mpp`` exactly.
        spacing: µm per pixel of level 0 along y and x.
        extent: height and width of level 0 in pixels.
        identity: of the slide's files when they were tiled, as of ``identity_of_slide``; () if that is unknown.
    """

    name: str
    path: str
    corners: npt.NDArray[np.int64]
    mpp: float
    size: int
    spacing: Spacing
    extent: tuple[int, int]
    identity: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.corners)

    def boxes_um(self, rows: Any = slice(None)) -> npt.NDArray[np.float64]:
        """The rectangles (B, 4) of some tiles: top, left, height, width in µm, as ``Slide.read_um`` takes them."""
        return boxes_um(self.corners[rows], self.spacing, self.size * self.mpp)


def boxes_um(corners: npt.NDArray[np.int64], spacing: Spacing, size_um: float) -> npt.NDArray[np.float64]:
    """The squares (B, 4) at some corners (B, 2): top, left, height, width in µm.

    Args:
        corners: x and y in pixels of level 0.
        spacing: µm per pixel of level 0 along y and x.
        size_um: the side of a square.
    """
    x, y = corners.reshape(-1, 2).T
    side = np.full(len(x), size_um)
    return np.stack([y * spacing[0], x * spacing[1], side, side], axis=1)


def tiling_folder(mpp: float, size: int, overlap: int) -> str:
    """The folder of tiles of a size and overlap in pixels, as TRIDENT names it."""
    return f"{mpp:.10g}mpp_{size}px_{overlap}px_overlap"


def tiling_path(folder: Path, name: str) -> Path:
    """The file of a slide's tiles in a folder named by :func:`tiling_folder`."""
    return folder / _PATCHES / f"{name}{_SUFFIX}"


def write_tiling(
    path: str | Path, tiling: SlideTiling, overlap: int = 0, tissue: npt.NDArray[np.float64] | None = None
) -> None:
    """Write the tiles of a slide.

    Args:
        path: the HDF5 file.
        tiling: the tiles.
        overlap: pixels by which neighboring tiles overlap, for the record.
        tissue: (N,) the share of tissue of each tile.

    Raises:
        UserError: the disk is full, or h5py is not installed.
    """
    content = io.BytesIO()  # on a full disk h5py would not say so
    with h5py_module().File(content, "w") as file:
        coords = file.create_dataset("coords", data=np.asarray(tiling.corners, np.int64).reshape(-1, 2))
        coords.attrs.update(notes_of_tiling(tiling, Path(path).parent, overlap))
        if tissue is not None:
            file.create_dataset(_TISSUE, data=np.asarray(tissue, np.float32))
    with atomic_write(path) as part:
        part.write_bytes(content.getbuffer())


def notes_of_tiling(tiling: SlideTiling, folder: Path, overlap: int = 0) -> dict[str, Any]:
    """The attributes of the dataset ``coords`` in a file of tiles or of their features, as TRIDENT names them.

    Args:
        tiling: the tiles.
        folder: where the file is.
        overlap: pixels by which neighboring tiles overlap.
    """
    level_0 = sum(tiling.spacing) / 2
    return {
        "patch_size": tiling.size,
        "patch_size_level0": round(tiling.size * tiling.mpp / level_0),
        "level0_magnification": AT_10X / level_0,
        "target_magnification": AT_10X / tiling.mpp,
        "overlap": overlap,
        "name": stored_text(tiling.name),
        "savetodir": stored_text(str(folder)),
        "level0_width": tiling.extent[1],
        "level0_height": tiling.extent[0],
        "mpp": tiling.mpp,
        "level0_mpp_x": tiling.spacing[1],
        "level0_mpp_y": tiling.spacing[0],
        "size_um": tiling.size * tiling.mpp,
    }


def read_tiling(path: str | Path, slide_path: str) -> SlideTiling:
    """Read what :func:`write_tiling` wrote.

    Args:
        path: the HDF5 file.
        slide_path: where the slide is now.

    Raises:
        UserError: the file is missing or damaged, or of other software.
    """
    h5py = h5py_module()

    def refusal(error: Exception) -> UserError:
        why = "the file is missing" if not os.path.exists(path) else "damaged, or not written by densepath tile"
        return UserError(f"the tiles {path} cannot be read ({why}); run densepath tile again")

    with errors_as(refusal), h5py.File(path) as file:
        notes, corners = dict(file["coords"].attrs), file["coords"][:]
        return SlideTiling(
            name=str(notes["name"]),
            path=slide_path,
            corners=corners.astype(np.int64).reshape(-1, 2),
            mpp=float(notes["mpp"]),
            size=int(notes["patch_size"]),
            spacing=(float(notes["level0_mpp_y"]), float(notes["level0_mpp_x"])),
            extent=(int(notes["level0_height"]), int(notes["level0_width"])),
        )


def read_shares(path: str | Path) -> npt.NDArray[np.float32]:
    """The shares of tissue (N,) that :func:`write_tiling` wrote; NaN where it got none."""
    with h5py_module().File(path) as file:
        shares = file[_TISSUE][:] if _TISSUE in file else np.full(len(file["coords"]), np.nan)
        return shares.astype(np.float32)


def overlap_of(folder: str | Path) -> int:
    """The pixels by which neighboring tiles of a folder of ``densepath tile`` overlap."""
    return max(int(place.name.split("_")[2].removesuffix("px")) for place in Path(folder).glob(_FOLDERS))


def is_tile_folder(path: str | Path) -> bool:
    """Whether a path is a folder of ``densepath tile``, finished or not."""
    return is_record(os.path.join(path, CONFIG)) and any(Path(path).glob(_FOLDERS))


def read_tile_folder(
    folder: str | Path, slides: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> list[SlideTiling]:
    """The tiles of all slides of a folder that ``densepath tile`` wrote, without slides that have none.

    Args:
        folder: the folder.
        slides: the slides to read, as they are named in ``slides.csv``, or by their file names with or without folders
            and suffix, with slashes or backslashes; None for all. The order is always that of ``slides.csv``.
        exclude: patterns of slides to leave out: ``*`` and ``?`` in a slide's name, or in that of its file.

    Raises:
        UserError: the folder is not one, is unfinished or damaged, has no tile, has no slide of a given name, or
            ``exclude`` leaves none.
    """
    folder = Path(folder)
    places = sorted(folder.glob(_FOLDERS))
    if not is_tile_folder(folder) or len(places) != 1:
        raise UserError(
            f"{folder} is not a folder of tiles; write one with densepath tile --data SLIDES --out {quoted(folder)}"
        )
    rows = read_slide_rows(folder)
    if slides is not None:
        known = {name for row in rows for name in _spellings(row)}
        forms = [composed(name) for name in slides]  # macOS writes other forms than Linux, Windows other separators
        forms = [name if name in known else name.replace("\\", "/") for name in forms]
        unknown = [one_line(name) for name, form in zip(slides, forms, strict=True) if form not in known]
        refuse(unknown, f"{folder} has no slides", "correct the list")
        asked = {*forms}
        alike = Counter(name for row in rows for name in asked.intersection(_spellings(row)))
        own = asked.intersection(composed(row["slide"]) for row in rows)
        several = [one_line(name) for name, count in alike.items() if count > 1 and name not in own]
        refuse(several, f"{folder} has several slides of a name", "write their folders before it")
        rows = [row for row in rows if (asked - own).intersection(_spellings(row)) or composed(row["slide"]) in own]
    rows = [row for row in rows if int(row["tiles"] or 0)]
    if not rows:
        raise UserError(f"{folder} has no tiles of {'these' if slides is not None else 'any'} slides; see its {SLIDES}")
    names = [(row["slide"], os.path.basename(row["path"])) for row in rows]
    rows = [row for row, own in zip(rows, names, strict=True) if not any(matches_any(name, exclude) for name in own)]
    if not rows:
        raise UserError(f"--exclude leaves out all slides of {folder}; narrow it")
    return [_tiling_of(folder, places[0], row["slide"], row["path"]) for row in rows]


def _tiling_of(folder: Path, place: Path, name: str, path: str) -> SlideTiling:
    """The tiles of a slide, with the identity of its files that its record has."""
    record = read_record(folder, name) or {"identity": ()}
    return replace(read_tiling(tiling_path(place, name), path), name=name, identity=tuple(record["identity"][:2]))


def read_slide_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a folder's ``slides.csv``.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / SLIDES
    if not path.exists():
        raise UserError(f"the tiles in {folder} are unfinished; continue with the same densepath tile command")
    rows = read_rows(path, "run densepath tile again", ("slide", "path", "tiles"))
    if any(not row["slide"] or not (row["tiles"] or "0").isdecimal() or not row["path"] for row in rows):
        raise UserError(f"{path} is not a table of densepath tile; run it again")
    return rows


def _spellings(row: dict[str, str]) -> set[str]:
    """The names by which a user may call a slide: its own, or its path with any of the folders above it."""
    path = PurePath(row["path"])
    names = {row["slide"], path.stem} | {str(PurePath(*path.parts[start:])) for start in range(len(path.parts))}
    return {composed(name) for name in names}


def stored_text(name: str) -> str:
    """A name as HDF5 and Parquet can store it: not every file name is valid Unicode."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def h5py_module() -> Any:
    """h5py. Raises UserError if it is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise UserError('this needs h5py; pip install "densepath[slides]"') from error
    return h5py
