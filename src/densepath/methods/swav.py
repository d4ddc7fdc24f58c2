"""SwAV: each view predicts the balanced assignment of another one to prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.distillation import deviation
from densepath.core.distributed import rank, world_size
from densepath.core.errors import UserError, counted
from densepath.core.losses import full_precision
from densepath.core.queue import Queue
from densepath.core.regions import global_pool
from densepath.core.sinkhorn import sinkhorn
from densepath.methods.base import Losses, Method
from densepath.methods.option_effects import Needed, With
from densepath.nets.backbones import Backbone
from densepath.nets.heads import NormedHead, Prototypes
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch

_LOCAL = 96 / 224
_SPLIT = 0.14  # share of the image: the least of a global crop, and the most of a local one
_SMALLEST = 0.05


class SwAV(Method):
    """Swapping assignments between views.

    With unit vectors z of all crops, prototypes C of unit length, and codes q_i = Sinkhorn(z_i C / epsilon) of each of
    the two global crops, balanced over the global batch,

    L = mean over images, global crops i and other crops v of  -sum over prototypes of  q_i log softmax(z_v C / t).

    For batches of fewer images than prototypes, a queue of each global crop's earlier vectors joins it in the balance
    of its codes, from when it is full.

    Args:
        backbone: the network.
        prototypes: number of prototypes.
        hidden_dim: width of the projector's hidden layer.
        dim: width of the vectors.
        temperature: t.
        epsilon: smoothness of the codes.
        local_crops: number of local crops.
        local_size: their size relative to that of the views.
        queue_size: earlier vectors in each queue; 0 for no queue.
        queue_epoch: epochs before vectors join the queues.

    Source: Caron et al., NeurIPS 2020, arXiv 2006.09882.
    """

    queues: Any  # two, in a list of modules
    queued: Tensor  # vectors so far
    batch_norm = "synchronized"
    views_together = 2
    needed_options: ClassVar[Needed] = {"local_size": (With("local_crops"),), "queue_epoch": (With("queue_size"),)}

    def __init__(
        self,
        backbone: Backbone,
        prototypes: int = 3000,
        hidden_dim: int = 2048,
        dim: int = 128,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        local_crops: int = 6,
        local_size: float = _LOCAL,
        queue_size: int = 0,
        queue_epoch: int = 0,
    ) -> None:
        super().__init__()
        if min(temperature, epsilon) <= 0:
            raise UserError(f"temperature and epsilon must be positive, not {temperature} and {epsilon}")
        if local_crops < 0 or not 0 < local_size <= 1:
            raise UserError("local_crops must be at least 0, and local_size a share of the view size, at most 1")
        if min(queue_size, queue_epoch) < 0:
            raise UserError(f"queue_size and queue_epoch must be at least 0, not {queue_size} and {queue_epoch}")
        self.backbone = backbone
        self.projector = NormedHead(backbone.channels[backbone.deepest], hidden_dim, dim)
        self.prototypes = Prototypes(dim, prototypes, fixed_lengths=True)
        self.temperature, self.epsilon = temperature, epsilon
        self.queue_size, self.queue_epoch = queue_size, queue_epoch
        if queue_size:
            self.queues = nn.ModuleList(Queue(queue_size, dim) for _ in range(2))
            self.register_buffer("queued", torch.zeros((), dtype=torch.int64))
        self._new = 0  # vectors of the current step
        self.views = partial(self.views, crops=local_crops, size=local_size)  # type: ignore[method-assign]
        self.unused_views = () if local_crops else ("local",)

    @staticmethod
    def views(augment: Augment | None = None, crops: int = 6, size: float = _LOCAL) -> dict[str, Declaration]:
        """Two global crops and the local ones, whose scale ends where that of the global ones begins."""
        own = augment or Augment(scale=(_SPLIT, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
        local = replace(own, scale=(min(_SMALLEST, own.scale[0]), own.scale[0]))
        views: dict[str, Declaration] = {"first": own.random_view(), "second": own.random_view()}
        return {**views, "local": local.random_view(size, max(crops, 1))}

    def forward(self, batch: Batch) -> Losses:
        sizes = [torch.cat((batch["first"].pixels, batch["second"].pixels))]
        if "local" in batch.views:
            sizes.append(batch["local"].pixels)
        pooled = torch.cat([global_pool(self.backbone(x)[self.backbone.deepest]) for x in sizes])
        with torch.autocast(pooled.device.type, enabled=False):
            vectors = F.normalize(full_precision(self.projector(full_precision(pooled))), dim=1)
            scores = (vectors @ self.prototypes().T).unflatten(0, (-1, len(batch)))  # (crops, B, K)
            codes = self.codes(scores[:2].detach())
            told = (scores / self.temperature).log_softmax(-1)
            losses = [
                -(code * told[crop]).sum(-1).mean()
                for i, code in enumerate(codes)
                for crop in range(len(scores))
                if crop != i
            ]
        if self.queue_size and batch.epoch >= self.queue_epoch:
            for queue, rows in zip(self.queues, vectors.detach().split(len(batch)), strict=False):
                queue.enqueue(rows)
            self._new += len(batch) * world_size()
        loss = torch.stack(losses).mean()
        return Losses(loss, {"swap_loss": loss.detach()}, {"key_spread": deviation(vectors[: len(batch)].detach())})

    @torch.no_grad()
    def codes(self, scores: Tensor) -> list[Tensor]:
        """Balanced distributions (B, K) of the scores (2, B, K) of global crops, each balanced with its queue."""
        if not self.queue_size:
            return [sinkhorn(each / self.epsilon).exp() for each in scores]
        # All processes have the same queues, so each brings its own part of the rows.
        mine = torch.arange(self.queue_size, device=scores.device) % world_size() == rank()
        valid = torch.cat((mine.new_ones(scores.shape[1]), mine & (self.queued >= self.queue_size)))
        earlier = [queue.keys() @ self.prototypes().T for queue in self.queues]
        every = [torch.cat(both) / self.epsilon for both in zip(scores, earlier, strict=True)]
        return [sinkhorn(each, valid)[: scores.shape[1]].exp() for each in every]

    def after_step(self) -> None:
        super().after_step()
        if self._new:
            self.queued += self._new
            self._new = 0

    def comparable(self, epoch: float, progress: float) -> bool:
        """Whether the queues join the balance of the codes, if there are any."""
        return not self.queue_size or int(self.queued) >= self.queue_size

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        if 0 < self.queue_size < batch_size:
            raise UserError(
                f"a queue of {counted(self.queue_size, 'vector')} is smaller than a batch of "
                f"{counted(batch_size, 'image')}; use --method.queue_size {batch_size} or more, or 0 for no queue"
            )

    def check_batch(self, batch_size: int, processes: int = 1) -> None:
        super().check_batch(batch_size, processes)
        if batch_size < 2 and not self.queue_size:
            raise UserError("the codes of a batch of one image are uniform, whatever it shows; use two or more")
