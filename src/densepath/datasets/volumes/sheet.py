"""A picture of three orthogonal slices of volumes, with the outlines of their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from skimage.segmentation import find_boundaries

from densepath.core.errors import counted
from densepath.core.files import atomic_write
from densepath.core.slices import AXIAL, CORONAL, SAGITTAL, size_in_mm, slice_of
from densepath.core.spacing import evenly_spaced
from densepath.core.streams import say
from densepath.datasets.contact_sheet import compose_sheet, short_name
from densepath.sources.corrupt import CorruptImage
from densepath.sources.volumes.store import VolumeStore
from densepath.transfer.detection.object_colors import PALETTE, color_of

_WIDTH, _COLUMNS, _GAP = 480, 2, 4  # pixels, panels in a row
_TALLEST = 320


def draw_volumes(store: VolumeStore, splits: Mapping[str, Sequence[int]], path: Path, count: int) -> Path | None:
    """Draw evenly spaced volumes of each split: an axial, a coronal and a sagittal slice through the middle.

    The middle is that of the labels, if there are any. Slices have the patient's anterior or superior side on top, and
    the right or anterior side on the left; a millimetre has the same length in all three.

    Args:
        store: the volumes.
        splits: their positions by split.
        path: a PNG file.
        count: the number of volumes of a split.

    Returns:
        The file; None if all of these volumes are damaged: then nothing is drawn.
    """
    rows: list[tuple[str, list[tuple[Image.Image, str]]]] = []
    for split, positions in splits.items():
        chosen = [positions[k] for k in evenly_spaced(count, len(positions))]
        panels = [panel for position in chosen if (panel := _panel(store, position)) is not None]
        starts = range(0, len(panels), _COLUMNS)
        heading = f"{split}: {counted(len(positions), 'volume')} (D x H x W); axial, coronal, sagittal"
        rows += [(heading if start == 0 else "", panels[start : start + _COLUMNS]) for start in starts]
    if not rows:
        say("densepath: no picture is drawn: all volumes for it are damaged")
        return None
    with atomic_write(path) as part:
        compose_sheet(rows, _WIDTH).save(part, format="PNG")
    return path


def _panel(store: VolumeStore, position: int) -> tuple[Image.Image, str] | None:
    """Three slices side by side, and the volume's name with its size; None for a damaged volume."""
    try:
        values, labels = store.read(position)[..., 0], store.labels(position)
    except CorruptImage:
        return None
    low, high = store.spec.window
    spacing = store.spacing(torch.tensor([position]))[0].tolist()
    marked = np.nonzero(labels) if labels is not None else ()
    middle = [int(np.median(axis)) for axis in marked] if len(marked) and marked[0].size else None
    middle = middle or [side // 2 for side in values.shape]
    sides = [side * step for side, step in zip(values.shape, spacing, strict=True)]
    scale = min((_WIDTH - 2 * _GAP) / (2 * sides[2] + sides[1]), _TALLEST / max(sides[:2]))
    pictures = []
    for axis in (AXIAL, CORONAL, SAGITTAL):
        size = size_in_mm(values.shape, spacing, axis, scale)
        grey = (slice_of(values, axis, middle[axis]).astype(np.float64) - low) / (high - low)
        picture = Image.fromarray(np.rint(255 * grey.clip(0, 1)).astype(np.uint8))
        shown = np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR).convert("RGB")).copy()
        if labels is not None:
            _outline(shown, slice_of(labels, axis, middle[axis], size))
        pictures.append(shown)
    sheet = np.zeros((max(p.shape[0] for p in pictures), sum(p.shape[1] for p in pictures) + 2 * _GAP, 3), np.uint8)
    left = 0
    for shown in pictures:
        sheet[: shown.shape[0], left : left + shown.shape[1]] = shown
        left += shown.shape[1] + _GAP
    extent = " x ".join(f"{side:.0f}" for side in sides)
    return Image.fromarray(sheet), f"{short_name(store.names(position))}: {extent} mm"


def _outline(shown: npt.NDArray[np.uint8], labels: npt.NDArray[Any]) -> None:
    """Draw the borders of labels (H, W) onto a slice (H, W, 3)."""
    borders = find_boundaries(labels, mode="inner", background=0) & (labels != 0)
    for code in np.unique(labels[borders]).tolist():
        shown[borders & (labels == code)] = color_of(code if code >= 0 else code % len(PALETTE))
