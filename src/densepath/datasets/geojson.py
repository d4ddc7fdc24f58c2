"""Objects in QuPath's GeoJSON as annotations of COCO."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.annotations.outlines import encode_part
from densepath.core.geojson import fill_geometry


def annotation_of_geometry(geometry: Any, height: int, width: int) -> dict[str, Any]:
    """A Polygon or a MultiPolygon as an annotation of COCO: outline, box and area of the pixels inside.

    Arguments and errors as for :func:`densepath.core.geojson.fill_geometry`.
    """
    return annotation_of_part(*fill_geometry(geometry, height, width), (height, width))


def annotation_of_part(top: int, left: int, mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> dict[str, Any]:
    """A mask (h, w) with a pixel, at a place in an image of some height and width, as an annotation of COCO."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = (left + columns[0], top + rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    return {
        "segmentation": encode_part(mask, top, left, size),
        "bbox": [float(n) for n in box],
        "area": int(mask.sum()),
        "iscrowd": 0,
    }
