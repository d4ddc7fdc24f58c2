"""Projection heads: what stands between a backbone and a contrastive loss."""

from __future__ import annotations

from torch import Tensor, nn


class MLPHead(nn.Module):
    """Linear, ReLU, Linear: the MoCo-v2 projector.

    Args:
        in_features: channels of the vectors that come in, e.g. those of a pooled stage f5.
        hidden_features: channels between the two layers.
        out_features: channels of the projected vectors.

    Source: ConCL (ECCV 2022) uses 512-512-128 for ResNet-18.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Project (..., in_features) to (..., out_features); the result is not normalised."""
        return self.fc2(self.fc1(x).relu())
