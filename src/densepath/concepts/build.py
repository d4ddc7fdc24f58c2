"""Builds a source of concepts by its name."""

from __future__ import annotations

from densepath.concepts.cells import CellConcepts
from densepath.concepts.grid import GridConcepts
from densepath.concepts.image_labels import FromPath, ImageLabels
from densepath.concepts.kmeans import KMeansConcepts
from densepath.concepts.map_files import MapFiles
from densepath.concepts.nuclei import Nuclei
from densepath.concepts.saliency import Saliency
from densepath.concepts.source import ConceptSource
from densepath.concepts.superpixels import Superpixels
from densepath.core.errors import UserError

CONCEPTS = ("kmeans", "grid", "superpixels", "saliency", "nuclei", "cells", "files")
SOURCES = {  # that have each option
    "num_concepts": ("kmeans", "cells"),
    "stage": ("kmeans",),
    "grid_size": ("grid",),
    "superpixel_scale": ("superpixels",),
    "nucleus_radius": ("nuclei",),
}


def build_source(
    name: str,
    *,
    num_concepts: int,
    stage: int,
    grid_size: int,
    superpixel_scale: int,
    nucleus_radius: float,
    ndim: int = 2,
) -> ConceptSource:
    """Build a source of concepts.

    Args:
        name: one of :data:`CONCEPTS`.
        num_concepts: option of "kmeans" and "cells".
        stage: option of "kmeans".
        grid_size: option of "grid".
        superpixel_scale: option of "superpixels".
        nucleus_radius: option of "nuclei".
        ndim: dimensions of the images: 2, or 3 for volumes, which support only "kmeans" and "grid".

    Raises:
        UserError: an unknown name, or an invalid value.
    """
    if name == "kmeans":
        return KMeansConcepts(stage, num_concepts)
    if name == "grid":
        return GridConcepts(grid_size, ndim)
    if name in CONCEPTS and ndim != 2:
        raise UserError(f"concepts {name} are found in images of two dimensions; for volumes use kmeans or grid")
    if name == "superpixels":
        return ImageLabels(Superpixels(superpixel_scale))
    if name == "cells":
        return CellConcepts(num_concepts)
    if name == "nuclei":
        return ImageLabels(Nuclei(nucleus_radius))
    if name not in CONCEPTS:
        raise UserError(f"unknown concepts {name!r}; there are: {', '.join(CONCEPTS)}")
    if name == "saliency":
        return ImageLabels(FromPath(Saliency, "a saliency model, or a folder of masks,"), Saliency.num_concepts)
    return ImageLabels(FromPath(MapFiles, "a folder of label maps"))
