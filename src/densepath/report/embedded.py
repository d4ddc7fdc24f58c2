"""Pictures as ``data:`` URIs: decoded and written again, so that nothing of a file reaches the page unread."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from densepath.report.blocks import Picture
from densepath.report.paths import inside

_FORMATS = ("PNG", "JPEG", "WEBP")
_QUALITY = 80
_MOST_PIXELS = 2**26  # of a picture that is read


def picture(path: Path, within: Path, caption: str = "", side: int = 1200) -> Picture | None:
    """A picture of a run folder, or of a data set.

    Args:
        path: the file.
        within: the folder out of which no link may lead.
        caption: the caption.
        side: the longest side in pixels to which it is reduced.

    Returns:
        The picture; None if there is no file, or none that can be shown.
    """
    if not inside(path, within):
        return None
    try:
        status = path.stat()
        uri = _read(path, status.st_mtime_ns, status.st_size, side)
    except OSError:
        return None
    return None if uri is None else Picture(uri, caption)


def below(folder: Path, name: str) -> Path | None:
    """A file that a table names, in a folder; None if the name or a link leads out of it."""
    return folder / name if not Path(name).is_absolute() and inside(folder / name, folder) else None


@lru_cache(maxsize=1024)
def _read(path: Path, changed: int, size: int, side: int) -> str | None:
    """The URI of a file in this state; a page that is made again does not read it again."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                return None
            image.draft("RGB", (side, side))
            return encode(image, side)
    except Exception:  # whatever Pillow raises for a damaged file
        return None


def encode(image: Image.Image, side: int) -> str:
    """The URI of an image, reduced to a longest side in pixels; with its transparency, if it has any."""
    clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    image = image.convert("RGBA" if clear else "RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    data = io.BytesIO()
    image.save(data, "WEBP", quality=_QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def encode_pixels(pixels: npt.NDArray[np.uint8], side: int) -> str:
    """The URI of pixels (H, W), (H, W, 3) or, with opacity, (H, W, 4)."""
    return encode(Image.fromarray(pixels), side)
