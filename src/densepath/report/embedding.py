"""The map of a run's images: their features in the plane, which training has saved with thumbnails."""

from __future__ import annotations

import io
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from densepath.analysis.learned import FEATURES
from densepath.core.errors import counted
from densepath.report.blocks import Embedding
from densepath.report.common import PICTURES
from densepath.report.embedded import encode_pixels
from densepath.report.paths import own_file

_SIDE = 72  # pixels of a thumbnail
_PERPLEXITY = 20.0
_LARGEST = 2**26  # bytes of the arrays, and pixels of the thumbnails
_MOST = 2000  # images


def read_embedding(run: Path) -> Embedding | None:
    """The map of a run; None if it has saved no features."""
    try:
        path = own_file(run, f"{PICTURES}/{FEATURES}")
        return _read(path, path.stat().st_mtime_ns)
    except Exception:  # whatever NumPy, zipfile and Pillow raise for a damaged file
        return None


@lru_cache(maxsize=32)
def _read(path: Path, changed: int) -> Embedding:
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > _LARGEST:
            raise ValueError("it is too large")
    with np.load(path, allow_pickle=False) as file:
        features = np.asarray(file["features"], np.float64)
        names = [str(name) for name in file["names"]]
        with Image.open(io.BytesIO(file["thumbnails"].tobytes()), formats=("JPEG",)) as image:
            if len(names) > _MOST or image.width * image.height > _LARGEST:
                raise ValueError("it is too large")
            sheet = np.asarray(image.convert("RGB"))
    side = sheet.shape[1]
    thumbnails = [encode_pixels(tile, _SIDE) for tile in np.split(sheet, len(sheet) // side)]
    if not len(features) == len(names) == len(thumbnails):
        raise ValueError("features, names and thumbnails differ in number")
    title = f"{counted(len(names), 'image')} by the similarity of their features (t-SNE); point at one to see it"
    return Embedding(title, [(round(x, 3), round(y, 3)) for x, y in _plane(features).tolist()], names, thumbnails)


def _plane(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Features (N, C) in the plane (N, 2), such that neighbors stay neighbors."""
    from sklearn.manifold import TSNE

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    if len(unit) < 4:
        return np.stack([np.arange(len(unit)), np.zeros(len(unit))], 1).astype(np.float64)
    perplexity = min(_PERPLEXITY, (len(unit) - 1) / 3)
    found: npt.NDArray[np.float64] = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(unit)
    return found.astype(np.float64)
