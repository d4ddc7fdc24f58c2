"""Warnings of a run whose outputs no longer depend on its images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from densepath.core.losses import full_precision

# Healthy runs are above these from their first rows on: see tests/methods/test_collapse.py.
LEAST = {
    "key_spread": (
        0.005,
        "the keys of all images are nearly the same; start again with a lower learning rate, or, "
        "where the method has them, a higher --method.momentum or --method.standardize",
    ),
    "output_spread": (
        0.01,
        "the predicted pixels are nearly constant; start again with a lower learning rate",
    ),
}
_ROWS = 5  # rows in a row
_TOLD = 1e-4  # nats that the teacher's distributions tell of the image; healthy runs begin with 0.001 to 0.1


@torch.no_grad()
def output_spread(prediction: Tensor, target: Tensor) -> Tensor:
    """The deviation of predicted pixels as a share of that of their targets: 0 if all of each channel are the same.

    Both are (B, C, *spatial).
    """
    made, true = (_deviation(full_precision(x)) for x in (prediction, target))
    return (made / true.clamp(min=1e-6)).nan_to_num(0.0)


def _deviation(x: Tensor) -> Tensor:
    """The mean over channels of the standard deviation. (``std`` over several axes takes a CPU five times as long.)"""
    axes = (0, *range(2, x.ndim))
    squares = (x - x.mean(axes, keepdim=True)).square_().sum(axes)
    return (squares / (x.numel() // x.shape[1] - 1)).sqrt().mean()


def same_for_all(row: Mapping[str, float], prototypes: Mapping[str, int]) -> list[str]:
    """A line for each vector whose teacher gives all images the same distribution.

    Args:
        row: measurements, among them ``NAME_entropy`` and ``NAME_kl_uniform`` of vectors that were compared.
        prototypes: number of prototypes of each vector, by its name.
    """
    lines = []
    for name, count in prototypes.items():
        entropy, divergence = row.get(f"{name}_entropy", 0.0), row.get(f"{name}_kl_uniform", 0.0)
        if (1 - entropy - divergence) * math.log(count) < _TOLD:
            how = "uniform" if entropy > divergence else "constant"
            lines.append(
                f"collapse: the teacher's distribution of {name!r} is nearly {how}, the same for every image; "
                "start again with a lower learning rate or teacher temperature, or a longer warm-up"
            )
    return lines


class CollapseAlarm:
    """Warns if ``key_spread`` or ``output_spread`` stays near zero for five rows of measurements."""

    def __init__(self) -> None:
        self._low = dict.fromkeys(LEAST, 0)

    def __call__(self, row: Mapping[str, float]) -> list[str]:
        """Lines on a row of measurements."""
        lines = []
        for name, (least, why) in LEAST.items():
            self._low[name] = self._low[name] + 1 if row.get(name, 1.0) < least else 0
            if self._low[name] >= _ROWS:
                lines.append(f"collapse: {why}")
        return lines
