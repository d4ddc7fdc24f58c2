"""A segmenter: its network, its file, and what is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.norms import to_group_norm
from densepath.sources.pixel_source import PixelSpec
from densepath.training.hardware import Hardware
from densepath.transfer.network_file import holds_network, network_path, read_network, save_network
from densepath.transfer.segment.config import Head, Norm
from densepath.transfer.segment.legend import Legend
from densepath.transfer.segment.network import SegmentationNet
from densepath.transfer.segment.sliding import SlidingWindow

SEGMENTER_FILE = Path("exported") / "segmenter.safetensors"  # in a run folder
KEY = "densepath_segmenter"
SAME_SPACING = 1.03  # spacings that differ by less are equal


@dataclass(frozen=True)
class SegmenterNotes:
    """What a segmenter's inputs and outputs are.

    Args:
        backbone: its name.
        head: what follows the backbone.
        norm: "batch" or "group" norms.
        legend: the classes.
        view_size: sides of its training patches in pixels, in the order of the tensor's axes.
        overlap: share of a window that the next one covers.
        pixels: the specification of its pixels, as a record.
        spacing: mm between the voxels of the training volumes, in the order of the tensor's axes; None for images, and
            for volumes that differ.
        own_window: whether each volume has the window of its own percentiles, as MR.
        epoch: the epoch that was kept, from 1.
        score, loss: mean Dice in percent and loss of the images that chose it.
    """

    backbone: str
    head: Head
    norm: Norm
    legend: Legend
    view_size: tuple[int, ...]
    overlap: float
    pixels: dict[str, Any]
    spacing: tuple[float, ...] | None = None
    own_window: bool = False
    epoch: int = 0
    score: float = 0.0
    loss: float = 0.0

    @property
    def spec(self) -> PixelSpec:
        """How the segmenter sees pixels."""
        return PixelSpec.from_record(self.pixels)

    def build(self) -> SegmentationNet:
        """The network with random weights. Raises UserError where its notes make no sense."""
        backbone = build_backbone(self.backbone, self.spec.channels)
        backbone.check_size(*self.view_size)
        net = SegmentationNet(backbone, len(self.legend), self.head)
        if self.norm == "group":
            to_group_norm(net)
        return net

    def sliding(
        self,
        net: SegmentationNet,
        hardware: Hardware,
        window: int | Sequence[int] | None = None,
        overlap: float | None = None,
    ) -> SlidingWindow:
        """Predicts whole images in windows of the training patches, or of another size or overlap.

        Raises:
            UserError: there are no such windows.
        """
        ndim, overlap = len(self.view_size), self.overlap if overlap is None else overlap
        given = self.view_size if window is None else window
        sides = tuple(given) if isinstance(given, Iterable) else (given,) * ndim
        if len(sides) != ndim or not all(map(_is_side, sides)) or not 0 <= overlap < 1:
            raise UserError(
                f"window is {window} and overlap {overlap}; give a side of at least 1 pixel (or one for each of the "
                f"{ndim} axes) and an overlap from 0 to below 1"
            )
        return SlidingWindow(
            net,
            self.spec,
            [int(side) for side in sides],
            overlap,
            net.backbone.patch_size,
            hardware.device,
            hardware.precision == "bf16-mixed",
        )


def _is_side(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 1


def save_segmenter(path: Path, model: SegmentationNet, notes: SegmenterNotes) -> None:
    """Write a safetensors file."""
    save_network(path, KEY, model, notes)


def segmenter_path(run: str | Path) -> Path:
    """The file of a segmenter, given by it or by the folder of its run."""
    return network_path(run, SEGMENTER_FILE)


def is_segmenter(run: str | Path) -> bool:
    """Whether a run, or a file, holds a segmenter."""
    return holds_network(segmenter_path(run), KEY)


def read_segmenter(path: Path) -> tuple[SegmentationNet, SegmenterNotes]:
    """The segmenter of a file, on the CPU and in evaluation mode.

    Raises:
        UserError: there is no such file, or it is not a segmenter.
    """
    with torch.random.fork_rng(devices=[]):
        model, notes = read_network(path, KEY, "segmenter", "segment", _notes_from)
    return model, notes


def _notes_from(values: Any) -> SegmenterNotes:
    spacing = None if values["spacing"] is None else tuple(values["spacing"])
    known = {"view_size": tuple(values["view_size"]), "spacing": spacing}
    return SegmenterNotes(**values | known | {"legend": Legend.from_record(values["legend"])})
