"""Concepts of the images themselves: computed once, cached on disk, and warped into the views."""

from __future__ import annotations

import copy
from pathlib import Path

from densepath.annotations.label_cache import Labeller, label_images
from densepath.annotations.label_maps import LabelMaps
from densepath.concepts.source import Concepts
from densepath.core.affine import identity
from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone
from densepath.sources.pixel_source import PixelSource
from densepath.views.view import Batch


class ImageLabels:
    """Uses the label maps of the images as concepts.

    Args:
        labeller: makes the label map of an image.
        num_concepts: number of labels, all ids are below it; None if it is unknown.
        cache: the folder where label maps are cached; the user's cache folder by default.
    """

    def __init__(self, labeller: Labeller, num_concepts: int | None = None, cache: str | Path | None = None) -> None:
        self.labeller = labeller
        self.num_concepts = num_concepts
        self.cache = cache

    def check(self, backbone: Backbone, view_size: int) -> None:
        """Accepts any view."""

    def prepare(self, images: PixelSource) -> LabelMaps:
        """Compute the maps of all images, or read them from the cache. Raises UserError if one cannot be computed."""
        # A copy, so that the paths of millions of files, or a model on the GPU, are freed with it.
        return label_images(images, copy.copy(self.labeller), self.cache)

    def __call__(self, batch: Batch, encoder: Backbone) -> Concepts:
        if "regions" not in batch.extras:
            raise UserError(
                "these concepts are label maps of the images, and the batch has none; call the method's prepare, "
                "and give its extras to ImageBatches"
            )
        return Concepts(batch.extras["regions"], identity(len(batch)))
