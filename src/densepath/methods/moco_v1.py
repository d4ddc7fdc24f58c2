"""MoCo-v1: contrasts whole images with a queue of keys, with a linear head."""

from __future__ import annotations

from typing import Unpack

from densepath.core.momentum import Momentum
from densepath.methods.moco_v2 import MoCoV2, QueueOptions
from densepath.nets.backbones import Backbone
from densepath.nets.heads import LinearHead
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration


class MoCoV1(MoCoV2):
    """Momentum contrast.

    L_q = InfoNCE(q, k+, queue) (Equation 1) as in MoCo-v2, with three differences: h is one linear layer, the
    temperature is lower, and views are not blurred, but always jittered in color.

    The released code converts views to grey before it jitters their color; here it is done after, as in all methods.

    Args:
        backbone: the query encoder; the key encoder is its momentum copy.
        dim: dimension of the embeddings.
        temperature: temperature of the contrastive loss.
        **moco: as in :class:`MoCoV2`.

    Source: He et al., CVPR 2020, arXiv 1911.05722; queue and augmentation as in ConCL (ECCV 2022).
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
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        return MoCoV2.views(augment or Augment(jitter=1.0, hue=0.4, blur=0.0))
