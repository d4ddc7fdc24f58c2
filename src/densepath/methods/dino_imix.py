"""DINO with i-mix: the student sees mixtures of two images, and predicts the mixture of their distributions."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.methods.dino import DINO
from densepath.methods.dino_options import DINOOptions
from densepath.nets.backbones import Backbone
from densepath.views.view import Batch, View

_MIXED = 2**22  # stream of random numbers


class DINOIMix(DINO):
    """i-mix adapted to DINO, a comparison of DiRL (Table 9).

    Crop v of image i is mixed with that of another image j of the batch, and so are the teacher's distributions:

    x = l x_i + (1 - l) x_j,   L = mean over images and pairs v != q of  -sum of (l p_qi + (1 - l) p_qj) log p_v(x)

    l = max(u, 1 - u) with a uniform u, that is Beta(1, 1), drawn for each crop as a function of image and epoch. j is
    the next image of the process's batch for the first crop, the one after it for the second, and so on; the order of
    the images is random. Only the student sees mixtures. DiRL does not say how it adapted i-mix.

    Args:
        backbone: the student.
        **dino: as in :class:`DINO`.

    Source: Lee et al., i-mix, ICLR 2021, arXiv 2010.08887; DiRL, appendix A.3.
    """

    def __init__(self, backbone: Backbone, **dino: Unpack[DINOOptions]) -> None:
        super().__init__(backbone, **dino)

    def seen(self, batch: Batch, sizes: list[View]) -> list[View]:
        counts = [len(view.pixels) // len(batch) for view in sizes]
        mixtures = zip(*(x.split(counts) for x in self.mixture(batch, sum(counts))), strict=True)
        mixed = []
        for view, (partners, shares) in zip(sizes, mixtures, strict=True):
            others = torch.arange(len(partners)).unsqueeze(1) * len(batch) + partners
            others, shares = (x.flatten().to(view.pixels.device, non_blocking=True) for x in (others, shares))
            shares = shares.to(view.pixels.dtype).view(-1, *[1] * (view.pixels.ndim - 1))
            mixed.append(View(torch.lerp(view.pixels[others], view.pixels, shares), view.map))
        return mixed

    def pairs(self, batch: Batch, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        mixture = self.mixture(batch, len(rows) // len(batch))
        partners, shares = (x.flatten().unsqueeze(1).to(rows.device, non_blocking=True) for x in mixture)
        others = rows // len(batch) * len(batch) + partners
        return torch.cat((rows, others), dim=1), torch.cat((weights * shares, weights * (1 - shares)), dim=1)

    def mixture(self, batch: Batch, crops: int) -> tuple[Tensor, Tensor]:
        """Of each crop and image: the row (V, B) int64 of its partner in the batch, and its own share (V, B)."""
        step = 1 + torch.arange(crops).unsqueeze(1) % max(len(batch) - 1, 1)
        numbers = batch.uniform(crops, first=_MIXED).T
        return (torch.arange(len(batch)) + step) % len(batch), torch.maximum(numbers, 1 - numbers)

    def check_batch(self, batch_size: int, processes: int = 1) -> None:
        super().check_batch(batch_size, processes)
        if batch_size < 2 * processes:
            raise UserError("i-mix mixes the images of a batch; use two or more for each process")
