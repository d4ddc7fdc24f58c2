"""The base class of all detectors."""

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
        features: pixels (B, 3, H, W) -> name: map; its ``backbone`` takes the pre-trained weights.
    """

    finds_masks = True

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    @property
    def backbone(self) -> Backbone:
        """The part that takes pre-trained weights."""
        backbone: Any = self.features.backbone
        return backbone

    @abstractmethod
    def forward(self, images: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses of a training batch.

        Args:
            images: pixels (B, 3, H, W), normalized and padded, and the sizes (height, width) of the images.
            targets: for each image: boxes (N, 4) x1 y1 x2 y2 in its pixels; labels (N,) from 1; masks (N, h, w) bool at
                any resolution, and scale (4,) that converts boxes to pixels of the masks.
        """

    @abstractmethod
    def detect(self, images: ImageList) -> list[dict[str, Tensor]]:
        """For each image, best first: boxes (N, 4) in its pixels, scores (N,), labels (N,), and masks (N, M, M) in
        0-1 if the detector finds masks."""

    def run_batch_norms(self, images: ImageList, targets: list[dict[str, Tensor]]) -> None:
        """Run the parts that have batch norms in training mode, so that all batch norms get their inputs."""
        norms = [name for name, module in self.named_modules() if isinstance(module, _BatchNorm)]
        if any(not name.startswith("features.") for name in norms):
            self(images, targets)
        else:
            self.features(images.tensors)


def to_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook: in half precision boxes would be off by pixels."""
    return output.float() if isinstance(output, Tensor) else type(output)(to_float32(module, (), o) for o in output)


def start_predictor(layer: nn.Linear | nn.Conv2d, std: float) -> None:
    """Initialize a prediction layer with small weights and no bias; otherwise the first losses would be large."""
    nn.init.normal_(layer.weight, std=std)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def fill_linear(module: nn.Module) -> None:
    """Initialize a fully connected layer as Detectron2: weights of standard deviation 1 / sqrt(inputs), no bias.

    Source: Detectron2's box head, which calls fvcore's ``c2_xavier_fill``.
    """
    if isinstance(module, nn.Linear):
        nn.init.kaiming_uniform_(module.weight, a=1)
        nn.init.zeros_(module.bias)
