"""What a source of concepts gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from densepath.annotations.label_maps import LabelMaps
from densepath.nets.backbones import Backbone
from densepath.sources.open import ImageFiles, PackedTiles
from densepath.views.view import Batch


@dataclass(frozen=True)
class Concepts:
    """Concepts on the images of a batch, or on views of them.

    Args:
        labels: (B, H, W) integer ids from 0; an id means something within its image only.
        map: (B, 2, 3) from the labels' coordinates to those of the images (see ``core.affine``).
        statistics: scalars to log.
    """

    labels: Tensor
    map: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)


class ConceptSource(Protocol):
    """Labels the images of a batch."""

    @property
    def num_concepts(self) -> int | None:
        """The largest number of concepts on one image, whose ids are below it; None where nobody knows."""

    def check(self, backbone: Backbone, size: Sequence[int]) -> None:
        """Raise UserError where the source cannot label reference views of this size, in pixels along each axis."""

    def prepare(self, images: ImageFiles | PackedTiles) -> LabelMaps | None:
        """Look at the images before the first step; give their label maps, which become ``batch.extras["regions"]``."""

    def __call__(self, batch: Batch, encoder: Backbone) -> Concepts:
        """Label a batch; ``encoder`` is the momentum encoder, for sources that ask it."""
