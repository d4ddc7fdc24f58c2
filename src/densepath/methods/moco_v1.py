"""MoCo-v1: contrast of whole images against a queue of keys, with a linear head."""

from __future__ import annotations

from typing import Unpack

from densepath.core.momentum import Momentum
from densepath.methods.moco_v2 import MoCoV2, QueueOptions
from densepath.nets.backbones import Backbone
from densepath.nets.heads import LinearHead
from densepath.views.augment import Augment, Union


class MoCoV1(MoCoV2):
    """Momentum contrast.

    L_q = InfoNCE(q, k+, queue) (Equation 1) as in MoCo-v2, which differs from it in three things: here h is one linear
    layer, the temperature is lower, and views are not blurred, but always change their color.

    The released code turns views grey before it jitters their color; here that comes after it, as everywhere.

    Args:
        backbone: the query encoder; the key encoder is its momentum copy.
        dim: length of the embeddings.
        temperature: of the contrast.
        **moco: as in :class:`MoCoV2`.

    Source: He et al., CVPR 2020, arXiv 1911.05722; queue and augmentation as ConCL (ECCV 2022) runs it.
    """

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 128,
        temperature: float = 0.07,
        **moco: Unpack[QueueOptions],
    ) -> None:
        super().__init__(backbone, dim=dim, hidden_dim=dim, temperature=temperature, **moco)
        self.head = LinearHead(backbone.channels[backbone.deepest], dim)
        self.key_head = Momentum(self.head)

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Augment | Union]:
        return MoCoV2.views(augment or Augment(jitter=1.0, hue=0.4, blur=0.0))
