"""Inputs besides pixels that a method declares, and the training code provides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from densepath.annotations.label_cache import Labeller
from densepath.concepts.image_labels import FromPath


@dataclass(frozen=True)
class Need:
    """An input that a method gets once, before its first step.

    Args:
        kind: the kind of input: "classes" (:class:`~densepath.annotations.classes.Classes`), "regions"
            (:class:`~densepath.annotations.label_maps.LabelMaps`) and "cells"
            (:class:`~densepath.annotations.cells.cell_points.CellPoints`) are known of each image; "teacher"
            (:class:`~densepath.nets.teachers.Teacher`) and "tokenizer"
            (:class:`~densepath.nets.tokenizers.Tokenizer`) are frozen networks.
        labeller: for "regions": computes the label map of an image.
    """

    kind: Literal["classes", "regions", "cells", "teacher", "tokenizer"]
    labeller: Labeller | FromPath | None = None
