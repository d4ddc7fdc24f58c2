"""Masked images for ConvNets: feature maps with learned vectors at masked positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.backbones import TRIAL_SIZE, Backbone
from densepath.nets.preserve_mode import preserve_mode
from densepath.nets.sparse import Visible, check_sparse, encode_sparsely

_ENDS = ("before_pool", "after_pool")


class MaskedStem(nn.Module):
    """Runs a backbone on the visible part of each image, with a learned vector after its stem.

    With e = f_1(x * m) for the stem f_1 and a mask m of 1 where x is visible (Equation 1), m_stem the mask at the size
    of e, and MASK the vector, z_1 = e * m_stem + (1 - m_stem) * MASK (Equation 2) and z_i = f_i(z_{i-1}) for the stages
    after it (Equation 3). All convolutions are dense: visible pixels influence masked positions.

    The paper does not say where a ResNet's stem ends, nor how MASK is initialized (here: normal with deviation 0.02, as
    in SparK and MAE). A network without f1 has its stem before f2: ConvNeXt's patchify layer.

    Args:
        backbone: the backbone that will be given to :meth:`forward`.
        end: where the stem ends: before the max-pool of a ResNet after f1, or after it. A network without one supports
            only the first.

    Attributes:
        channels: channels of z_1, z_2, ...
        strides: strides of z_1, z_2, ..., in pixels.

    Raises:
        UserError: the backbone cannot be divided after its stem, or not at ``end``.

    Source: Yang et al., Conv-MIM, WACV 2024, section 3.
    """

    def __init__(self, backbone: Backbone, end: Literal["before_pool", "after_pool"] = "before_pool") -> None:
        super().__init__()
        if end not in _ENDS:
            raise UserError(f"unknown stem {end!r}; there are: {', '.join(_ENDS)}")
        self.end = end
        later = [stage for stage in backbone.stages if stage > 1]
        first = self._try_stem(backbone)
        self.channels = (first.shape[1], *(backbone.channels[stage] for stage in later))
        self.strides = (TRIAL_SIZE // first.shape[2], *(backbone.strides[stage][0] for stage in later))
        self.token = _make_token(first.shape[1])

    def forward(self, backbone: Backbone, pixels: Tensor, visible: Visible) -> list[Tensor]:
        """The maps z_1, z_2, ... of partly visible images.

        Args:
            backbone: the backbone of the constructor.
            pixels: (B, 3, S, S) normalized.
            visible: the visible patches.
        """
        stem, *stages = backbone.stem_and_stages(pooled=self.end == "after_pool")
        maps = [visible.fill(_run(stem, visible.clean(pixels)), self.token)]
        for modules in stages:
            maps.append(_run(modules, maps[-1]))
        return maps

    @torch.no_grad()
    def _try_stem(self, backbone: Backbone) -> Tensor:
        """A map of the stem, for its shape."""
        stem = backbone.stem_and_stages(pooled=self.end == "after_pool")[0]
        with preserve_mode(backbone):
            backbone.eval()
            return _run(stem, torch.zeros(1, backbone.in_channels, TRIAL_SIZE, TRIAL_SIZE))


class MaskedStages(nn.Module):
    """Runs a backbone sparsely on the visible part of each image, with a learned vector in each of its maps.

    Features do not spread across masked positions (see :func:`encode_sparsely`); after the backbone, the masked
    positions of each stage get the vector of that stage. Arguments, attributes and maps are as for :class:`MaskedStem`.

    Source: SparK (ICLR 2023), section 3.2, for all existing stages.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        check_sparse(backbone)
        self.channels = tuple(backbone.channels.values())
        self.strides = tuple(stride[0] for stride in backbone.strides.values())
        self.tokens = nn.ParameterList(_make_token(count) for count in self.channels)

    def forward(self, backbone: Backbone, pixels: Tensor, visible: Visible) -> list[Tensor]:
        """Arguments as for :class:`MaskedStem`; patches have at least the stride of the deepest stage."""
        maps = encode_sparsely(backbone, pixels, visible).values()
        return [visible.fill(x, token) for x, token in zip(maps, self.tokens, strict=True)]


def _make_token(channels: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(channels), std=0.02))


def _run(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x
