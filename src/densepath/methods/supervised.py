"""Supervised pre-training: classification, the upper bound for self-supervised methods."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.annotations.classes import Classes
from densepath.core.losses import full_precision
from densepath.core.regions import global_pool
from densepath.methods.base import Losses, Method
from densepath.methods.needs import Need
from densepath.nets.backbones import Backbone
from densepath.nets.frozen import checksum
from densepath.sources.pixel_source import PixelSource
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch


class Supervised(Method):
    """Classification of one view of each image.

    L = cross-entropy of W GAP(f5(x)) + b with the image's class. The images determine the number of classes:
    :meth:`prepare` makes the classifier. Only the backbone is exported.

    Args:
        backbone: the backbone to train.

    Source: the supervised baseline in the released configurations of ConCL (ECCV 2022).
    """

    batch_norm = "synchronized"
    labels_checksum: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier: nn.Module = nn.Identity()  # until the number of classes is known
        # Part of the state, so that a run cannot be resumed with other labels.
        self.register_buffer("labels_checksum", torch.zeros(32, dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_before_load)

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        """Crops and flips; the colors stay."""
        plain = Augment(scale=(0.08, 1.0), jitter=0.0, grayscale=0.0, blur=0.0)
        return {"image": (augment or plain).random_view()}

    def needs(self) -> Mapping[str, Need]:
        return {"class": Need("classes")}

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str:
        classes: Classes = given["class"]
        self.extras = {"class": classes}
        self.labels_checksum = _checksum(classes.labels).to(self.labels_checksum.device)
        self.set_classes(len(classes.names))
        return classes.describe()

    def set_classes(self, count: int) -> None:
        """Make the classifier of ``count`` classes."""
        self.classifier = nn.Linear(self.backbone.channels[self.backbone.deepest], count)
        nn.init.normal_(self.classifier.weight, std=0.01)  # as released
        nn.init.zeros_(self.classifier.bias)

    def forward(self, batch: Batch) -> Losses:
        features = self.backbone(batch["image"].pixels)[self.backbone.deepest]
        logits = full_precision(self.classifier(global_pool(features)))
        target = batch.extras["class"].long()
        loss = F.cross_entropy(logits, target)
        accuracy = (logits.argmax(1) == target).float().mean()
        return Losses(loss, {"classification_loss": loss.detach()}, {"accuracy": accuracy})


def _checksum(labels: Tensor) -> Tensor:
    """A checksum of the labels (N,) int32 of all images."""
    return checksum({"labels": labels})


def _before_load(method: Any, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Before a state is loaded, make the classifier (an export has no images), or check that the labels match."""
    own, weight = f"{prefix}labels_checksum", state.get(f"{prefix}classifier.weight")
    if f"{prefix}targets" in state:  # the labels themselves, as runs of version 0.1 kept them
        state[own] = _checksum(state.pop(f"{prefix}targets"))
    if own not in state or weight is None:
        return
    if isinstance(method.classifier, nn.Identity):
        method.set_classes(len(weight))
    elif not torch.equal(state[own].cpu(), method.labels_checksum.cpu()):
        rest[-1].append("the labels differ from those of its training")
