"""Semantic Genesis: classifies places that similar images share, and restores them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.distributed import broadcast
from densepath.core.errors import UserError, counted
from densepath.core.losses import full_precision, masked_mean
from densepath.core.random import shuffled
from densepath.core.regions import global_pool
from densepath.methods.base import Heartbeat, Losses, no_heartbeat
from densepath.methods.collapse import output_spread
from densepath.methods.model_genesis import ModelGenesis
from densepath.nets.backbones import Backbone
from densepath.nets.decoders.build import build_decoder
from densepath.sources.pixel_source import PixelSource
from densepath.views.corruptions import Bezier, Painting
from densepath.views.crops import Pattern
from densepath.views.declarations import RandomView
from densepath.views.elastic import Elastic, OneOf
from densepath.views.local_shuffle import LocalShuffle
from densepath.views.patterns import pattern_numbers
from densepath.views.random_streams import Draw
from densepath.views.view import Batch

_HIDDEN = 2  # channels of the classifier's convolution, relative to those of the deepest map


class SemanticGenesis(ModelGenesis):
    """Self-discovery, self-classification and self-restoration.

    1. Discovery: an autoencoder A, a network of its own, learns whole images (of large ones a part anywhere),
       L = mean (A(x) - x)**2. Class c of C is a place, at random but the same in all images, in the images that are the
       nearest to a random one by the pooled deepest maps of A (of large images those of the middle).
    2. Classification: L = CE(h(f(x')), c) for a corrupted window x' at the place of c.
    3. Restoration as well: L = mean (D(f(x')) - x)**2 + w CE.

    Corruptions are an elastic deformation, then one of: local shuffling, a Bezier remapping, in- or out-painting.

    In the released code windows are cut once, after the first part, from the nearest images only. Here each image shows
    a place drawn in each epoch, and only counts in the classification if it is among the nearest of that class; so all
    of it is one run, and windows are read as they are needed. Places are relative to the size of the image, in voxels
    there.

    Args:
        backbone: the encoder f.
        num_classes: C.
        neighbors: images of a class: 200 volumes or 1000 radiographs in the paper.
        discovery_epochs: whole epochs of the first part.
        classification_epochs: whole epochs of the second part.
        classification_weight: w.

    Source: Haghighi et al., MICCAI 2020, arXiv 2007.06959; the corruptions and the classifier as released.
    """

    augment = replace(ModelGenesis.augment, flip=0.0)  # the two sides are different places
    corruptions = (
        Elastic(),
        OneOf((LocalShuffle(1.0, windows=5), Bezier(1.0), Painting(1.0, 1.0, blocks=1), Painting(1.0, 0.0, blocks=1))),
    )
    feature_view = RandomView(Pattern(count=1, whole_epochs=2**31, middle=True, flip=()))  # what the autoencoder sees
    phases = True
    members: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int = 44,
        neighbors: int = 200,
        discovery_epochs: int = 50,
        classification_epochs: int = 50,
        classification_weight: float = 0.01,
    ) -> None:
        super().__init__(backbone)
        if min(num_classes, neighbors) < 2 or min(discovery_epochs, classification_epochs) < 0:
            raise UserError(
                "Semantic Genesis needs at least two classes and neighbors, and lengths of at least 0 epochs"
            )
        self.num_classes, self.neighbors, self.classification_weight = num_classes, neighbors, classification_weight
        self.discovery_epochs, self.classification_epochs = discovery_epochs, classification_epochs
        self.autoencoder = _Autoencoder(backbone)
        self.classifier = _Classifier(backbone, num_classes)
        self.discovered = False
        self._idle: set[nn.Module] | None = None  # what all batches of the step so far did not train
        self.register_buffer("members", torch.zeros(num_classes, 0, dtype=torch.bool))  # of the classes, (C, images)
        self.register_load_state_dict_pre_hook(_before_load)
        places = Pattern(count=num_classes, whole_epochs=discovery_epochs)
        self.views = partial(self.views, crop=places)  # type: ignore[method-assign]

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str:
        super().prepare(images, given)
        most = max(self.num_classes, self.neighbors)
        if len(images) < most:
            raise UserError(
                f"{counted(len(images), 'image is', 'images are')} fewer than the "
                f"{counted(self.num_classes, 'class', 'classes')} or their {counted(self.neighbors, 'image')}; "
                "give a smaller --method.num_classes or --method.neighbors"
            )
        self.members = self.members.new_zeros(self.num_classes, len(images))
        return (
            f"{counted(self.num_classes, 'class', 'classes')} of {self.neighbors} of {counted(len(images), 'image')} "
            "are found after epoch " + str(self.discovery_epochs)
        )

    def wants_features(self, batch: Batch) -> bool:
        return not self.discovered and int(batch.epoch) >= self.discovery_epochs

    @torch.no_grad()
    def extract_features(self, pixels: Tensor) -> Tensor:
        """The pooled deepest map (B, C) of the autoencoder, for views of whole images."""
        return full_precision(global_pool(self.autoencoder.backbone(pixels)[self.backbone.deepest]))

    @torch.no_grad()
    def on_features(self, features: Tensor, batch: Batch, heartbeat: Heartbeat = no_heartbeat) -> None:
        """Find the images of each class: the nearest to an image that no other class has."""
        reference = shuffled(len(features), batch.seed, 0)[: self.num_classes].to(features.device)
        distances = torch.cdist(features[reference].double(), features.double())
        nearest = distances.topk(self.neighbors, dim=1, largest=False).indices
        self.members.zero_().scatter_(1, nearest.to(self.members.device), True)
        self.members.copy_(broadcast(self.members))
        self.discovered = True

    def forward(self, batch: Batch) -> Losses:
        target = batch["target"].pixels * self.std + self.mean
        if int(batch.epoch) < self.discovery_epochs:
            loss = F.mse_loss(self.autoencoder(batch["target"].pixels), target)
            unused = self.unused(self.backbone, self.decoder, self.head, self.classifier)
            return Losses(loss + unused, {"discovery_loss": loss.detach()})
        maps, size = self.backbone(batch["image"].pixels), target.shape[2:]
        classification, statistics = self.classification_loss(batch, maps[self.backbone.deepest])
        terms = {"pattern_loss": classification}
        if int(batch.epoch) < self.discovery_epochs + self.classification_epochs:
            total = classification + self.unused(self.autoencoder, self.decoder, self.head)
        else:
            made = torch.sigmoid(full_precision(self.head(self.decoder(maps, size))))
            terms["restoration_loss"] = F.mse_loss(made, target)
            total = terms["restoration_loss"] + self.classification_weight * classification
            total = total + self.unused(self.autoencoder)
            statistics["output_spread"] = output_spread(made, target)
        return Losses(total, {name: value.detach() for name, value in terms.items()}, statistics)

    def classification_loss(self, batch: Batch, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean cross-entropy over the images that belong to the class whose place they show."""
        first = torch.zeros_like(batch.index)  # the number of the view "image"
        place = pattern_numbers(self.num_classes, Draw(batch.seed, batch.drawn_in, batch.index, first))
        index = batch.index.to(features.device, non_blocking=True)
        place = place.to(features.device, non_blocking=True)
        counted = self.members[place, index]
        scores = full_precision(self.classifier(features))
        losses = F.cross_entropy(scores, place, reduction="none")
        return masked_mean(losses, counted), {"members": counted.double().mean()}

    def unused(self, *parts: nn.Module) -> Tensor:
        """Zero, with gradients of zero for the weights of parts: all processes have gradients of all weights.

        They are dropped in :meth:`after_backward`, so that an optimizer with a memory does not see them.
        """
        self._idle = set(parts) if self._idle is None else self._idle & set(parts)
        return 0 * torch.stack([weight.sum() for part in parts for weight in part.parameters()]).sum()

    def after_backward(self) -> None:
        for part in self._idle or ():
            for weight in part.parameters():
                weight.grad = None
        self._idle = None

    def check_length(self, epochs: float) -> None:
        least = self.discovery_epochs + self.classification_epochs
        if epochs < least:
            raise UserError(
                f"the run has no restoration: this begins after {counted(least, 'epoch')}, and the last step after "
                f"{math.floor(epochs * 100) / 100:g}; make it longer, or give smaller --method.discovery_epochs and "
                "--method.classification_epochs"
            )

    def chance(self) -> Mapping[str, float]:
        return {"pattern_loss": math.log(self.num_classes)}

    def get_extra_state(self) -> Tensor:
        """Whether the classes are known. It is not a buffer, so that a step reads it without device synchronization."""
        return torch.tensor(self.discovered)

    def set_extra_state(self, state: Any) -> None:
        self.discovered = bool(state)


class _Autoencoder(nn.Module):
    """A U-Net of the backbone's shape with a sigmoid at its end."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.decoder, self.head = build_decoder(backbone)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.backbone(pixels)
        return torch.sigmoid(full_precision(self.head(self.decoder(maps, pixels.shape[2:]))))


class _Classifier(nn.Module):
    """A convolution of 3 with a batch norm and ReLU, the mean over positions, and a linear layer."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        width = backbone.channels[backbone.deepest]
        convolution, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[backbone.ndim - 2]
        self.conv = convolution(width, _HIDDEN * width, 3, padding=1)
        self.norm = norm(_HIDDEN * width)
        self.fc = nn.Linear(_HIDDEN * width, classes)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.fc(global_pool(self.norm(self.conv(features)).relu()))
        return scores


def _before_load(method: Any, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Allocate the buffer before a state is loaded: an export has no images, which determine its size."""
    if not method.members.shape[1] and f"{prefix}members" in state:
        method.members = torch.empty_like(state[f"{prefix}members"])
