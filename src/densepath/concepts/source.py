"""The protocol of a source of concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from densepath.nets.backbones import Backbone
from densepath.views.view import Batch


@dataclass(frozen=True, eq=False)
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
        """The maximum number of concepts of one image: all ids are below it; None if it is unknown."""

    def check(self, backbone: Backbone, size: Sequence[int]) -> None:
        """Raise UserError if the source cannot label reference views of this size, in pixels along each axis."""

    def __call__(self, batch: Batch, encoder: Backbone) -> Concepts:
        """Label a batch; ``encoder`` is the momentum encoder, for sources that use features."""
