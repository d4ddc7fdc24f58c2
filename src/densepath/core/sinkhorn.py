"""The Sinkhorn-Knopp algorithm: distributions over prototypes in which all prototypes are equally frequent."""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.core.distributed import gather


@torch.no_grad()
def sinkhorn(scores: Tensor, valid: Tensor | None = None, iterations: int = 3) -> Tensor:
    """Balance distributions over prototypes.

    Each iteration divides exp(scores) by its sums over the rows of all processes, so that each prototype has an equal
    share, and then by its sums over prototypes, so that each row is a distribution again. It works with logarithms,
    which cannot overflow.

    Args:
        scores: (N, K), divided by the temperature.
        valid: (N,) bool: the rows that exist; all by default. The others get a distribution, but no share of one.
        iterations: number of iterations.

    Returns:
        (N, K) logarithms of the distributions.

    Source: Caron et al., SwAV, NeurIPS 2020, section 3.1; as in the released code of DINOv2.
    """
    logs = scores
    for _ in range(iterations):
        kept = logs if valid is None else logs.masked_fill(~valid.unsqueeze(1), -torch.inf)
        shares = gather(kept.logsumexp(0, keepdim=True)).logsumexp(0)
        # Without any valid row shares are log 0.
        logs = (logs - shares.nan_to_num(neginf=0.0)).log_softmax(1)
    return logs
