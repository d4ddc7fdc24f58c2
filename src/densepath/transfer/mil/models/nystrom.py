"""Nyström attention: softmax attention of many tokens by way of a few landmarks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_KERNEL = 33  # of the residual convolution


class NystromAttention(nn.Module):
    """Multi-head self-attention in linear time and memory, with a convolution of the values added.

    Args:
        dim: size of a token.
        heads: number of heads.
        landmarks: number of landmarks, means of successive tokens.
        iterations: of the pseudo-inverse.
        dropout: of the output.

    Source: Xiong et al., AAAI 2021, as TransMIL uses it.
    """

    def __init__(
        self, dim: int, heads: int = 8, landmarks: int = 256, iterations: int = 6, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.convolution = nn.Conv1d(heads, heads, _KERNEL, padding=_KERNEL // 2, groups=heads, bias=False)
        self.output = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The new tokens (N, dim), and the attention (N,) of the first token, the mean over the heads.

        Args:
            tokens: (N, dim).
        """
        count, dim = tokens.shape
        pad = -count % self.landmarks
        padded = F.pad(tokens, (0, 0, pad, 0))  # in front, as in the released code
        q, k, v = self.qkv(padded).view(len(padded), 3, self.heads, -1).permute(1, 2, 0, 3)  # (heads, N, d)
        q = q * q.shape[-1] ** -0.5
        groups = (self.heads, self.landmarks, -1, q.shape[-1])
        q_land, k_land = q.reshape(groups).mean(2), k.reshape(groups).mean(2)
        near = (q @ k_land.mT).softmax(-1)  # (heads, N, landmarks)
        alike = max(1, pad // (len(padded) // self.landmarks))  # landmarks of padding only, which are all 0
        middle = pseudo_inverse((q_land @ k_land.mT).softmax(-1), self.iterations, alike).to(v.dtype)
        far = (q_land @ k.mT).softmax(-1)  # (heads, landmarks, N)
        attended = (near @ middle) @ (far @ v) + self._convolve(v)
        out: Tensor = self.output(attended.transpose(0, 1).reshape(len(padded), dim))
        first = ((near[:, pad : pad + 1] @ middle) @ far)[:, 0, pad:].mean(0)
        return out[pad:], first

    def _convolve(self, values: Tensor) -> Tensor:
        """A convolution over the tokens, one filter for each head, of values (heads, N, d)."""
        return self.convolution(values.permute(2, 0, 1)).permute(1, 2, 0)


def pseudo_inverse(x: Tensor, iterations: int, alike: int = 1) -> Tensor:
    """The Moore-Penrose inverse of matrices (..., M, M) by iteration, in full precision.

    With rows and columns that are alike, X is U S U^T with orthonormal columns of U, one of them for those rows, and
    every iterate is U Z U^T: the iteration takes place on S and Z, which are smaller.

    Args:
        x: the matrices.
        iterations: number of iterations.
        alike: how many of the first rows are alike, and of the first columns.

    Source: Razavi et al. 2014, as in Xiong et al., equation 11.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float() if x.dtype != torch.float64 else x
        scale = x.abs().sum(-1).max() * x.abs().sum(-2).max()
        times = x.new_ones(x.shape[-1] - alike + 1)  # that each row of S is in X
        times[0] = alike
        weight = (times[:, None] * times).sqrt()
        x = x[..., alike - 1 :, alike - 1 :] * weight
        z = x.mT / scale
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        for _ in range(iterations):
            xz = x @ z
            z = 0.25 * z @ (13 * identity - xz @ (15 * identity - xz @ (7 * identity - xz)))
        z = z / weight
        for dim in (-1, -2):
            z = torch.cat((z.narrow(dim, 0, 1).repeat_interleave(alike - 1, dim), z), dim)
    return z
