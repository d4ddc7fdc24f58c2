"""Concepts of the images themselves: computed once, cached on disk, and warped into the views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from densepath.annotations.label_cache import Labeller
from densepath.concepts.source import Concepts
from densepath.core.affine import identity
from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone
from densepath.views.view import Batch


@dataclass(frozen=True)
class FromPath:
    """A labeller that reads files of the user.

    Args:
        make: builds the labeller of a path.
        what: description of the files, for messages.
    """

    make: Callable[[str | Path], Labeller]
    what: str


class ImageLabels:
    """Uses the label maps of the images as concepts.

    Args:
        labeller: computes the label map of an image, or is built from a path.
        num_concepts: number of labels, all ids are below it; None if it is unknown.
    """

    def __init__(self, labeller: Labeller | FromPath, num_concepts: int | None = None) -> None:
        self.labeller = labeller
        self.num_concepts = num_concepts

    def check(self, backbone: Backbone, size: Sequence[int]) -> None:
        """Accepts any view."""

    def __call__(self, batch: Batch, encoder: Backbone) -> Concepts:
        if "regions" not in batch.extras:
            raise UserError(
                "these concepts are label maps of the images, and the batch has none; call the method's prepare, "
                "and give its extras to ImageBatches"
            )
        return Concepts(batch.extras["regions"], identity(len(batch)))
