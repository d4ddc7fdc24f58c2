"""The µm per pixel of an annotated image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densepath.sources.image_reader import ImageFile

_SQUARE = 1.1  # the ratio of its sides from which a pixel is not square


def stated_mpp(image: Mapping[str, Any]) -> float | None:
    """What an image's entry in a COCO JSON says (``mpp``); None if that is not a positive number."""
    stated = image.get("mpp")
    known = isinstance(stated, int | float) and not isinstance(stated, bool) and 0 < stated < math.inf
    return float(stated) if known and stated is not None else None


def file_mpp(path: str | Path) -> float | None:
    """What the resolution tags of a TIFF say; None if they are absent, or differ by 10% or more between its sides."""
    spacing = ImageFile(path).spacing
    return sum(spacing) / 2 if spacing is not None and max(spacing) < _SQUARE * min(spacing) else None
