"""A classifier of images: a backbone, pooling, and a linear layer; its file, and its answers for stored pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from densepath.core.losses import full_precision
from densepath.nets.backbones import build_backbone
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.embed.encoder import Encoder, Pool
from densepath.transfer.network_file import holds_network, network_path, read_network, save_network
from densepath.transfer.probe.metrics import Floats
from densepath.views.declarations import Center
from densepath.views.maker import ViewMaker

CLASSIFIER_FILE = Path("exported") / "classifier.safetensors"  # in a run folder
KEY = "densepath_classifier"
_VIEW = "image"
_SPREAD = 0.01  # standard deviation of new weights of the linear layer


class Classifier(nn.Module):
    """A linear layer on the pooled features of a backbone.

    Args:
        encoder: the backbone with its pooling.
        outputs: T, the number of classes or labels.
    """

    def __init__(self, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, outputs)
        nn.init.normal_(self.head.weight, std=_SPREAD)
        nn.init.zeros_(self.head.bias)

    def forward(self, views: Tensor) -> Tensor:
        """(B, C, *size) normalized images -> (B, T) logits, float32."""
        return full_precision(self.head(self.encoder.pooled(views)))


@dataclass(frozen=True)
class ClassifierNotes:
    """What a classifier's inputs and outputs are.

    Args:
        backbone: its name.
        pool: how features become a vector.
        labels: names of the classes or labels.
        exclusive: whether an image has exactly one of them.
        view_size: size of its input images in pixels, in the order of the tensor's axes.
        pixels: the specification of its pixels, as a record.
        epoch: the epoch that was kept, from 1.
        score, loss: macro AUC in percent and loss of the images that chose it.
        mpp: µm per pixel of the training images; None if unknown.
        image_size: the short side of a typical training image in pixels.
        own_window: whether each volume of the training has the window of its own percentiles, as MR.
    """

    backbone: str
    pool: Pool
    labels: tuple[str, ...]
    exclusive: bool
    view_size: tuple[int, ...]
    pixels: dict[str, Any]
    epoch: int = 0
    score: float = 0.0
    loss: float = 0.0
    mpp: float | None = None
    image_size: int = 0
    own_window: bool = False

    @property
    def spec(self) -> PixelSpec:
        """How the classifier sees pixels."""
        return PixelSpec.from_record(self.pixels)

    def build(self) -> Classifier:
        """The classifier with random weights. Raises UserError where its notes make no sense."""
        spec = self.spec
        encoder = Encoder(build_backbone(self.backbone, spec.channels), spec, None, self.pool)
        encoder.backbone.check_size(*self.view_size)
        return Classifier(encoder, len(self.labels))


class Readout(nn.Module):
    """The logits of a classifier for stored pixels: the largest central box with the sides' ratio of its inputs.

    Args:
        model: the classifier.
        notes: of the classifier.
        spec: the specification of the pixels, if it is not that of the training images: for 16 bits instead of 8.

    Attributes:
        dim: T.
        exclusive: whether an image has exactly one of the labels.
    """

    def __init__(self, model: Classifier, notes: ClassifierNotes, spec: PixelSpec | None = None) -> None:
        super().__init__()
        self.model, self.dim, self.exclusive = model, len(notes.labels), notes.exclusive
        self._views = ViewMaker({_VIEW: Center(share=1.0)}, notes.view_size, seed=0, spec=spec or notes.spec)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, *size, C) stored pixels -> (B, T) logits, float32."""
        sizes = torch.tensor(pixels.shape[1:-1]).expand(len(pixels), -1)
        views = self._views(ImageBatch(pixels, sizes, torch.arange(len(pixels))))
        logits: Tensor = self.model(views[_VIEW].pixels)
        return logits


def probabilities(logits: npt.NDArray[np.float32], exclusive: bool) -> Floats:
    """(B, T) logits -> (B, T) probabilities of classes or labels.

    Float64, as float32 has no numbers between 1 - 6e-8 and 1: images of confident classifiers would be ties.
    """
    exact = torch.from_numpy(logits).double()
    found: Floats = (exact.softmax(1) if exclusive else exact.sigmoid()).numpy()
    return found


def save_classifier(path: Path, model: Classifier, notes: ClassifierNotes) -> None:
    """Write a safetensors file."""
    save_network(path, KEY, model, notes)


def classifier_path(run: str | Path) -> Path:
    """The file of a classifier, given by it or by the folder of its run."""
    return network_path(run, CLASSIFIER_FILE)


def is_classifier(run: str | Path) -> bool:
    """Whether a run, or a file, holds a classifier."""
    return holds_network(classifier_path(run), KEY)


def read_classifier(path: Path) -> tuple[Classifier, ClassifierNotes]:
    """The classifier of a file, on the CPU and in evaluation mode.

    Raises:
        UserError: there is no such file, or it is not a classifier.
    """
    model, notes = read_network(path, KEY, "classifier", "classify", _notes_from)
    return model, notes


def _notes_from(values: Any) -> ClassifierNotes:
    spec = PixelSpec.from_record(values["pixels"])
    former = {"own_window": spec.ndim == 3 and spec.window == (0, 1)}  # most likely, where it was not recorded
    return ClassifierNotes(**former | values | {name: tuple(values[name]) for name in ("labels", "view_size")})
