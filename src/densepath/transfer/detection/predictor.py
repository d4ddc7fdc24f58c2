"""A trained detector for new images of any size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from densepath.annotations.coco_checks import Orientation
from densepath.core.errors import UserError, counted
from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import check_choice, take_single_values
from densepath.core.streams import say
from densepath.core.threads import in_threads
from densepath.core.torch_defaults import torch_defaults
from densepath.sources.corrupt import CorruptImage, lasting
from densepath.sources.image_reader import DecodedImage, ImageReader, open_file
from densepath.training.caller_state import state_of_the_caller
from densepath.transfer.detection.detector import Detector
from densepath.transfer.detection.detector_file import DetectorNotes, detector_path
from densepath.transfer.detection.detector_file import load_detector as read_detector
from densepath.transfer.detection.found import FoundObject, Window, found_objects
from densepath.transfer.detection.prediction import Prediction
from densepath.transfer.detection.samples import into_detector
from densepath.transfer.detection.windows import check_search, merge, scale_of, window_sides, windows_of
from densepath.transfer.stored_pixels import Picture, pixels_in_memory, warn_of_file

OVERLAP = 0.25
_PRECISIONS = ("32", "bf16-mixed")
_LARGE = 2.0  # an image with more pixels than this many windows is cut into windows
_MUCH_LARGER = 16  # times the pixels of the detector's input: larger than any training image could be
_AT_ONCE = {"cpu": 1, "cuda": 8}  # windows in a batch


class TrainedDetector(nn.Module):
    """A trained detector.

    Args:
        detector: the network.
        notes: its metadata.

    Attributes:
        classes: names of its classes.
        spec: how it sees pixels: as its training images, until it is set for images of other bits.
    """

    def __init__(self, detector: Detector, notes: DetectorNotes) -> None:
        super().__init__()
        self.detector, self.notes = detector, notes
        self.classes, self.spec = notes.category_names, notes.spec
        self._warned = False

    @property
    def finds_masks(self) -> bool:
        """Whether objects have outlines; otherwise they are boxes."""
        return self.detector.finds_masks

    @property
    def window(self) -> int:
        """The default side of windows in pixels: the short side of the training images; 0 if it is unknown."""
        return self.notes.image_size

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """The dtype of its images."""
        return self.spec.image_dtype

    def forward(self, images: Any) -> Any:
        """As :meth:`predict`."""
        return self.predict(images)

    @torch_defaults()
    def predict(
        self,
        images: Picture | Iterable[Picture],
        score: float = 0.5,
        window: int | None = None,
        overlap: float = OVERLAP,
        precision: str = "32",
        orientation: Orientation | None = None,
        spacing: float | None = None,
    ) -> Any:
        """Find the objects in images.

        Args:
            images: one or several arrays (H, W) or (H, W, C) of uint8 or uint16, tensors of the same or (C, H, W),
                images of Pillow, or files. Channels and bits are converted as those of files.
            score: the lowest score of an object, from 0 to 1.
            window: side in pixels of the windows that large images are cut into; 0 for none. By default the short side
                of the training images, for images with more than twice the pixels of a window. Where the µm per pixel
                of an image and of the training images are known and differ by more than 10%, the window has the µm of
                the training images.
            overlap: share of a window that the next one covers.
            precision: "32" or "bf16-mixed".
            orientation: how files and images of Pillow with an orientation tag are read: as "stored", or as "viewed",
                turned by the tag. By default as the training images.
            spacing: µm per pixel of all images; by default as stored in TIFFs.

        Returns:
            A :class:`Prediction` for an image, a list of them for a list of images.

        Raises:
            UserError: an image cannot be read, or an option is invalid.
        """
        check_search(score, window, overlap, spacing)
        if precision not in _PRECISIONS:
            raise UserError(f"precision is {precision!r}; use one of {', '.join(_PRECISIONS)}")
        if orientation is not None:
            check_choice("orientation", orientation, Orientation)
        if not (isinstance(images, str | Path | Image.Image) or hasattr(images, "__array__")):
            if not isinstance(images, Iterable):
                raise UserError(f"an image is {type(images).__name__}; give an array, an image of Pillow, or a file")
            return [self.predict(image, score, window, overlap, precision, orientation, spacing) for image in images]
        try:
            reader = self._reader(images, self.views(orientation))
            return self.predict_reader(reader, score, window, overlap, precision, spacing)
        except CorruptImage as error:
            raise UserError(str(error)) from error

    @torch_defaults()
    def predict_reader(
        self,
        image: ImageReader,
        score: float = 0.5,
        window: int | None = None,
        overlap: float = OVERLAP,
        precision: str = "32",
        spacing: float | None = None,
    ) -> Prediction:
        """Find the objects of an image that is read in parts. Arguments as for :meth:`predict`.

        Raises:
            CorruptImage: the image cannot be read.
        """
        height, width = image.size
        scale = scale_of(image.spacing if spacing is None else (spacing, spacing), self.notes.mpp)
        cut = window_sides(scale, self.window, window)
        sides: tuple[float, float] = cut
        if window is None and not any(cut) and height * width > _MUCH_LARGER * self.notes.test_size**2:
            self._warn_of_large(image)
        if not any(cut) or (window is None and height * width <= _LARGE * math.prod(cut)):
            windows = [Window(0, 0, height, width)]
            if scale == (1, 1) or not any(cut):  # as in the evaluation
                short = min(height / scale[0], width / scale[1])
                sides = short * scale[0], short * scale[1]
        else:
            windows = windows_of(image.size, cut, overlap)
        found = self.find(image, windows, sides, score, precision)
        return Prediction(tuple(merge(found, image.size)), image.size, self.classes)

    def _warn_of_large(self, image: ImageReader) -> None:
        """Warn once that a large image is not cut into windows."""
        if not self._warned:
            self._warned = True
            height, width = image.size
            say(
                f"densepath: warning: {image.name} has {width} x {height} px, but is not cut into windows, because the "
                "detector does not know the size of its training images (version 0.1 did not record it); give --window "
                "their short side"
            )

    @torch.no_grad()
    def find(
        self,
        image: ImageReader,
        windows: Sequence[Window],
        sides: tuple[float, float],
        score: float = 0.5,
        precision: str = "32",
        damaged: list[tuple[Window, CorruptImage]] | None = None,
    ) -> Iterator[tuple[Window, list[FoundObject]]]:
        """The objects of each window, in the image's coordinates. The next windows are read meanwhile.

        Args:
            image: is read in parts.
            windows: the windows.
            sides: pixels along y and x that are resized to the detector's short edge.
            score, precision: as for :meth:`predict`.
            damaged: windows that are damaged are added to it, and passed over; None to raise their error.

        Raises:
            CorruptImage: a window cannot be read; with ``damaged`` only because a disk or a network has failed.
        """
        if self.training:
            self.eval()
        device = next(self.parameters()).device
        count = _AT_ONCE.get(device.type, 1)

        def read(window: Window) -> dict[str, Any] | CorruptImage:
            try:
                return self._sample(image, window, sides)
            except CorruptImage as error:
                return error

        reading: Any = in_threads(read, windows, 1, "image data")
        with closing(reading) as samples:
            waiting: list[tuple[Window, dict[str, Any]]] = []
            for number, (window, sample) in enumerate(zip(windows, samples, strict=False), 1):
                if not isinstance(sample, CorruptImage):
                    waiting.append((window, sample))
                elif damaged is None:
                    raise sample
                else:
                    damaged.append((window, lasting(sample)))
                if waiting and (len(waiting) == count or number == len(windows)):
                    yield from self._found(waiting, score, device, precision == "bf16-mixed")
                    waiting = []

    def _found(
        self, samples: Sequence[tuple[Window, dict[str, Any]]], score: float, device: torch.device, bfloat16: bool
    ) -> Iterator[tuple[Window, list[FoundObject]]]:
        """The objects of some windows."""
        inputs, targets = into_detector([sample for _, sample in samples], self.spec, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            outputs = self.detector.detect(inputs)
        for (window, _), output, target in zip(samples, outputs, targets, strict=True):
            output["boxes"] = output["boxes"] * target["scale"]
            found = {name: value.float().cpu() for name, value in output.items()}
            size = (window.bottom - window.top, window.right - window.left)
            yield window, found_objects(found, size, score, window.top, window.left)

    def _sample(self, image: ImageReader, window: Window, sides: tuple[float, float]) -> dict[str, Any]:
        height, width = window.bottom - window.top, window.right - window.left
        pixels = image.read(window.top, window.left, height, width)
        if pixels.shape[2] != len(self.notes.mean):
            raise UserError(
                f"{image.name} has {counted(pixels.shape[2], 'channel')}, and the detector was trained on "
                f"{len(self.notes.mean)}"
            )
        return {
            "image": np.require(pixels, requirements=["C", "W"]),
            "short_edge": max(
                1, round(min(self.notes.test_size * height / sides[0], self.notes.test_size * width / sides[1]))
            ),
            "aspect": sides[1] / sides[0],
            "flip": False,
            "boxes": np.zeros((0, 4), np.float32),
            "masks": np.zeros((0, 1, 1), bool),
            "labels": np.zeros(0, np.int64),
        }

    def views(self, orientation: Orientation | None) -> bool:
        """Whether images are turned by their orientation tags; None: as the training images."""
        return (orientation or self.notes.orientation) == "viewed"

    def _reader(self, image: Any, viewed: bool) -> ImageReader:
        if isinstance(image, str | Path):
            if Path(image).is_dir():
                raise UserError(f"{image} is a folder; give its images, or use densepath predict")
            if self.spec == self.notes.spec:
                warn_of_file(image, self.spec)
            return open_file(image, len(self.notes.mean), self.dtype, viewed)
        if isinstance(image, Image.Image) and viewed:
            image = ImageOps.exif_transpose(image)
        return DecodedImage(pixels_in_memory(image, self.spec))


@take_single_values
@state_of_the_caller()
def load_detector(path: AnyPath) -> TrainedDetector:
    """Load a trained detector for new images: ``densepath.load_detector(path).predict(image)``.

    Args:
        path: the folder of a run of ``detect``, or its exported/detector.safetensors.

    Returns:
        The detector, on the CPU and in evaluation mode; ``.to("cuda")`` moves it.

    Raises:
        UserError: there is no detector.
    """
    return TrainedDetector(*read_detector(detector_path(as_path(path)))).eval()
