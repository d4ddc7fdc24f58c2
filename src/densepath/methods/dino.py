"""DINO: each view predicts a momentum teacher's distribution over prototypes for another view."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from densepath.core.distillation import Centering, Distillation, deviation, view_pairs
from densepath.core.errors import UserError
from densepath.core.momentum import Momentum
from densepath.core.regions import global_pool
from densepath.core.schedules import cosine
from densepath.methods.base import Losses, Method
from densepath.methods.collapse import same_for_all
from densepath.methods.dino_options import NEEDED
from densepath.methods.multi_crop import LOCAL, multi_crop
from densepath.methods.region_vectors import Vectors, flat
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.transformer_parts import (
    add_positions,
    choose_attention,
    embed_patches,
    narrows,
    require_transformer,
    run_blocks,
)
from densepath.nets.heads import PrototypeHead
from densepath.nets.stochastic_depth import StochasticDepth
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch, View

_DROPPED = 2**21  # stream of random numbers of stochastic depth


class DINO(Method):
    """Self-distillation with no labels.

    A student sees two global and several local crops of each image, its momentum teacher the global ones. With the
    teacher's distribution p_q of a global crop q and the student's p_v of a crop v (see :class:`Distillation`),

    L = mean over images and pairs v != q of  -sum over prototypes of  p_q log p_v   (Equations 2 and 3).

    A crop's vector is the mean of its patch tokens, as in DiRL. All crops of one size pass through the network
    together, and all vectors through the head. The momentum of the teacher rises to 1 along half a cosine wave. The
    teacher is updated before a step, in the released code after it. Stochastic depth is a function of image and epoch.

    Collapse shows in the statistics: ``entropy`` and ``kl_uniform`` of the teacher's distributions, as shares of ln K,
    and ``feature_std``, the deviation of the teacher's vectors over the batch: 1 if they have all directions, 0 if one.
    It is the smallest of all vectors that exist in two crops or more.

    Attributes:
        own_heads: names of the vectors that get a head from the start; a method with others adds them.

    Args:
        backbone: the student; the teacher, which is exported, is its momentum copy.
        prototypes: number K of prototypes.
        hidden_dim: width of the hidden layers of the head.
        dim: width of the vectors that are compared with the prototypes.
        fixed_lengths: whether prototypes stay unit vectors (``norm_last_layer`` in the released code).
        head_batch_norm: whether the hidden layers of the heads have batch norms (``use_bn_in_head``): over the vectors
            that exist of all crops, in the teacher those of the global ones.
        student_temperature: temperature of the student.
        teacher_temperature: temperature of the teacher, after its warm-up.
        teacher_temperature_start: temperature of the teacher in the first epoch.
        teacher_temperature_epochs: epochs of the warm-up of the teacher's temperature; 0 for none.
        centering: how the teacher's prototypes are kept equally frequent: by a running "mean" of its scores, as in the
            paper, or by the Sinkhorn-Knopp algorithm on each batch ("sinkhorn"), as in DINOv2.
        center_momentum: momentum of that mean.
        momentum: of the teacher at the start of the run; the released code advises 0.9995 for batches of 256.
        local_crops, local_size: number of local crops, and their size relative to that of the views.
        drop_path: probability of dropping a residual branch of the last block of a student that is a transformer.
        pool: a crop's vector: the "mean" of its positions, or the class token ("cls"), as in the paper.
        early_head: whether the vector before the last block of a transformer has a second head, and L is the mean of
            both losses (Baseline-13* of DiRL, Table 6).

    Source: Caron et al., ICCV 2021, arXiv 2104.14294.
    """

    batch_norm = "synchronized"
    views_together = 2
    needed_options = NEEDED
    own_heads: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        backbone: Backbone,
        prototypes: int = 65536,
        hidden_dim: int = 2048,
        dim: int = 256,
        fixed_lengths: bool = True,
        head_batch_norm: bool = False,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        teacher_temperature_start: float = 0.04,
        teacher_temperature_epochs: int = 0,
        centering: Centering = "mean",
        center_momentum: float = 0.9,
        momentum: float = 0.996,
        local_crops: int = 8,
        local_size: float = LOCAL,
        drop_path: float = 0.1,
        pool: Literal["mean", "cls"] = "mean",
        early_head: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise UserError(f"the momentum must be between 0 and 1, not {momentum}")
        if not min(teacher_temperature, teacher_temperature_start) > 0:
            raise UserError("the temperatures of the teacher must be positive")
        if local_crops < 0 or not 0 < local_size <= 1:
            raise UserError("local_crops must be at least 0, and local_size a share of the view size, at most 1")
        if pool not in ("mean", "cls"):
            raise UserError(f"unknown pool {pool!r}; there are: mean, cls")
        model = getattr(backbone.net, "model", None)
        if early_head and narrows(require_transformer(backbone, "early_head").blocks[-1:]):
            raise UserError(f"early_head needs the width of {backbone.name} before its last block; halve it earlier")
        if pool == "cls" and require_transformer(backbone, "pool cls").cls_token is None:
            raise UserError(f"{backbone.name} has no class token; use --method.pool mean")
        self.depth = StochasticDepth(model, drop_path) if hasattr(model, "blocks") else None
        self.backbone = backbone
        self.teacher = Momentum(self.backbone)
        self.head_widths, self.head_options = (hidden_dim, dim), (fixed_lengths, head_batch_norm)
        self.loss_options = (student_temperature, center_momentum, centering)
        self.heads, self.losses = nn.ModuleDict(), nn.ModuleDict()
        self.teacher_heads = Momentum(self.heads)
        names = (*self.own_heads, *("early",) * early_head)
        self.add_heads(dict.fromkeys(names, prototypes))
        self.weights = {name: 1 / len(names) for name in names}
        self.temperatures = (teacher_temperature_start, teacher_temperature, teacher_temperature_epochs)
        self.momentum = momentum
        self.pool = pool
        self.views = partial(self.views, crops=local_crops, size=local_size)  # type: ignore[method-assign]
        self.unused_views = () if local_crops else ("local",)

    def add_heads(self, prototypes: Mapping[str, int]) -> None:
        """Add a head and a loss for each vector, by its name and its number of prototypes."""
        width = self.backbone.channels[self.backbone.deepest]
        for name, count in prototypes.items():
            self.heads[name] = PrototypeHead(width, *self.head_widths, count, *self.head_options)
            self.teacher_heads.network[name] = copy.deepcopy(self.heads[name]).requires_grad_(False)
            self.losses[name] = Distillation(count, *self.loss_options)

    @staticmethod
    def views(augment: Augment | None = None, crops: int = 8, size: float = LOCAL) -> dict[str, Declaration]:
        return multi_crop(augment, crops, size, scale=(0.4, 1.0))

    def before_step(self, batch: Batch) -> None:
        self.teacher.update(self.backbone, self.teacher_momentum(batch))
        self.teacher_heads.update(self.heads, self.teacher_momentum(batch))

    def teacher_momentum(self, batch: Batch) -> float:
        """The momentum of the teacher before a step."""
        return cosine(self.momentum, 1.0, batch.progress)

    def forward(self, batch: Batch) -> Losses:
        sizes = self.crops(batch)
        with torch.no_grad():
            taught = self.teach(batch, sizes)
        if self.depth is not None:
            choose_attention(self.backbone.net.model.blocks, sizes[0].pixels.device)
        learned = [self.represent(batch, crops) for crops in self.dropping(batch, self.seen(batch, sizes))]
        return self.compare(batch, sizes, taught, learned)

    def compare(self, batch: Batch, sizes: list[View], taught: Vectors, learned: list[Vectors]) -> Losses:
        """The losses of the student's vectors of the crops of each size, given the teacher's of the global crops."""
        terms = {}
        statistics = {"feature_std": torch.stack([deviation(*flat(taught[name])) for name in self.weights]).amin()}
        total = torch.zeros((), device=sizes[0].pixels.device)
        for name, weight in self.weights.items():
            loss, found = self.distill(batch, name, taught[name], [vectors[name] for vectors in learned])
            total = total + weight * loss
            terms[f"{name}_loss"] = loss.detach()
            statistics |= {f"{name}_{what}": value for what, value in found.items()}
        return Losses(total, terms, statistics)

    def crops(self, batch: Batch) -> list[View]:
        """The global crops as one view, and the local ones."""
        first, second = batch["first"], batch["second"]
        together = View(torch.cat((first.pixels, second.pixels)), torch.cat((first.map, second.map)))
        return [together, *(batch[name] for name in ("local",) if name in batch.views)]

    def dropping(self, batch: Batch, sizes: list[View]) -> Iterator[View]:
        """The crops of each size; until the next one, the student drops residual branches, others for each crop."""
        if self.depth is None or not self.depth.paths or not self.training:
            yield from sizes
            return
        counts, paths = [len(view.pixels) for view in sizes], len(self.depth.paths)
        crops = sum(counts) // len(batch)
        numbers = batch.uniform(paths * crops, first=_DROPPED).view(len(batch), crops, paths).transpose(0, 1)
        parts = numbers.flatten(0, 1).to(sizes[0].pixels.device, non_blocking=True).split(counts)
        for view, part in zip(sizes, parts, strict=True):
            self.depth.draw(part)
            yield view
        self.depth.draw(None)

    def teach(self, batch: Batch, sizes: list[View]) -> Vectors:
        """The teacher's vectors, of the global crops."""
        return self.represent(batch, sizes[0], teacher=True)

    def represent(self, batch: Batch, crops: View, teacher: bool = False) -> Vectors:
        """The vectors of crops of one size by the student or the teacher."""
        backbone: Backbone = self.teacher.network if teacher else self.backbone
        if self.pool == "mean" and "early" not in self.weights:
            return {"image": (global_pool(backbone(crops.pixels)[backbone.deepest]), None)}
        model = backbone.net.model
        early = run_blocks(model, add_positions(model, embed_patches(model, crops.pixels)), 0, -1)
        tokens = {"early": early, "image": run_blocks(model, early, -1)}
        prefix = model.num_prefix_tokens
        return {
            name: (x[:, 0] if self.pool == "cls" else x[:, prefix:].mean(1), None)
            for name, x in ((name, model.norm(tokens[name])) for name in self.weights)
        }

    def distill(
        self, batch: Batch, name: str, taught: tuple[Tensor, Tensor | None], learned: list[tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one vector, and its statistics.

        Args:
            batch: the batch.
            name: name of the vector.
            taught: the teacher's vectors (2 B, C), and which of them exist.
            learned: the same of the student for the crops of each size.
        """
        vectors, valid = taught
        students = torch.cat([x for x, _ in learned])
        exists = None if valid is None else torch.cat([present for _, present in learned if present is not None])
        count = len(batch)
        rows, weights = view_pairs(count, len(vectors) // count, len(students) // count, vectors.device, valid, exists)
        return self.compare_rows(batch, name, taught, (students, exists), *self.pairs(batch, rows, weights))

    def compare_rows(
        self,
        batch: Batch,
        name: str,
        taught: tuple[Tensor, Tensor | None],
        learned: tuple[Tensor, Tensor | None],
        rows: Tensor,
        weights: Tensor,
        used: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of pairs of rows and its statistics; vectors without a head of their own share that of the image.

        If only some rows of the teacher are ``used`` (see :meth:`Distillation.targets`), pairs have rows of these.
        """
        own = name if name in self.heads else "image"
        head, loss, teacher = self.heads[own], self.losses[name], self.teacher_heads.network[own]
        assert isinstance(head, PrototypeHead) and isinstance(loss, Distillation) and isinstance(teacher, PrototypeHead)
        with torch.no_grad():
            keys, temperature = (teacher.embed(*taught), teacher.prototypes()), self.temperature(batch.epoch)
            targets, statistics = loss.targets(*keys, temperature, taught[1], used)
        return loss(head.embed(*learned), head.prototypes(), targets, rows, weights), statistics

    def seen(self, batch: Batch, sizes: list[View]) -> list[View]:
        """The crops of each size as the student sees them."""
        return sizes

    def pairs(self, batch: Batch, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs of :func:`view_pairs`, as they count in the loss."""
        return rows, weights

    def temperature(self, epoch: float) -> float:
        """The teacher's temperature: constant in each epoch of its linear warm-up."""
        start, end, epochs = self.temperatures
        return end if epoch >= epochs else start + (end - start) * int(epoch) / max(epochs - 1, 1)

    def comparable(self, epoch: float, progress: float) -> bool:
        """Whether the warm-up of the teacher's temperature has ended."""
        return self.temperature(epoch) == self.temperatures[1]

    def warnings(self, row: Mapping[str, float], last: bool) -> list[str]:
        """A line for each vector whose teacher gives all images the same distribution."""
        prototypes = {name: loss.center.numel() for name, loss in self.losses.items() if isinstance(loss, Distillation)}
        return same_for_all(row, prototypes)

    def exported_backbone(self) -> Backbone:
        return self.teacher.network

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        # The whole crops first: local ones of a wrong view size have a wrong size, too.
        super().check({name: size for name, size in sizes.items() if name != "local"}, batch_size, processes)
        patch, local = self.backbone.patch_size, sizes["local"]
        if self.unused_views:
            return
        if any(side % patch for side in local):
            largest = max(sizes["first"])
            fitting = max(patch, round(largest * LOCAL / patch) * patch)
            raise UserError(
                f"local crops of {local[0]} px are not a multiple of the patches of {patch} px of "
                f"{self.backbone.name}; set --method.local_size, e.g. {fitting / largest:.4g} for {fitting} px"
            )
        super().check({"local": local}, batch_size, processes)
