"""Schedules: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Kind = Literal["cosine", "step", "constant"]


def lr_factor(
    kind: Kind,
    step: float,
    total: float,
    *,
    warmup: float = 0,
    warmup_start: float = 1e-4,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
    final: float = 0.0,
    decay_in_warmup: bool = False,
) -> float:
    """The factor of the base learning rate at a step.

    Args:
        kind: "cosine" falls from 1 to ``final`` over the steps after the warm-up, "step" is multiplied by ``gamma`` at
            each milestone, "constant" stays 1.
        step: 0-based, in optimizer steps or epochs; all other lengths have the same unit.
        total: length of the run.
        warmup: length of a linear warm-up from ``warmup_start`` to 1.
        milestones: steps at which "step" drops.
        gamma: factor of each drop of "step".
        final: final factor of "cosine".
        decay_in_warmup: the schedule begins at step 0, and the warm-up is a factor of it, as in mmcv. Otherwise it
            begins after the warm-up.
    """
    rising = warmup_start + (1 - warmup_start) * step / warmup if step < warmup else 1.0
    if step < warmup and not decay_in_warmup:
        return rising
    if kind == "cosine":
        start = 0.0 if decay_in_warmup else warmup
        return rising * cosine(1.0, final, (step - start) / max(total - start, 1e-12))
    if kind == "step":
        return rising * gamma ** sum(step >= milestone for milestone in milestones)
    return rising


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine wave from ``start`` at progress 0 to ``end`` at progress 1."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
