"""The font of pictures."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

_NO_TEXT = re.compile("[\ud800-\udfff]")  # bytes of names that are not text


def drawable(text: str) -> str:
    """A name as matplotlib can draw it: bytes that are not text are replaced, and dollars do not begin a formula."""
    return _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", text).replace("$", r"\$")


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """A font of a size in pixels that has µ and the letters of many languages, which Pillow's own has not."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
