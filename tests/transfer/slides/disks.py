"""Slides with dark disks at known places in µm, and a detector that finds dark disks."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from densepath.sources import patience
from densepath.sources.slides.decoded_tiles import recent_tiles
from densepath.transfer.detection.detector import Detector
from densepath.transfer.detection.detector_file import DetectorNotes
from densepath.transfer.detection.predictor import TrainedDetector

GLASS, TISSUE, DISK = (np.array(color, np.float32) for color in ((244, 242, 245), (226, 158, 196), (92, 44, 120)))
_FINER = 4  # sub-pixels of a pixel along an axis, for smooth borders
WINDOW = 96  # pixels


@dataclass(frozen=True)
class Disk:
    """Its center and radius in µm."""

    y: float
    x: float
    radius: float


def paint(
    size: tuple[int, int], mpp: float, disks: list[Disk], tissue: tuple[float, float, float, float]
) -> npt.NDArray[np.uint8]:
    """Disks on a rectangle of tissue: top, left, height, width in µm."""
    y, x = ((np.arange(length * _FINER, dtype=np.float32) + 0.5) / _FINER * mpp for length in size)
    rows = ((y >= tissue[0]) & (y < tissue[0] + tissue[2])).reshape(-1, _FINER).mean(1)
    columns = ((x >= tissue[1]) & (x < tissue[1] + tissue[3])).reshape(-1, _FINER).mean(1)
    share = (rows[:, None] * columns)[..., None]
    out = GLASS + share * (TISSUE - GLASS)
    for disk in disks:
        top, left, bottom, right = (
            max(0, int((middle + side * (disk.radius + 2)) / mpp)) for side in (-1, 1) for middle in (disk.y, disk.x)
        )
        part = out[top:bottom, left:right]
        here = y[top * _FINER : bottom * _FINER, None], x[left * _FINER : right * _FINER]
        inside = np.hypot(here[0] - disk.y, here[1] - disk.x) < disk.radius
        covered = inside.reshape(part.shape[0], _FINER, part.shape[1], _FINER).mean((1, 3))[..., None]
        part += covered * (DISK - part)
    return np.rint(out).astype(np.uint8)


def write_levels(
    path: Path, pixels: npt.NDArray[np.uint8], mpp: float, factors: tuple[int, ...] = (1,), stretch: int = 1
) -> Path:
    """Write a pyramid without loss, whose pixels are ``stretch`` times as high as wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tiff:
        for factor in factors:
            rows, columns = (length // factor for length in pixels.shape[:2])
            squares = pixels[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3)
            level = np.rint(squares.mean((1, 3))).astype(np.uint8).repeat(stretch, axis=1)
            rates = (1e4 * stretch / (mpp * factor), 1e4 / (mpp * factor))  # along x and y
            stored: dict[str, Any] = {"resolution": rates, "resolutionunit": "CENTIMETER"}
            tiff.write(level, tile=(64, 64), compression="zlib", subfiletype=int(factor > 1), metadata=None, **stored)
    return path


class DarkDisks(Detector):
    """Finds connected dark pixels; the best one is the darkest."""

    def __init__(self, notes: DetectorNotes) -> None:
        super().__init__(nn.Identity())
        self.notes, self.anchor = notes, nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int]] = []  # heights and widths of its inputs

    def forward(self, images: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        raise NotImplementedError

    def detect(self, images: ImageList) -> list[dict[str, Tensor]]:
        self.seen += images.image_sizes
        return [
            self._one(image[:, : size[0], : size[1]])
            for image, size in zip(images.tensors, images.image_sizes, strict=True)
        ]

    def _one(self, image: Tensor) -> dict[str, Tensor]:
        green = (image[1] * self.notes.std[1] + self.notes.mean[1]) * 255
        dark = ((TISSUE[1] - green) / (TISSUE[1] - DISK[1])).clamp(0, 1)
        labels, _ = ndimage.label(dark.numpy() > 0.5)
        boxes, masks = [], []
        for rows, columns in ndimage.find_objects(labels):
            top, left = max(rows.start - 1, 0), max(columns.start - 1, 0)
            part = dark[top : rows.stop + 1, left : columns.stop + 1]
            boxes.append((left, top, left + part.shape[1], top + part.shape[0]))
            masks.append(F.interpolate(part[None, None], (56, 56), mode="bilinear", align_corners=False)[0, 0])
        count = len(boxes)
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "scores": torch.linspace(0.9, 0.6, count),
            "labels": torch.ones(count, dtype=torch.int64),
            "masks": torch.stack(masks) if masks else torch.zeros(0, 56, 56),
        }


def disk_detector(mpp: float | None = None) -> TrainedDetector:
    """A detector whose training images had windows of 96 px."""
    pixels = ((0.5,) * 3, (0.2,) * 3)
    notes = DetectorNotes("mask_rcnn_fpn_small", "none", (1,), ("disk",), WINDOW, *pixels, image_size=WINDOW, mpp=mpp)
    return TrainedDetector(DarkDisks(notes), notes).eval()


def fail_in_part(monkeypatch: pytest.MonkeyPatch, path: Path, index: int) -> None:
    """Let the disk fail where a tile of level 0 of a slide is stored."""
    with tifffile.TiffFile(path) as tiff:
        lost = tiff.pages[0].dataoffsets[index]  # type: ignore[union-attr]
    read = os.pread

    def pread(number: int, count: int, offset: int) -> bytes:
        if offset == lost:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(number, count, offset)

    recent_tiles.clear()
    monkeypatch.setattr(patience, "PAUSES", ())
    monkeypatch.setattr(os, "pread", pread)
