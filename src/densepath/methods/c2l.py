"""C2L: contrasts radiographs, mixtures of them, and mixtures with mixed keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.distillation import deviation
from densepath.core.distributed import Shuffle
from densepath.core.errors import UserError
from densepath.core.fixed_nce import FixedNCE
from densepath.core.losses import full_precision, standardize
from densepath.core.momentum import Momentum
from densepath.core.queue import Queue
from densepath.core.regions import global_pool
from densepath.methods.base import Losses, Method
from densepath.nets.backbones import Backbone
from densepath.nets.heads import LinearHead
from densepath.nets.norms import normalized_together
from densepath.views.augment import Augment
from densepath.views.corruptions import Cutout
from densepath.views.declarations import Declaration
from densepath.views.view import Batch

Maps = dict[int, Tensor]
_CALLS = 3  # contrasts of a step, each of which adds keys to the queue
_PARTNERS = 2**31  # steps that no run has: permutations that are not those of shuffled keys


class C2LOptions(TypedDict, total=False):
    """Parameters of :class:`C2L` except its temperature."""

    dim: int
    queue_size: int
    momentum: float
    shuffle: bool
    standardize: bool


class C2L(Method):
    """Comparing to learn.

    With embeddings q of one view and k of the other by the momentum encoder, lambda = max(l, 1 - l) for l uniform in
    [0, 1], and a permutation p of the batch, x' = lambda x + (1 - lambda) x_p is mixed for both views, and

    L = 1/3 (NCE(q, k) + NCE(q', k') + NCE(q', lambda k + (1 - lambda) k_p)),

    where q' and k' are embeddings of mixed views, and the last keys are mixed before they become unit vectors. Each of
    the three pushes its keys, so those of the first are negatives of the next ones.

    Args:
        backbone: the query encoder.
        dim: dimension of the embeddings.
        temperature: temperature of the contrast.
        queue_size: number of keys kept as negatives; three of each image.
        momentum: momentum of the key encoder, per optimizer step.
        shuffle: whether keys are shuffled as in MoCo.
        standardize: whether embeddings are standardized over the batch, as in :class:`MoCoV2`; without it the keys of
            short runs become alike.

    Source: Zhou et al., MICCAI 2020, arXiv 2007.07423; as released. Its memory starts with uniform numbers, ours with
    random unit vectors. It converts views to grey before it jitters their color, and has black corners where crops are
    rotated.
    """

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 128,
        temperature: float = 0.07,
        queue_size: int = 16384,
        momentum: float = 0.999,
        shuffle: bool = True,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        if temperature < FixedNCE.LEAST or not 0 <= momentum <= 1:
            raise UserError(f"C2L needs a temperature of at least {FixedNCE.LEAST} and a momentum from 0 to 1")
        self.backbone = backbone
        self.head = self.make_head(backbone.channels[backbone.deepest], dim)
        self.key_backbone, self.key_head = Momentum(self.backbone), Momentum(self.head)
        self.queue, self.nce = Queue(queue_size, dim), FixedNCE(temperature)
        self.momentum, self.shuffle, self.standardize = momentum, shuffle, standardize

    @staticmethod
    def make_head(width: int, dim: int) -> torch.nn.Module:
        """The head from the pooled deepest map to an embedding."""
        return LinearHead(width, dim)

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        """Two crops with three holes."""
        own = Augment(rotation=10.0, jitter=1.0, hue=0.4, blur=0.0)
        view = (augment or own).random_view()
        view = replace(view, appearance=(*view.appearance, Cutout()))
        return {"first": view, "second": view}

    def before_step(self, batch: Batch) -> None:
        self.key_backbone.update(self.backbone, self.momentum)
        self.key_head.update(self.head, self.momentum)

    def forward(self, batch: Batch) -> Losses:
        first, second = batch["first"].pixels, batch["second"].pixels
        q, k = self.embed(self.backbone(first)), self.embed_keys(self.encode_keys(batch, second))
        share = self.share(batch, 0)
        mixed_q = self.embed(self.backbone(self.mixed(batch, share, first)))
        mixed_k = self.embed_keys(self.encode_keys(batch, self.mixed(batch, share, second)))
        loss = self.contrasts(batch, share, q, k, mixed_q, mixed_k)
        return Losses(loss, {"instance_loss": loss.detach()}, {"key_spread": deviation(k)})

    def contrasts(self, batch: Batch, share: float, q: Tensor, k: Tensor, mixed_q: Tensor, mixed_k: Tensor) -> Tensor:
        """L of embeddings (B, dim), neither standardized nor normalized; their keys join the queue at once."""
        if self.standardize:
            q, k, mixed_q, mixed_k = (standardize(each) for each in (q, k, mixed_q, mixed_k))
        pairs = ((q, k), (mixed_q, mixed_k), (mixed_q, self.mixed(batch, share, k)))
        losses = []
        for query, key in pairs:
            key = F.normalize(key, dim=1)
            losses.append(self.nce(F.normalize(query, dim=1), key, self.queue.keys().clone()))
            self.queue.enqueue(key)
            self.queue.after_step()
        return torch.stack(losses).mean()

    def embed(self, maps: Maps) -> Tensor:
        """Embeddings (B, dim) of the query encoder's maps."""
        return self._embedding(self.head, maps)

    @torch.no_grad()
    def embed_keys(self, maps: Maps) -> Tensor:
        """Embeddings (B, dim) of the key encoder's maps."""
        return self._embedding(self.key_head, maps)

    def _embedding(self, head: torch.nn.Module, maps: Maps) -> Tensor:
        return full_precision(head(global_pool(maps[self.backbone.deepest])))

    @torch.no_grad()
    def encode_keys(self, batch: Batch, pixels: Tensor) -> Maps:
        """The maps of the key encoder, shuffled between the processes and back."""
        if not self.shuffle:
            return self.key_backbone(pixels)
        shuffle = Shuffle(len(pixels), batch.seed, batch.step, normalized_together(self.key_backbone, len(pixels)))
        return {stage: shuffle.restore(x) for stage, x in self.key_backbone(shuffle.deal(pixels)).items()}

    def share(self, batch: Batch, number: int) -> float:
        """Lambda of the whole batch, at least one half; ``number`` for several independent ones."""
        value = float(batch.common_uniform(number + 1)[number])
        return max(value, 1 - value)

    @torch.no_grad()
    def mixed(self, batch: Batch, share: float, x: Tensor) -> Tensor:
        """Images or keys, mixed with those of other images of the global batch."""
        partners = Shuffle(len(x), batch.seed, batch.step + _PARTNERS, group=1)
        return share * x + (1 - share) * partners.deal(x)

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        self.queue.check_size(_CALLS * batch_size)

    def chance(self) -> Mapping[str, float]:
        """The least loss with scores that do not depend on the images."""
        return {"instance_loss": self.nce.chance(self.queue.size)}
