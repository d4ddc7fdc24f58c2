"""A trained segmenter for notebooks: images in, classes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import take_single_values
from densepath.core.torch_defaults import torch_defaults
from densepath.training.caller_state import state_of_the_caller
from densepath.training.hardware import choose_hardware
from densepath.transfer.segment.cohort import MAX_SIDE
from densepath.transfer.segment.segmenter import read_segmenter, segmenter_path
from densepath.transfer.stored_pixels import Picture, stored_pixels


class TrainedSegmenter:
    """A segmenter with its preprocessing.

    Attributes:
        classes: the value of each class in the results, and its name.
        notes: what is known of it.
    """

    def __init__(self, path: Path, devices: int | str = "auto") -> None:
        model, self.notes = read_segmenter(path)
        self.classes = dict(zip(self.notes.legend.values, self.notes.legend.names, strict=True))
        self._hardware = choose_hardware(devices, "32")
        self._hardware.lay_out(model)
        self._model = model.to(self._hardware.device)

    @torch_defaults()
    def predict(
        self, image: Picture, window: int | Sequence[int] | None = None, overlap: float | None = None
    ) -> npt.NDArray[Any]:
        """The value of the class of each pixel, (*size).

        Args:
            image: a file, an array (*size, C) or (*size), where the size of a volume is depth, height, width; a tensor
                of these or (C, *size); or an image of Pillow. Channels, bits and windows of volumes are converted as
                those of files; axes and spacing of volumes are taken as those of the training (``notes.spacing``).
                Where ``notes.own_window``, floats whose 0.5th and 99.5th percentiles are within -1 to 2 are taken as
                shares of the volume's own window, as ``read`` of a store gives them, and other volumes are divided by
                their own window: divide a crop of raw values by the window of its whole volume first.
            window: side of the windows that large images are divided into, or their sides along each axis; default:
                those of the training patches.
            overlap: share of a window that the next one covers.

        Raises:
            UserError: the image does not fit the segmenter, or an option is invalid.
            CorruptImage: the file cannot be read.
        """
        pixels = stored_pixels(image, self.notes.spec, MAX_SIDE, self.notes.own_window)
        sliding = self.notes.sliding(self._model, self._hardware, window, overlap)
        return self.notes.legend.values_of(sliding.classes(pixels))


@take_single_values
@state_of_the_caller()
def load_segmenter(run: AnyPath, devices: int | str = "cpu") -> TrainedSegmenter:
    """The segmenter of a run of ``segment``: ``load_segmenter(run).predict("image.png")``.

    Args:
        run: the folder of the run, or its exported/segmenter.safetensors.
        devices: where to compute: "cpu", or "auto" for a GPU if there is one.

    Raises:
        UserError: there is no such file, or it is not a segmenter.
    """
    return TrainedSegmenter(segmenter_path(as_path(run)), devices)
