"""What all detectors have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.image_list import ImageList

from densepath.nets.backbones import Backbone


class Detector(nn.Module, ABC):
    """A network that finds objects, fine-tuned as a whole.

    Args:
        features: pixels (B, 3, H, W) -> maps by name; its ``backbone`` is what pre-trained weights are for.
    """

    finds_masks = True

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    @property
    def backbone(self) -> Backbone:
        """What pre-trained weights are for."""
        backbone: Any = self.features.backbone
        return backbone

    @abstractmethod
    def forward(self, images: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses of a training batch.

        Args:
            images: pixels (B, 3, H, W), normalized and padded, and the images' own sizes (height, width).
            targets: of each image: boxes (N, 4) x1 y1 x2 y2 in its pixels; labels (N,) from 1; masks (N, h, w) bool in
                any resolution, and scale (4,) that takes boxes into their pixels.
        """

    @abstractmethod
    def detect(self, images: ImageList) -> list[dict[str, Tensor]]:
        """Of each image, best first: boxes (N, 4) in its pixels, scores (N,), labels (N,), and masks (N, M, M) in 0-1
        where the detector finds such."""

    def run_batch_norms(self, images: ImageList, targets: list[dict[str, Tensor]]) -> None:
        """Run what has to be run in training for all batch norms to see their inputs."""
        norms = [name for name, module in self.named_modules() if isinstance(module, _BatchNorm)]
        if any(not name.startswith("features.") for name in norms):
            self(images, targets)
        else:
            self.features(images.tensors)


def to_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A hook: boxes and scores in half precision would be pixels off."""
    return output.float() if isinstance(output, Tensor) else type(output)(to_float32(module, (), o) for o in output)


def start_predictor(layer: nn.Linear | nn.Conv2d, std: float) -> None:
    """Give a layer that predicts small weights and no bias, or its first losses would be those of wild guesses."""
    nn.init.normal_(layer.weight, std=std)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
