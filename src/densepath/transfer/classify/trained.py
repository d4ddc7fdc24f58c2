"""A trained classifier for notebooks: images in, probabilities out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import take_single_values
from densepath.core.torch_defaults import torch_defaults
from densepath.sources.image_files import MAX_SIDE
from densepath.training.caller_state import state_of_the_caller
from densepath.transfer.classify.classifier import Readout, classifier_path, probabilities, read_classifier
from densepath.transfer.stored_pixels import Picture, stored_pixels


class TrainedClassifier:
    """A classifier with its preprocessing.

    Attributes:
        labels: names of the classes or labels.
        notes: what is known of it.
    """

    def __init__(self, path: Path) -> None:
        model, self.notes = read_classifier(path)
        self.labels = self.notes.labels
        self._readout = Readout(model, self.notes).eval()
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> TrainedClassifier:
        """Move it to another device."""
        self._device = torch.device(device)
        self._readout.to(self._device)
        return self

    @torch_defaults()
    @torch.inference_mode()
    def predict(self, image: Picture) -> dict[str, float]:
        """The probability of each class or label.

        Args:
            image: a file, an array (*size, C) or (*size), a tensor of these or (C, *size), or an image of Pillow.
                Channels, bits and windows of volumes are converted as those of files; axes and spacing of volumes are
                taken as those of the training.
                Where ``notes.own_window``, floats whose 0.5th and 99.5th percentiles are within -1 to 2 are taken as
                shares of the volume's own window, as ``read`` of a store gives them, and other volumes are divided by
                their own window: divide a crop of raw values by the window of its whole volume first.

        Raises:
            UserError: it does not fit the classifier.
            CorruptImage: the file cannot be read.
        """
        pixels = stored_pixels(image, self.notes.spec, MAX_SIDE, self.notes.own_window)
        stored = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))[None].to(self._device)
        found = probabilities(self._readout(stored).cpu().numpy(), self.notes.exclusive)[0]
        return dict(zip(self.labels, found.tolist(), strict=True))


@take_single_values
@state_of_the_caller()
def load_classifier(run: AnyPath) -> TrainedClassifier:
    """The classifier of a run of ``classify``, on the CPU: ``load_classifier(run).predict("image.png")``.

    Args:
        run: the folder of the run, or its exported/classifier.safetensors.

    Raises:
        UserError: there is no such file, or it is not a classifier.
    """
    return TrainedClassifier(classifier_path(as_path(run)))
