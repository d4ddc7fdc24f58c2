"""The protocol of a source of concepts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from densepath.annotations.label_maps import LabelMaps
from densepath.nets.backbones import Backbone
from densepath.sources.pixel_source import PixelSource
from densepath.views.view import Batch


@dataclass(frozen=True)
class Concepts:
    """Concepts on the images of a batch, or on views of them.

    Args:
        labels: (B, H, W) integer ids from 0, unique within an image only.
        map: (B, 2, 3) affine maps from the labels' coordinates to those of the images (see ``core.affine``).
        statistics: scalars to log.
    """

    labels: Tensor
    map: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)


class ConceptSource(Protocol):
    """Labels the images of a batch."""

    @property
    def num_concepts(self) -> int | None:
        """The maximum number of concepts on one image, all ids are below it; None if it is unknown."""

    def check(self, backbone: Backbone, view_size: int) -> None:
        """Raise UserError if the source cannot label views of this size."""

    def prepare(self, images: PixelSource) -> LabelMaps | None:
        """Called before the first step; returns label maps of the images, which become ``batch.extras["regions"]``."""

    def __call__(self, batch: Batch, encoder: Backbone) -> Concepts:
        """Label a batch; ``encoder`` is the momentum encoder, for sources that use features."""
