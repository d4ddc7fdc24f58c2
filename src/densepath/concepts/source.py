"""What a source of concepts gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from densepath.nets.backbones import Backbone
from densepath.views.view import Batch


@dataclass(frozen=True)
class Concepts:
    """Concepts on the reference views of a batch.

    Args:
        labels: (B, H, W) int64 ids in 0 .. num_concepts - 1; an id means something within its image only.
        statistics: scalars to log.
    """

    labels: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)


class ConceptSource(Protocol):
    """Labels the reference views of a batch.

    Attributes:
        num_concepts: the largest number of concepts on one image.
    """

    num_concepts: int

    def check(self, backbone: Backbone, view_size: int) -> None:
        """Raise UserError where the source cannot label views of this size."""

    def __call__(self, batch: Batch, encoder: Backbone) -> Concepts:
        """Label ``batch["reference"]``; ``encoder`` is the momentum encoder, for sources that ask it."""
