"""Supervised pre-training: classification, the upper bound that self-supervised methods are measured with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.annotations.classes import FOLDERS, read_classes
from densepath.core.losses import full_precision
from densepath.core.regions import global_pool
from densepath.methods.base import Losses, Method
from densepath.nets.backbones import Backbone
from densepath.sources.pixel_source import PixelSource
from densepath.views.augment import Augment, Union
from densepath.views.view import Batch


class Supervised(Method):
    """Classification of one view of each image.

    L = cross-entropy of W GAP(f5(x)) + b with the image's class. The images decide how many classes there are:
    :meth:`prepare` makes the classifier. The backbone alone is exported.

    Args:
        backbone: the classifier's features.
        labels: "folders": an image's class is the name of the folder that it lies in; or the path of a CSV or TSV file
            with lines of file,label, where a file is given relative to the images' folder, or by its bare name.

    Source: the supervised baseline in the released configurations of ConCL (ECCV 2022).
    """

    batch_norm = "synchronized"
    targets: Tensor

    def __init__(
        self,
        backbone: Backbone,
        labels: str = FOLDERS,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier: nn.Module = nn.Identity()  # until the number of classes is known
        self.labels = labels
        # In the state, so that a run is not resumed with other labels.
        self.register_buffer("targets", torch.zeros(0, dtype=torch.int32))
        self.register_load_state_dict_pre_hook(_meet_state)

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Augment | Union]:
        """Crops and flips; the colors stay."""
        return {"image": augment or Augment(scale=(0.08, 1.0), jitter=0.0, grayscale=0.0, blur=0.0)}

    def prepare(self, images: PixelSource) -> str:
        classes = read_classes(images, self.labels)
        self.set_classes(classes.labels, len(classes.names))
        return classes.describe()

    def set_classes(self, labels: Tensor, count: int) -> None:
        """Make the classifier of ``count`` classes, for images with the labels (N,) int32."""
        self.targets = labels
        self.classifier = nn.Linear(self.backbone.channels[self.backbone.deepest], count)
        nn.init.normal_(self.classifier.weight, std=0.01)  # as released
        nn.init.zeros_(self.classifier.bias)

    def forward(self, batch: Batch) -> Losses:
        features = self.backbone(batch["image"].pixels)[self.backbone.deepest]
        logits = full_precision(self.classifier(global_pool(features)))
        target = self.targets[batch.index.to(self.targets.device, non_blocking=True)].long()
        loss = F.cross_entropy(logits, target)
        accuracy = (logits.argmax(1) == target).float().mean()
        return Losses(loss, {"classification_loss": loss.detach()}, {"accuracy": accuracy})

    def exported_backbone(self) -> Backbone:
        return self.backbone

    def check(self, view_size: int, batch_size: int, processes: int = 1) -> None:
        self.backbone.check_size(view_size, view_size)


def _meet_state(method: Any, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Before a state is loaded: an export sees no images, and a run is resumed with the labels that it had."""
    labels, weight = state.get(f"{prefix}targets"), state.get(f"{prefix}classifier.weight")
    if labels is None or weight is None:
        return
    if not len(method.targets):
        method.set_classes(torch.empty_like(labels), len(weight))
    elif labels.shape == method.targets.shape and not torch.equal(labels, method.targets.to(labels.device)):
        rest[-1].append("the labels are not those that it was trained with")
