"""Noise-contrastive estimation against a fixed normalization: the loss of C2L and of the released PCRL."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.distributed import mean
from densepath.core.losses import full_precision


class FixedNCE(nn.Module):
    """Each key is classified as the positive or as noise.

    With scores s = q k / t, the mean z of exp(s) over the first batch, and M negatives,

    L = mean over queries of  softplus(-l+) + sum over negatives of softplus(l-),   l = s - log z - log M.

    This is the released loss without its epsilon, in which the number of images cancels (a relative difference of the
    gradient of at most 5e-5).

    Args:
        temperature: t, at least :attr:`LEAST`: z is a float32.

    Source: Zhou et al., C2L, MICCAI 2020, released code; Wu et al., CVPR 2018.
    """

    LEAST: ClassVar[float] = 0.012
    scale: Tensor

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("scale", torch.zeros(()))  # z; 0 before the first batch

    def forward(self, query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
        """L of unit vectors: queries (B, D), a positive key for each, and negatives (M, D)."""
        with torch.autocast(query.device.type, enabled=False):
            query, positive, negatives = (full_precision(x) for x in (query, positive, negatives))
            own = (query * positive).sum(1, keepdim=True)
            scores = torch.cat((own, query @ negatives.T), dim=1) / self.temperature
            with torch.no_grad():
                z = scores.exp().mean(dtype=torch.float64)  # a sum of large exponentials exceeds float32
                self.scale.copy_(torch.where(self.scale > 0, self.scale, mean(z)))
            logits = scores - self.scale.log().to(scores.dtype) - torch.log(torch.tensor(len(negatives)))
            return (F.softplus(-logits[:, 0]) + F.softplus(logits[:, 1:]).sum(1)).mean()

    @staticmethod
    def chance(negatives: int) -> float:
        """The least L of scores that are equal for all keys: all probabilities are then 1 / (M + 1)."""
        return math.log1p(negatives) + negatives * math.log1p(1 / negatives)
