"""The first principal components of features as colors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

_SAMPLED = 4096  # rows that the components are computed from, evenly spread
_ROWS = 4096  # that are projected at a time
_RANGE = (1.0, 99.0)  # percentiles of a component that become 0 and 1


def principal_colors(features: Any) -> npt.NDArray[np.float32]:
    """Red, green and blue (N, 3) from 0 to 1: each is a component, from its 1st to its 99th percentile.

    Args:
        features: (N, D) numbers, an array or a dataset of HDF5, of which some rows are read at a time.
    """
    count, dim = features.shape
    out = np.full((count, 3), 0.5, np.float32)
    if count < 2:
        return out
    rows = np.unique(np.linspace(0, count - 1, min(count, _SAMPLED)).astype(np.int64))
    sample = np.concatenate([features[part] for part in np.array_split(rows, -(-len(rows) // _ROWS))])
    sample = np.nan_to_num(sample.astype(np.float64))
    mean = sample.mean(0)
    sample -= mean
    kept = min(3, dim)
    _, axes = eigh(sample.T @ sample, subset_by_index=(dim - kept, dim - 1))
    axes = axes[:, ::-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(kept)])  # eigenvectors have no sign
    for first in range(0, count, _ROWS):
        part = np.nan_to_num(features[first : first + _ROWS].astype(np.float64))
        out[first : first + _ROWS, :kept] = (part - mean) @ axes
    low, high = np.percentile(out[:, :kept], _RANGE, axis=0)
    out[:, :kept] = ((out[:, :kept] - low) / np.where(high > low, high - low, 1)).clip(0, 1)
    return out
