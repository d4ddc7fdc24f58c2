"""The similarity of regions within an image, in the features of a backbone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.analysis.center_views import center_views, chosen
from densepath.analysis.source import check_finite
from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone
from densepath.sources.pixel_source import PixelSource, PixelSpec

BINS = 2000  # bins of similarities from -1 to 1: a median is exact to 0.001
_COARSE = 5  # bins are merged to compare distributions, so that each has enough pairs of a few dozen images


class Distribution:
    """A histogram of values from -1 to 1; its memory does not grow with their number."""

    def __init__(self) -> None:
        self._counts = torch.zeros(BINS, dtype=torch.int64)
        self._sum = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count values of any shape, without a synchronization with their device."""
        bins = ((values.flatten() + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)  # rounding can give 1.0000001
        self._counts = self._counts.to(values.device) + torch.bincount(bins, minlength=BINS)
        self._sum = self._sum.to(values.device) + values.sum(dtype=torch.float64)

    @property
    def count(self) -> int:
        """Number of values."""
        return int(self._counts.sum())

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return float(self._sum) / self.count

    def shares(self) -> npt.NDArray[np.float64]:
        """The share of the values in each bin, (BINS,)."""
        counts: npt.NDArray[np.float64] = self._counts.cpu().numpy() / self.count
        return counts

    def quantile(self, share: float) -> float:
        """The value below which a share of all values lies, exact to one bin."""
        below = np.concatenate(([0.0], self.shares().cumsum()))
        return float(np.interp(share, below, np.linspace(-1, 1, BINS + 1)))

    def overlap(self, other: Distribution) -> float:
        """The area shared by both densities, from 0 to 1; they are compared in steps of 0.005."""
        both = (each.shares().reshape(-1, _COARSE).sum(1) for each in (self, other))
        return float(np.minimum(*both).sum())


def pair_similarities(features: Tensor) -> Tensor:
    """The cosine similarity of each pair of positions within an image.

    Args:
        features: (B, C, *spatial); a position of zeros has similarity 0 to all others.

    Returns:
        (B, N (N - 1) / 2) floats, for N positions.
    """
    unit = F.normalize(features.float().flatten(2), dim=1)
    first, second = torch.triu_indices(unit.shape[2], unit.shape[2], offset=1, device=unit.device)
    return torch.bmm(unit.transpose(1, 2), unit)[:, first, second]


@torch.no_grad()
def region_similarities(
    backbone: Backbone,
    images: PixelSource,
    *,
    stage: int | None = None,
    view_size: int = 224,
    count: int = 500,
    seed: int = 0,
    spec: PixelSpec | None = None,
) -> Distribution:
    """The similarity of all unordered pairs of regions within an image, over randomly chosen images.

    Args:
        backbone: the backbone; it runs in evaluation mode, and its mode is restored.
        images: the source. The center crop is used: "resize to 256, crop 224", in proportion for other sizes.
        stage: the stage f1..f5 whose positions are the regions; None for the deepest.
        view_size: height and width of the center crop in pixels.
        count: number of images; all if there are fewer.
        seed: seed of the choice of images.
        spec: how the backbone sees pixels; that of the images by default.

    Raises:
        UserError: the backbone has no such stage, it has a single position at that size, it gives numbers that are not
            finite, an image is too small (a side under half of the view), or too many are corrupt.

    Source: Conv-MIM (WACV 2024), Figure 2, which does not say which pairs it counts.
    """
    if count < 1:
        raise UserError(f"count is {count}; give at least 1")
    stage = backbone.deepest if stage is None else stage
    backbone.check_stage(stage)
    backbone.check_size(view_size, view_size)
    if backbone.grid(stage, view_size, view_size) == (1, 1):
        raise UserError(f"an image of {view_size} px is a single position of f{stage}; use a larger view_size")
    device, training = next(backbone.parameters()).device, backbone.training
    found = Distribution()
    backbone.eval()
    try:
        views = center_views(
            images,
            chosen(images, count, seed),
            spec or images.spec,
            view_size,
            device=device,
            what="comparing regions",
        )
        for _, pixels, _ in views:
            found.add(pair_similarities(backbone(pixels, last=stage)[stage]))
    finally:
        backbone.train(training)
    check_finite(torch.tensor(found.mean), "similarity of regions")
    return found
