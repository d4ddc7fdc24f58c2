"""PCL-v2: contrasts whole images, and images with the prototypes of their clusters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.clustering import kmeans
from densepath.core.distillation import deviation
from densepath.core.distributed import broadcast, gather, rank, world_size
from densepath.core.errors import UserError, counted
from densepath.core.losses import full_precision, info_nce, standardize
from densepath.core.random import shuffled
from densepath.core.regions import global_pool
from densepath.methods.base import Heartbeat, Losses, no_heartbeat
from densepath.methods.moco_v2 import MoCoOptions, MoCoV2
from densepath.methods.option_effects import Needed, With, is_below
from densepath.nets.backbones import Backbone
from densepath.sources.pixel_source import PixelSource
from densepath.views.view import Batch

ITERATIONS = 20  # of k-means, as released
SMOOTHING = 10  # alpha of the concentration (paper, section 3.3)
IMAGES_PER_CLUSTER = (32, 16, 8)  # by default: 2500, 5000 and 10000 clusters of 80,000 images


class PCLV2(MoCoV2):
    """Prototypical contrastive learning.

    At the start of each epoch the momentum encoder extracts features of all images, and k-means clusters them at M
    granularities; the centroids are the prototypes c. With an image's own prototype c_s and r others (Equation 11),

    L = L_q + mean over granularities of -log(exp(q c_s / phi_s) / sum of exp(q c_j / phi_j)),

    where L_q is the loss of MoCo-v2 and phi = sum |v - c| / (Z log(Z + 10)) is the concentration of a cluster of Z
    images v (Equation 12); it is scaled so that its mean over a granularity's clusters is the temperature. As released,
    phi is first clipped to its 10th and 90th percentile, and clusters of one image have the largest phi; here the lower
    limit is at least a hundredth of the upper, to avoid a division by zero if images are copies of each other.

    As in the paper, the denominator contains an image's own prototype and the r others; the released code adds the
    prototypes of all images of the batch, which repeats its own for each image of its cluster. As released, the others
    do not belong to images of the batch; here of the global batch, and all processes draw the same, so that a run is
    the same on any number of processes. K-means runs once for each granularity, not from five initializations.

    In evaluation L is L_q: held-out images have no clusters, and L_q has the same meaning in the whole run.

    Args:
        backbone: the query encoder.
        num_clusters: number K of clusters of each granularity; default: a 32nd, a 16th and an 8th of the number of
            images. The paper has 25000, 50000 and 100000 for the 1.28 million images of ImageNet. K must be greater
            than the number of images of a batch, and at most half of all images.
        num_negatives: number r of negative prototypes, or as many as there certainly are outside of a batch.
        warmup: share of the run at its start with only the instance loss, 20 of 200 epochs in the paper; images are
            first clustered at its end.
        **moco: as in :class:`MoCoV2`. With ``standardize``, features are standardized over all images before k-means.

    Source: Li et al., ICLR 2021, arXiv 2005.04966; constants as in ConCL (ECCV 2022).
    """

    prototypes: Tensor
    concentrations: Tensor
    assignments: Tensor

    needed_options: ClassVar[Needed] = {
        "num_clusters": (With("warmup", is_below(1)),),
        "num_negatives": (With("warmup", is_below(1)),),
    }

    def __init__(
        self,
        backbone: Backbone,
        num_clusters: tuple[int, ...] | None = None,
        num_negatives: int = 2000,
        warmup: float = 0.1,
        **moco: Unpack[MoCoOptions],
    ) -> None:
        super().__init__(backbone, **moco)
        self.num_clusters = tuple(num_clusters or ())
        if any(count < 2 for count in self.num_clusters):
            raise UserError(f"there must be two clusters or more, not {min(self.num_clusters)}")
        if num_negatives < 1:
            raise UserError(f"an image needs at least one negative prototype, not {num_negatives}")
        if not 0 <= warmup <= 1:
            raise UserError(f"the warm-up is a share of the run, between 0 and 1, not {warmup}")
        self.num_negatives = num_negatives
        self.batch_size = 0  # over all processes; set by check
        self.warmup = warmup
        self.clustered_in = -1  # the epoch of the clusters; -1 for none
        self.register_buffer("prototypes", torch.zeros(0, self.dim))
        self.register_buffer("concentrations", torch.zeros(0))
        self.register_buffer("assignments", torch.zeros(0, 0, dtype=torch.int32))
        self.register_load_state_dict_pre_hook(_before_load)

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        self.batch_size = batch_size

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str:
        count = len(images)
        self.num_clusters = self.num_clusters or tuple(count // share for share in IMAGES_PER_CLUSTER)
        counts = ", ".join(map(str, self.num_clusters))
        if max(self.num_clusters) > count // 2:
            raise UserError(
                f"{counts} clusters are too many for {counted(count, 'image')}; give --method.num_clusters up to half"
            )
        self._require_room(self.batch_size)
        self.prototypes = self.prototypes.new_zeros(sum(self.num_clusters), self.prototypes.shape[1])
        self.concentrations = self.concentrations.new_ones(sum(self.num_clusters))
        self.assignments = self.assignments.new_zeros(count, len(self.num_clusters))
        return f"{counts} clusters of {counted(count, 'image')}, computed again in each epoch after the warm-up"

    def wants_features(self, batch: Batch) -> bool:
        return batch.progress >= self.warmup and int(batch.epoch) != self.clustered_in

    @torch.no_grad()
    def extract_features(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, dim) by the momentum encoder, not normalized."""
        features = self.key_backbone(pixels)[self.backbone.deepest]
        return full_precision(self.key_head(global_pool(features)))

    @torch.no_grad()
    def on_features(self, features: Tensor, batch: Batch, heartbeat: Heartbeat = no_heartbeat) -> None:
        """Cluster all images on the first process, which sends the result to the others."""
        points = F.normalize(standardize(features) if self.standardize else features, dim=1)
        first = 0
        for number, count in enumerate(self.num_clusters):
            done = partial(heartbeat, f"k-means {number + 1} of {len(self.num_clusters)}")
            if rank() > 0:
                for _ in range(ITERATIONS):
                    done()
                continue
            order = shuffled(len(points), batch.seed + number, int(batch.epoch)).to(points.device)
            centroids, labels = kmeans(points, order, count, ITERATIONS, after_each=done)
            distances = (points - centroids[labels]).norm(dim=1)
            rows = slice(first, first + count)
            self.prototypes[rows] = F.normalize(centroids, dim=1)
            self.concentrations[rows] = concentration(distances, labels, count, self.temperature)
            self.assignments[:, number] = first + labels
            first += count
        for clusters in (self.prototypes, self.concentrations, self.assignments):
            clusters.copy_(broadcast(clusters))
        self.clustered_in = int(batch.epoch)

    def before_step(self, batch: Batch) -> None:
        if self.wants_features(batch):
            raise ValueError(
                "the features of all images must be passed to on_features first: see Method.wants_features"
            )
        super().before_step(batch)

    def forward(self, batch: Batch) -> Losses:
        self._require_room(len(batch) * world_size())
        query, key = self.encode(batch)
        embedded = self.embed(global_pool(query), global_pool(key))
        statistics = {"key_spread": deviation(embedded[1])}
        q, k = self.unit(*embedded)
        instance_loss = self.contrast(q, k)
        if self.clustered_in < 0 or not self.training:
            return Losses(instance_loss, {"instance_loss": instance_loss.detach()}, statistics)
        prototype_loss = self.prototype_loss(q, batch)
        terms = {"instance_loss": instance_loss.detach(), "prototype_loss": prototype_loss.detach()}
        return Losses(instance_loss + prototype_loss, terms, statistics)

    def prototype_loss(self, q: Tensor, batch: Batch) -> Tensor:
        """The mean of the second term over images and granularities, of query embeddings (B, dim)."""
        own = self.assignments[batch.index.to(q.device, non_blocking=True)].long()  # (B, M)
        scaled = self.prototypes / self.concentrations.unsqueeze(1)
        draws = batch.common_uniform(len(scaled)).to(q.device, non_blocking=True)
        draws.index_fill_(0, gather(own).flatten(), 1.0)  # sorted last
        losses = []
        for number, (drawn, others) in enumerate(
            zip(draws.split(self.num_clusters), scaled.split(self.num_clusters), strict=True)
        ):
            most = len(others) - len(batch) * world_size()
            negatives = others[drawn.argsort(stable=True)[: min(self.num_negatives, most)]]
            losses.append(info_nce(q, scaled[own[:, number]], negatives, temperature=1.0))
        return torch.stack(losses).mean()

    def get_extra_state(self) -> Tensor:
        """The epoch of the clusters. It is not a buffer, so that a step reads it without device synchronization."""
        return torch.tensor(self.clustered_in)

    def set_extra_state(self, state: Any) -> None:
        self.clustered_in = int(state)

    def _require_room(self, batch: int) -> None:
        if self.num_clusters and min(self.num_clusters) <= batch:
            raise UserError(
                f"{min(self.num_clusters)} clusters leave no negative prototype for a batch of {batch} images; use "
                "smaller batches, or more clusters by --method.num_clusters"
            )


def _before_load(method: Any, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Allocate buffers before a state is loaded: an export has no images, which determine the number of clusters."""
    for name in ("prototypes", "concentrations", "assignments"):
        if not len(getattr(method, name)) and prefix + name in state:
            setattr(method, name, torch.empty_like(state[prefix + name]))


def concentration(distances: Tensor, labels: Tensor, count: int, temperature: float) -> Tensor:
    """The concentration phi (count,) of each cluster, scaled so that its mean is the temperature.

    Args:
        distances: (N,) distances of the images from the centroids of their clusters.
        labels: (N,) int64 clusters of the images; at least one cluster has two images or more.
        count: number of clusters.
        temperature: the mean.
    """
    members = torch.bincount(labels, minlength=count).to(distances)
    sums = distances.new_zeros(count).index_add_(0, labels, distances)
    phi = sums / (members * torch.log(members + SMOOTHING)).clamp(min=1)
    phi = torch.where(members < 2, phi[members > 1].max(), phi)
    low, high = torch.quantile(phi, phi.new_tensor([0.1, 0.9])).clamp(min=1e-8)
    phi = phi.clamp(torch.maximum(low, high / 100), high)
    return temperature * phi / phi.mean()
