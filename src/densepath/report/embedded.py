"""Pictures as ``data:`` URIs: decoded and written again, so that nothing of a file reaches the page unread."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from densepath.core.errors import UserError
from densepath.report.blocks import Picture
from densepath.report.paths import inside
from densepath.sources.corrupt import CorruptImage
from densepath.sources.image_files import ImageFiles
from densepath.training.load_run import pixels_of

_FORMATS = ("PNG", "JPEG", "WEBP")
_QUALITY = 80
_MOST_PIXELS = 2**26  # of a picture that is read


def picture(path: Path, within: Path, caption: str = "", side: int = 1200) -> Picture | None:
    """A picture of a run folder.

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


def data_pictures(files: Sequence[tuple[Path, str]], config: Mapping[str, Any], side: int) -> list[Picture]:
    """Images of a data set with the pixels that a network got, without those that cannot be read.

    Args:
        files: (path, caption) of each.
        config: the options of the run, which may have recorded what the numbers of the pixels mean.
        side: the longest side in pixels to which they are reduced.
    """
    images = ImageFiles([path for path, _ in files])
    made = []
    with suppress(UserError, OSError, ValueError, LookupError, TypeError):
        if "pixels" in config:
            images.spec = pixels_of(config)
        for number, (_, caption) in enumerate(files):
            with suppress(CorruptImage):
                pixels = images.spec.to_rgb(images.read(number))
                made.append(Picture(encode_pixels(pixels, side), caption))
    return made


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
