"""What a method may need besides pixels: it says so, and whoever trains it provides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from densepath.annotations.label_cache import Labeller
from densepath.concepts.image_labels import FromPath


@dataclass(frozen=True)
class Need:
    """Something that a method is given once, before its first step.

    Args:
        kind: what it is: "classes" (:class:`~densepath.annotations.classes.Classes`) and "regions"
            (:class:`~densepath.annotations.label_maps.LabelMaps`) are known of each image; "teacher"
            (:class:`~densepath.nets.teachers.Teacher`) and "tokenizer"
            (:class:`~densepath.nets.tokenizers.Tokenizer`) are networks that were trained before.
        labeller: of "regions": makes the label map of an image.
    """

    kind: Literal["classes", "regions", "teacher", "tokenizer"]
    labeller: Labeller | FromPath | None = None
