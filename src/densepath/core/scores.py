"""Scores in percent, in memory and in files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from densepath.core.errors import UserError

SCALE = {"scale": "percent"}  # stands next to the scores in a file
_WHOLE = 1e9
_NEAR_1 = 1 - 1e-6


def answer_text(value: float) -> str:
    """A probability or another answer as tables have it: nine digits, which tell all float32 numbers apart, and all
    before the decimal point; all of a probability near 1, where nine would make confident answers equal."""
    if _NEAR_1 < value < 1:
        return repr(float(value))
    return f"{value:.0f}" if abs(value) >= _WHOLE else f"{value:.9g}"


def without_nan(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores as JSON has them: null for one that is undefined, also in a list."""
    return {name: [*map(_known, each)] if isinstance(each, list) else _known(each) for name, each in scores.items()}


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_percent(scores: Mapping[str, float], written: Mapping[str, Any]) -> dict[str, float]:
    """Scores that were read from a file, in percent.

    Args:
        scores: the scores as they were written.
        written: what stands next to them; version 0.1 named no scale and wrote shares of 1.

    Raises:
        UserError: they have another scale.
    """
    scale = written.get("scale")
    if scale not in (None, SCALE["scale"]):
        raise UserError(f"the scores have the scale {scale!r}; evaluate again with this version of densepath")
    return {name: float(value) * (100 if scale is None else 1) for name, value in scores.items()}
