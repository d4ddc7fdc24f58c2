"""Reads the features of one slide."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from densepath.core.errors import UserError


@dataclass(frozen=True, eq=False)
class SlideFeatures:
    """Features of the tiles of a slide.

    Args:
        features: (N, D).
        corners: (N, 2) x, y of upper left corners in pixels of level 0; None if unknown.
        side: of a tile in pixels of level 0; None if unknown.
        extractor: what made them; "" if unknown.
        notes: what made them, in detail.
    """

    features: npt.NDArray[Any]
    corners: npt.NDArray[np.int64] | None = None
    side: float | None = None
    extractor: str = ""
    notes: dict[str, Any] = field(default_factory=dict)


def read_slide_features(path: str | Path) -> SlideFeatures:
    """Read a file of features. Raises UserError."""
    path = Path(path)
    try:
        if path.suffix == ".pt":
            return _read_pt(path)
        import h5py

        with h5py.File(path) as file:
            key = next((name for name in ("features", "feats") if name in file), None)
            if key is None:
                raise UserError(f"{path} has no features; densepath embed writes them")
            values = file[key][:]
            values = values[0] if values.ndim == 3 and len(values) == 1 else values
            coords = file["coords"][:] if "coords" in file else None
            at = {**file.attrs, **file[key].attrs, **(file["coords"].attrs if coords is not None else {})}
            notes = json.loads(file.attrs.get("densepath", "{}"))
    except OSError as error:
        raise UserError(f"{path} cannot be read as features ({error}); write it again") from error
    side = at.get("patch_size_level0", at.get("patch_size"))
    extractor = at.get("extractor", at.get("encoder", ""))
    corners = None if coords is None or coords.dtype.kind == "f" else coords.astype(np.int64)
    if corners is not None and len(corners) != len(values):
        raise UserError(f"{path} has {len(values)} features but {len(corners)} coordinates; write it again")
    return SlideFeatures(values, corners, None if side is None else float(side), str(extractor), notes)


def _read_pt(path: Path) -> SlideFeatures:
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read as features; write it again") from error
    if isinstance(values, dict):
        values = next((values[name] for name in ("features", "feats") if name in values), None)
    if not isinstance(values, torch.Tensor) or values.ndim != 2:
        raise UserError(f"{path} does not hold a tensor of features (N, D); write it again")
    return SlideFeatures(values.float().numpy())
