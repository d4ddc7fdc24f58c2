"""Objects in QuPath's GeoJSON as annotations of COCO."""

from __future__ import annotations

from typing import Any

import numpy as np

from densepath.annotations.outlines import encode_part
from densepath.core.geojson import fill_geometry


def annotation_of_geometry(geometry: Any, height: int, width: int) -> dict[str, Any]:
    """A Polygon or a MultiPolygon as an annotation of COCO: outline, box and area of the pixels inside.

    Arguments and errors as for :func:`densepath.core.geojson.fill_geometry`.
    """
    top, left, mask = fill_geometry(geometry, height, width)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = (left + columns[0], top + rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    return {
        "segmentation": encode_part(mask, top, left, (height, width)),
        "bbox": [float(n) for n in box],
        "area": int(mask.sum()),
        "iscrowd": 0,
    }
