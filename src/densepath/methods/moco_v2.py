"""MoCo-v2: contrasts whole images with a queue of keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.distillation import deviation
from densepath.core.distributed import Shuffle
from densepath.core.errors import UserError, counted
from densepath.core.losses import full_precision, info_nce, standardize
from densepath.core.momentum import Momentum
from densepath.core.queue import Queue
from densepath.core.regions import global_pool
from densepath.methods.base import Losses, Method
from densepath.nets.backbones import Backbone
from densepath.nets.heads import MLPHead
from densepath.nets.norms import normalized_together
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch


class QueueOptions(TypedDict, total=False):
    """Parameters of :class:`MoCoV2` except those of its loss and its head."""

    queue_size: int
    momentum: float
    standardize: bool
    shuffle: bool


class MoCoOptions(QueueOptions, total=False):
    """All parameters of :class:`MoCoV2` after the backbone, for the methods that extend it."""

    dim: int
    hidden_dim: int
    temperature: float


class MoCoV2(Method):
    """Momentum contrast with an MLP head.

    L_q = InfoNCE(q, k+, queue) with q = h(GAP(f5(x_q))), k from the momentum encoder (ConCL, Equation 1).

    Args:
        backbone: the query encoder; the key encoder is its momentum copy.
        dim: dimension of the embeddings.
        hidden_dim: width of the head's hidden layer.
        temperature: temperature of the contrastive loss.
        queue_size: number of keys kept as negatives.
        momentum: momentum of the key encoder, per optimizer step.
        standardize: whether embeddings are standardized over the batch before they become unit vectors. The paper does
            not. Without it the embeddings of all images are nearly parallel at the start, and a run of a few thousand
            steps mostly learns to turn their common direction away from that of older keys.
        shuffle: whether keys are shuffled in the global batch before they are encoded, so that the batch statistics of
            a key do not reveal its query. This has no effect if all images share their statistics.

    Source: He et al., CVPR 2020; Chen et al., arXiv 2003.04297.
    """

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 128,
        hidden_dim: int = 512,
        temperature: float = 0.2,
        queue_size: int = 16384,
        momentum: float = 0.999,
        standardize: bool = False,
        shuffle: bool = True,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"the temperature must be positive, not {temperature}")
        if not 0 <= momentum <= 1:
            raise UserError(f"the momentum must be between 0 and 1, not {momentum}")
        self.backbone = backbone
        self.head: nn.Module = MLPHead(backbone.channels[backbone.deepest], hidden_dim, dim)
        self.key_backbone = Momentum(self.backbone)
        self.key_head: Momentum[nn.Module] = Momentum(self.head)
        self.queue = Queue(queue_size, dim)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.temperature = temperature
        self.momentum = momentum
        self.standardize = standardize
        self.shuffle = shuffle

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        view = (augment or Augment()).random_view()
        return {"query": view, "key": view}

    def before_step(self, batch: Batch) -> None:
        self.key_backbone.update(self.backbone, self.momentum)
        self.key_head.update(self.head, self.momentum)

    def forward(self, batch: Batch) -> Losses:
        query, key = self.encode(batch)
        loss, statistics = self.instance_loss(query, key)
        return Losses(loss, {"instance_loss": loss.detach()}, statistics)

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        if self.queue.size < batch_size:
            raise UserError(
                f"a queue of {counted(self.queue.size, 'key')} is smaller than a batch of "
                f"{counted(batch_size, 'image')}; use --method.queue_size {batch_size} or more"
            )

    def chance(self) -> Mapping[str, float]:
        # The queue starts with random unit vectors, so it always has all of its negatives.
        return {"instance_loss": math.log(self.queue.size + 1)}

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The last features of the query and key views, each (B, C, h, w)."""
        query = self.backbone(batch["query"].pixels)[self.backbone.deepest]
        with torch.no_grad():
            pixels = batch["key"].pixels
            if self.shuffle:
                together = normalized_together(self.key_backbone, len(pixels))
                shuffle = Shuffle(len(pixels), batch.seed, batch.step, together)
                # The whole map is unshuffled: ConCL pools it with the masks of its own images.
                key = shuffle.restore(self.key_backbone(shuffle.deal(pixels))[self.backbone.deepest])
            else:
                key = self.key_backbone(pixels)[self.backbone.deepest]
        return query, key

    def instance_loss(self, query: Tensor, key: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_q of two feature maps (B, C, h, w), and statistics; their keys join the queue after the step."""
        q, k = self.embed(global_pool(query), global_pool(key))
        return self.contrast(*self.unit(q, k)), {"key_spread": deviation(k)}

    def contrast(self, q: Tensor, k: Tensor) -> Tensor:
        """L_q of embeddings (B, dim); the keys join the queue after the step."""
        loss = info_nce(q, k, self.queue.keys(), self.temperature).mean()
        self.queue.enqueue(k)
        return loss

    def embed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, dim), neither standardized nor normalized, of pooled features (N, C)."""
        q = full_precision(self.head(query))
        with torch.no_grad():
            return q, full_precision(self.key_head(key))

    def unit(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings (N, dim) as unit vectors; ``mask`` (N,) names the rows that count."""
        if self.standardize:
            q, k = standardize(q, mask), standardize(k, mask)
        return F.normalize(q, dim=1), F.normalize(k, dim=1)
