"""The font of pictures."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """A font of a size in pixels that has µ and the letters of many languages, which Pillow's own has not."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
