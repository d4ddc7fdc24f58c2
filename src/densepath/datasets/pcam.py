"""PatchCamelyon: lymph nodes, with or without tumour."""

from __future__ import annotations

import gzip
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.csv_files import read_rows, write_rows
from densepath.core.errors import UserError, counted
from densepath.core.files import atomic_write, require_new_folder
from densepath.core.single_values import take_single_values
from densepath.core.streams import write_line
from densepath.core.system import with_progress
from densepath.datasets.labelled_lists import LIST, find_place
from densepath.datasets.published import PCAM
from densepath.sources.packing import write_store
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.tiles.tile_files import h5py_module

STORE = "images.safetensors"
_SPLITS = ("train", "valid", "test")
_FILE = "camelyonpatch_level_2_split_{}_{}.h5"
_META = "camelyonpatch_level_2_split_{}_meta.csv"
_CLASSES = ("normal", "tumour")
_SIDE, _MPP = 96, 0.972  # pixels; µm per pixel: CAMELYON16 at 10x
_BLOCK = 4096  # images read at a time


@take_single_values
def convert_pcam(source: str | Path, dest: str | Path) -> Path:
    """Write PatchCamelyon as a packed store and a list with classes, slides and the official split, for ``classify``.

    As published (https://doi.org/10.5281/zenodo.2546921, CC0): HDF5 files camelyonpatch_level_2_split_*_x.h5 and _y.h5
    (or .h5.gz, which are unpacked first) of train, valid and test, 327,680 images of 96 px; a list _meta.csv for each
    names the slide of each image, which is taken as its patient. What differs is reported.

    Args:
        source: the folder that holds the files, or its parent.
        dest: a new folder: images.safetensors (9 GB) and labels.csv.

    Returns:
        ``dest``; give its images.safetensors to ``--data``, and its labels.csv to ``--labels``.

    Raises:
        UserError: a file is missing or damaged, or the numbers of images, classes and slides differ.

    Source: Veeling et al., "Rotation Equivariant CNNs for Digital Pathology", MICCAI 2018.
    """
    dest = require_new_folder(dest, "the images")
    first = _FILE.format("train", "x")
    try:
        root = find_place(source, (first,), "PatchCamelyon")
    except UserError:
        root = find_place(source, (f"{first}.gz",), "PatchCamelyon")
    rows: list[dict[str, str]] = []
    with ExitStack() as stack:
        parts = [_open(root, split, stack, dest.parent) for split in _SPLITS]
        for split, (pixels, labels, slides) in zip(_SPLITS, parts, strict=True):
            for number in range(len(pixels)):
                row = {"file": f"{split}/{number:06d}", "label": _CLASSES[labels[number]]}
                rows.append(row | {"split": split, "patient": slides[number] if slides else ""})
        named = all(slides for _, _, slides in parts)
        columns = ["file", "label", "split", *(["patient"] if named else [])]
        with atomic_write(dest) as folder:
            folder.mkdir()
            count = len(rows)
            images = with_progress(_images([pixels for pixels, _, _ in parts]), count, "writing")
            spacing = np.full((count, 2), _MPP, np.float32)
            write_store(folder / STORE, images, (row["file"] for row in rows), PixelSpec(), spacing)
            write_rows(folder / LIST, columns, rows)
    found = Counter(row["split"] for row in rows)
    for split in _SPLITS:
        own = [row for row in rows if row["split"] == split]
        tumours = sum(row["label"] == _CLASSES[1] for row in own)
        of = f" of {len({row['patient'] for row in own})} slides" if named else ""
        write_line(
            f"{split}: {counted(len(own), 'image')}{of}, {len(own) - tumours} normal, {tumours} tumour", sys.stdout
        )
    PCAM.report(found)
    return dest


def _open(root: Path, split: str, stack: ExitStack, near: Path) -> tuple[Any, npt.NDArray[np.int64], list[str]]:
    """The images of a split, which stay in their file, their classes, and their slides; no slides without a list."""
    pixels, labels = (_array(root / _FILE.format(split, what), what, stack, near) for what in ("x", "y"))
    if pixels.ndim != 4 or pixels.shape[1:] != (_SIDE, _SIDE, 3) or pixels.dtype != np.uint8:
        raise UserError(f"{split} has images of the shape {pixels.shape}, not N x 96 x 96 x 3; download it again")
    classes = np.asarray(labels).reshape(-1).astype(np.int64)
    if len(classes) != len(pixels) or not set(classes.tolist()) <= {0, 1}:
        raise UserError(f"{split} has {len(pixels)} images and {len(classes)} classes 0 and 1; download it again")
    meta = root / _META.format(split)
    if not meta.is_file():
        return pixels, classes, []
    slides = [row["wsi"] or "" for row in read_rows(meta, "download it again", ["wsi"])]
    if len(slides) != len(pixels) or not all(slides):
        raise UserError(f"{meta} does not name a slide for each of {counted(len(pixels), 'image')}; download it again")
    return pixels, classes, slides


def _array(path: Path, name: str, stack: ExitStack, near: Path) -> Any:
    """A data set of an HDF5 file, which may be compressed: then it is unpacked into a folder in ``near``."""
    named = path
    if not path.is_file():
        packed = path.with_name(f"{path.name}.gz")
        if not packed.is_file():
            raise UserError(f"{path.name} is missing in {path.parent}; download it")
        near.mkdir(parents=True, exist_ok=True)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=near)))
        plain = folder / path.name
        try:
            with gzip.open(packed) as source, plain.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (OSError, EOFError) as error:
            raise UserError(f"{packed} cannot be unpacked ({error}); download it again") from error
        path, named = plain, packed
    try:
        return stack.enter_context(h5py_module().File(path))[name]
    except (OSError, KeyError) as error:
        raise UserError(f"{named} cannot be read ({error}); download it again") from error


def _images(parts: list[Any]) -> Iterator[npt.NDArray[np.uint8]]:
    for pixels in parts:
        for first in range(0, len(pixels), _BLOCK):
            yield from pixels[first : first + _BLOCK]
