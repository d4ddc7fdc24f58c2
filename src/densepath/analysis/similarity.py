"""How alike the regions of an image are, seen by a backbone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.random import permute
from densepath.core.system import with_progress
from densepath.nets.backbones import Backbone
from densepath.sources.batch import ImageBatch
from densepath.sources.corrupt import Damage
from densepath.sources.open import ImageFiles, PackedTiles, check_size
from densepath.views.declarations import Center
from densepath.views.maker import ViewMaker

BINS = 2000  # of similarities from -1 to 1: a median is right to a thousandth
_COARSE = 5  # of them together, where distributions are compared: each then has enough pairs of a few dozen images
_BATCH = 32  # images
_VIEW = "center"


class Distribution:
    """How often values from -1 to 1 occur, counted in bins: its memory does not grow with their number."""

    def __init__(self) -> None:
        self._counts = torch.zeros(BINS, dtype=torch.int64)
        self._sum = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count values of any shape; nothing waits for their device."""
        bins = ((values.flatten() + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)  # rounding gives 1.0000001, too
        self._counts = self._counts.to(values.device) + torch.bincount(bins, minlength=BINS)
        self._sum = self._sum.to(values.device) + values.sum(dtype=torch.float64)

    @property
    def count(self) -> int:
        """How many values were counted."""
        return int(self._counts.sum())

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return float(self._sum) / self.count

    def shares(self) -> npt.NDArray[np.float64]:
        """(BINS,) the share of the values in each bin."""
        counts: npt.NDArray[np.float64] = self._counts.cpu().numpy() / self.count
        return counts

    def quantile(self, share: float) -> float:
        """The value below which a share of all lies, to within a bin."""
        below = np.concatenate(([0.0], self.shares().cumsum()))
        return float(np.interp(share, below, np.linspace(-1, 1, BINS + 1)))

    def overlap(self, other: Distribution) -> float:
        """The area that the densities of both share, from 0 to 1; they are compared in steps of 0.005."""
        both = (each.shares().reshape(-1, _COARSE).sum(1) for each in (self, other))
        return float(np.minimum(*both).sum())


def pair_similarities(features: Tensor) -> Tensor:
    """The cosine similarity of each pair of cells within an image.

    Args:
        features: (B, C, *spatial); a cell of zeros is like no other.

    Returns:
        (B, N (N - 1) / 2) floats, of N cells.
    """
    cells = F.normalize(features.float().flatten(2), dim=1)
    first, second = torch.triu_indices(cells.shape[2], cells.shape[2], offset=1, device=cells.device)
    return torch.bmm(cells.transpose(1, 2), cells)[:, first, second]


@torch.no_grad()
def region_similarities(
    backbone: Backbone,
    images: ImageFiles | PackedTiles,
    *,
    stage: int | None = None,
    view_size: int = 224,
    count: int = 500,
    seed: int = 0,
) -> Distribution:
    """The similarity of all unordered pairs of regions within an image, over images drawn by chance.

    Args:
        backbone: left in the mode in which it came; runs in evaluation mode.
        images: the source. Their middle is what is seen: "resize to 256, crop 224", or as much at another size.
        stage: whose cells are the regions, f1..f5; the deepest where None.
        view_size: height and width in pixels at which an image is seen.
        count: how many images; all where there are fewer.
        seed: of the images that are drawn.

    Raises:
        UserError: the backbone has no such stage, it has a single cell at that size, an image is too small (a side
            under half of the view), or too many are damaged.

    Source: Conv-MIM (WACV 2024), Figure 2; which pairs it counts is not said there.
    """
    if count < 1:
        raise UserError(f"count is {count}; look at one image at least")
    stage = backbone.deepest if stage is None else stage
    backbone.check_stage(stage)
    backbone.check_size(view_size, view_size)
    if view_size <= 2**stage:
        raise UserError(
            f"an image of {view_size} px is a single cell of f{stage}, like no other; take a larger view_size"
        )
    check_size(images, view_size // 2)
    device, training = next(backbone.parameters()).device, backbone.training
    make_view = ViewMaker({_VIEW: Center()}, view_size, seed)
    drawn = permute(torch.arange(min(count, len(images))), len(images), seed, 0).split(_BATCH)
    damage = Damage(len(images), images.damaged if isinstance(images, PackedTiles) else None)
    found = Distribution()
    backbone.eval()
    try:
        for index in with_progress(drawn, len(drawn), "comparing regions"):
            gathered = images.gather(index)
            for position, what in gathered.corrupt.items():
                damage.add(position, what)
            damage.check()
            batch = ImageBatch(gathered.pixels, gathered.sizes, gathered.index).to(device)
            found.add(pair_similarities(backbone(make_view(batch)[_VIEW].pixels, last=stage)[stage]))
    finally:
        backbone.train(training)
    return found
