"""Projection heads, between a backbone and a contrastive loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.core.losses import full_precision
from densepath.nets.norms import normalize_rows


class LinearHead(nn.Linear):
    """One linear layer: the MoCo-v1 projector.

    Args:
        in_features, out_features: as in :class:`MLPHead`.

    Source: ConCL (ECCV 2022) uses 512-128 for ResNet-18.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        _check_widths(out_features)
        super().__init__(in_features, out_features)
        _initialize(self)


class MLPHead(nn.Module):
    """Linear, ReLU, Linear: the MoCo-v2 projector.

    Args:
        in_features: channels of the input vectors, e.g. of a pooled stage f5.
        hidden_features: channels between the two layers.
        out_features: channels of the projected vectors.

    Source: ConCL (ECCV 2022) uses 512-512-128 for ResNet-18.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        _check_widths(hidden_features, out_features)
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features)
        _initialize(self.fc1, self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Project (..., in_features) to (..., out_features); the result is not normalized."""
        return self.fc2(self.fc1(x).relu())


class DenseHead(nn.Module):
    """Convolution of 1 x 1, ReLU, convolution of 1 x 1: the DenseCL projector of each position of a feature map.

    Its initialization is torch's default, as in the released DenseCL, which initializes only linear layers.

    Args:
        in_features, hidden_features, out_features: as in :class:`MLPHead`.
        ndim: dimensions of the map: 2, or 3 for volumes.

    Source: Wang et al., DenseCL, CVPR 2021, section 3.2.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int, ndim: int = 2) -> None:
        super().__init__()
        _check_widths(hidden_features, out_features)
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        self.conv1 = convolution(in_features, hidden_features, 1)
        self.conv2 = convolution(hidden_features, out_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Project (B, in_features, *spatial) to (B, out_features, *spatial); the result is not normalized."""
        return self.conv2(self.conv1(x).relu())


class NormedHead(nn.Module):
    """Linear, batch norm, ReLU, Linear, perhaps another batch norm: the projectors of SimCLR and BYOL.

    A linear layer before a batch norm has no bias, because the norm would remove it.

    Args:
        in_features, hidden_features, out_features: as in :class:`MLPHead`.
        last_norm: whether a batch norm comes last, as in SimCLR.

    Source: ConCL (ECCV 2022) uses 512-512-128 for SimCLR and 512-512-256 for BYOL.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int, last_norm: bool = False) -> None:
        super().__init__()
        _check_widths(hidden_features, out_features)
        self.fc1 = nn.Linear(in_features, hidden_features, bias=False)
        self.norm1 = nn.BatchNorm1d(hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features, bias=not last_norm)
        self.norm2 = nn.BatchNorm1d(out_features) if last_norm else nn.Identity()
        _initialize(self.fc1, self.fc2)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Project (B, in_features) to (B, out_features); the result is not normalized to unit length.

        Only the rows in ``valid`` (B,), by default all, enter batch statistics.
        """
        hidden = normalize_rows(self.norm1, self.fc1(x), valid).relu()
        return normalize_rows(self.norm2, self.fc2(hidden), valid)


class PrototypeHead(nn.Module):
    """Three linear layers with GELU, a unit vector, and its products with K prototypes: the head of DINO.

    Args:
        in_features, hidden_features: as in :class:`MLPHead`.
        dim: channels of the unit vector.
        prototypes: their number K.
        fixed_lengths: whether the prototypes stay unit vectors.
        batch_norm: whether the hidden layers have a batch norm before their GELU, and no bias.

    Source: Caron et al., DINO, ICCV 2021, appendix C.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        dim: int,
        prototypes: int,
        fixed_lengths: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        _check_widths(hidden_features, dim)
        self.fc1 = nn.Linear(in_features, hidden_features, bias=not batch_norm)
        self.fc2 = nn.Linear(hidden_features, hidden_features, bias=not batch_norm)
        self.fc3 = nn.Linear(hidden_features, dim)
        self.norm1, self.norm2 = (nn.BatchNorm1d(hidden_features) if batch_norm else nn.Identity() for _ in range(2))
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.prototypes = Prototypes(dim, prototypes, fixed_lengths)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """The scores (N, K) of vectors (N, in_features), of which only those in valid (N,) enter batch statistics."""
        return self.embed(x, valid) @ self.prototypes().T

    def embed(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """The unit vectors (N, dim) of vectors (N, in_features), as for :meth:`forward`."""
        for layer, norm in ((self.fc1, self.norm1), (self.fc2, self.norm2)):
            x = F.gelu(normalize_rows(norm, layer(x), valid))
        return F.normalize(full_precision(self.fc3(x)), dim=1)


class Prototypes(nn.Module):
    """K vectors: a weight-normalized linear layer, whose scores are products with them.

    As in the released DINO it has the default initialization of a linear layer, and lengths of 1.

    Args:
        dim, prototypes, fixed_lengths: as in :class:`PrototypeHead`.

    Raises:
        UserError: there are fewer than two, to which all images are assigned alike.
    """

    def __init__(self, dim: int, prototypes: int, fixed_lengths: bool) -> None:
        super().__init__()
        if prototypes < 2:
            raise UserError(f"there must be two prototypes or more, not {prototypes}")
        self.directions = nn.Parameter(nn.Linear(dim, prototypes, bias=False).weight.detach())
        self.lengths = nn.Parameter(torch.ones(prototypes, 1), requires_grad=not fixed_lengths)

    def forward(self) -> Tensor:
        """(K, dim)."""
        return self.lengths * F.normalize(self.directions, dim=1)


def _check_widths(*widths: int) -> None:
    if min(widths) < 1:
        raise UserError(f"the layers of a head need at least one channel, not {min(widths)}")


def _initialize(*layers: nn.Linear) -> None:
    """Kaiming-normal over the fan-in with the gain of a ReLU, biases zero."""
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
