"""ConCL: contrasts concepts, the regions that two views of an image share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from densepath.concepts.build import SOURCES, build_source
from densepath.concepts.cells import CellConcepts
from densepath.concepts.image_labels import ImageLabels
from densepath.concepts.source import Concepts
from densepath.core.affine import label_shares, warp_labels
from densepath.core.errors import UserError, counted
from densepath.core.labels import main_labels, number_together
from densepath.core.losses import info_nce, masked_mean
from densepath.core.queue import Queue
from densepath.core.regions import Regions
from densepath.methods.base import Losses
from densepath.methods.moco_v2 import MoCoOptions, MoCoV2
from densepath.methods.needs import Need
from densepath.methods.option_effects import Needed, With, is_above, is_below, one_of
from densepath.nets.backbones import Backbone
from densepath.sources.pixel_source import PixelSource
from densepath.views.augment import Augment
from densepath.views.declarations import Cover, Declaration
from densepath.views.view import Batch

LEAST_SHARED = 1.0  # concepts that the views of an image share, on average; with fewer most images teach nothing
_KEY_CHOICE = 2**20  # stream of random numbers, after all that sources of concepts use


class ConCL(MoCoV2):
    """Concept contrastive learning.

    1. The reference view, the smallest rectangle that covers query and key, is divided into concepts; or the whole
       image is, once, before the run.
    2. They are restored in both views by the views' geometry; the feature of a concept is its masked average of f5.
    3. L = lambda * L_c + (1 - lambda) * L_q (section 5.2), where L_c (Equation 2) is InfoNCE over the concepts that
       both views show, against a queue of concepts. Instances and concepts share one head.

    Where the released code differs, this follows the paper: the key's feature map is unshuffled before pooling (there
    it stays shuffled, so concepts are contrasted with those of other images); all shared concepts join the queue unless
    ``keys_per_image`` limits them (there four per image on average when K > 8, and random repeats fill up a fixed
    number); masks are restored by exact shares of area (there by rounded slices). The mean of L_c is over the concepts
    of all processes.

    Args:
        backbone: the query encoder.
        concepts: source of the concepts: "kmeans" of the momentum encoder's features (b-ConCL), a "grid" (g-ConCL),
            "superpixels" (fh-ConCL), a "saliency" model (bas-ConCL), "nuclei" of H&E-stained tissue, "cells" (those of
            the run's option of this name), or "files".
        num_concepts: number K of clusters of "kmeans", or of neighborhoods of "cells"; with 1 the concepts of "cells"
            are cellular tissue and background.
        stage: stage f1..f5 of the features that "kmeans" clusters.
        grid_size: number s of squares along each side of "grid".
        superpixel_scale: scale s of "superpixels", which is also the smallest number of pixels of a superpixel.
        nucleus_radius: radius of a nucleus for "nuclei", in pixels of the images.
        restoration: "argmax", as in the paper: each position of a view's f5 gets the concept that covers most of it; or
            "shares": it gets all concepts that cover it, weighted by their share of it (not for "superpixels", "nuclei"
            and "files", whose numbers of concepts are unknown).
        concept_weight: weight lambda of the concept loss.
        warmup: share of the run at its start with only the instance loss; 20 of 200 epochs in the paper.
        concept_queue_size: number of concepts kept as negatives.
        keys_per_image: largest number of concepts of an image that join the queue in a step, chosen at random; null for
            all. The fewer, the more images the queue holds, and the older its keys.
        **moco: as in :class:`MoCoV2`. The reference views are never shuffled.

    Source: Yang et al., ECCV 2022, arXiv 2207.06733.
    """

    needed_options: ClassVar[Needed] = {
        "concept_weight": (With("warmup", is_below(1)),),
        "warmup": (With("concept_weight"),),
        **dict.fromkeys(("concepts", "restoration", "concept_queue_size", "keys_per_image"), (With("concept_weight"),)),
        **{name: (With("concepts", one_of(*sources)),) for name, sources in SOURCES.items()},
        "stage": (With("concepts", one_of(*SOURCES["stage"])), With("num_concepts", is_above(1))),
    }

    def __init__(
        self,
        backbone: Backbone,
        concepts: Literal["kmeans", "grid", "superpixels", "saliency", "nuclei", "cells", "files"] = "kmeans",
        num_concepts: int = 8,
        stage: int = 4,
        grid_size: int = 3,
        superpixel_scale: int = 50,
        nucleus_radius: float = 8.0,
        restoration: Literal["argmax", "shares"] = "argmax",
        concept_weight: float = 1.0,
        warmup: float = 0.1,
        concept_queue_size: int = 16384,
        keys_per_image: int | None = None,
        **moco: Unpack[MoCoOptions],
    ) -> None:
        super().__init__(backbone, **moco)
        if keys_per_image is not None and keys_per_image < 1:
            raise UserError(f"keys_per_image is {keys_per_image}; give at least 1, or null for all concepts")
        if not 0 <= concept_weight <= 1:
            raise UserError(f"the concept weight must be between 0 and 1, not {concept_weight}")
        if not 0 <= warmup <= 1:
            raise UserError(f"the warm-up is a share of the run, between 0 and 1, not {warmup}")
        if restoration not in ("argmax", "shares"):
            raise UserError(f"unknown restoration {restoration!r}; choose argmax or shares")
        self.source = build_source(
            concepts,
            num_concepts=num_concepts,
            stage=stage,
            grid_size=grid_size,
            superpixel_scale=superpixel_scale,
            nucleus_radius=nucleus_radius,
            ndim=backbone.ndim,
        )
        if restoration == "shares" and self.source.num_concepts is None:
            raise UserError(f"images have different numbers of concepts with {concepts}; use restoration argmax")
        if isinstance(self.source, ImageLabels):
            self.unused_views = ("reference",)
        self.concept_queue = Queue(concept_queue_size, self.dim)
        self.keys_per_image = keys_per_image
        self.concept_weight = concept_weight
        self.warmup = warmup
        self.restoration = restoration

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        return {**MoCoV2.views(augment), "reference": Cover(of=("query", "key"))}

    def forward(self, batch: Batch) -> Losses:
        query, key = self.encode(batch)
        if batch.progress < self.warmup or self.concept_weight == 0:
            instance_loss, spread = self.instance_loss(query, key)
            return Losses(instance_loss, {"instance_loss": instance_loss.detach()}, spread)
        # First, because autocast would reuse the weights that it converted in a pass without gradient.
        concept_loss, statistics = self.concept_loss(batch, query, key)
        instances_count = self.concept_weight < 1
        with nullcontext() if instances_count else torch.no_grad():
            instance_loss, spread = self.instance_loss(query, key)
        total = self.concept_weight * concept_loss
        if instances_count:
            total = total + (1 - self.concept_weight) * instance_loss
        terms = {"instance_loss": instance_loss.detach(), "concept_loss": concept_loss.detach()}
        return Losses(total, terms, {**statistics, **spread})

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        self.source.check(self.backbone, sizes["reference"])
        most = self.source.num_concepts or math.prod(self.backbone.grid(self.backbone.deepest, *sizes["query"]))
        most = min(most, self.keys_per_image or most)
        if self.concept_queue.size < batch_size * most:
            raise UserError(
                f"a concept queue of {counted(self.concept_queue.size, 'key')} is smaller than the "
                f"{batch_size * most} concepts ({most} on each of {counted(batch_size, 'image')}) that one "
                "batch may add; make the queue larger or the batch smaller"
            )

    def chance(self) -> Mapping[str, float]:
        return {**super().chance(), "concept_loss": math.log(self.concept_queue.size + 1)}

    def warnings(self, row: Mapping[str, float], last: bool) -> list[str]:
        few = row.get("shared_concepts", LEAST_SHARED) < LEAST_SHARED
        line = (
            f"shared_concepts is below {LEAST_SHARED:g}: the two views of an image share less than one concept on "
            "average; use larger crops (--augment.scale) or views, or fewer concepts"
        )
        return [*super().warnings(row, last), *[line] * few]

    def comparable(self, epoch: float, progress: float) -> bool:
        """Whether the warm-up has ended, if concepts follow it."""
        return progress >= self.warmup or self.warmup == 1 or self.concept_weight == 0

    def needs(self) -> Mapping[str, Need]:
        if isinstance(self.source, CellConcepts):
            return {"cells": Need("cells")}
        return {"regions": Need("regions", self.source.labeller)} if isinstance(self.source, ImageLabels) else {}

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str | None:
        self.extras = {name: given[name] for name in self.needs()}
        return given["cells"].describe() if "cells" in self.extras else None

    def concept_loss(self, batch: Batch, query: Tensor, key: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_c of two feature maps (B, C, h, w); their shared concepts join the concept queue after the step."""
        concepts = self.source(batch, self.key_backbone.network)
        in_query, in_key = self.restore(batch, concepts, query.shape[2:])
        shared = in_query.present() & in_key.present()  # (B, K)
        rows = shared.flatten()
        # Concepts that are not shared are masked, not removed: no device synchronization, and fixed shapes.
        q, k = self.embed(in_query.pool(query).flatten(0, 1), in_key.pool(key).flatten(0, 1))
        q, k = self.unit(q, k, rows)
        losses = info_nce(q, k, self.concept_queue.keys(), self.temperature, rows)
        self._enqueue(batch, k.unflatten(0, shared.shape), shared)
        statistics = {"shared_concepts": shared.sum(1).float().mean(), **concepts.statistics}
        return masked_mean(losses, rows), statistics

    def _enqueue(self, batch: Batch, k: Tensor, shared: Tensor) -> None:
        """Add keys (B, K, dim) to the concept queue: those of shared concepts (B, K), or a random choice of them."""
        if self.keys_per_image is not None and self.keys_per_image < shared.shape[1]:
            draws = batch.uniform(shared.shape[1], first=_KEY_CHOICE).to(shared.device, non_blocking=True)
            chosen = torch.where(shared, draws, 1.0).argsort(dim=1, stable=True)[:, : self.keys_per_image]
            k, shared = k.gather(1, chosen.unsqueeze(2).expand(-1, -1, k.shape[2])), shared.gather(1, chosen)
        self.concept_queue.enqueue(k.flatten(0, 1), shared.flatten())

    def restore(self, batch: Batch, concepts: Concepts, grid: torch.Size) -> tuple[Regions, Regions]:
        """The concepts at the positions of the query's and the key's features; ``grid`` is (h, w)."""
        maps = (batch["query"].map, batch["key"].map)
        count = self.source.num_concepts
        if self.restoration == "shares":
            assert count is not None
            query, key = (label_shares(concepts.labels, concepts.map, to_map, grid, count) for to_map in maps)
            return Regions(query), Regions(key)
        if count is not None:
            query, key = (warp_labels(concepts.labels, concepts.map, to_map, grid, count)[0] for to_map in maps)
        else:
            # A view shows at most as many of the concepts of its image as it has positions.
            count = grid.numel()
            query, key = (main_labels(concepts.labels, concepts.map, to_map, grid) for to_map in maps)
            query, key = number_together(query, key)
        return Regions.of_labels(query, count), Regions.of_labels(key, count)
