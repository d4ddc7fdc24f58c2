"""A trained detector as one file: its weights, and what is needed to build it and to preprocess images."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from densepath.annotations.coco_checks import Orientation
from densepath.core.files import atomic_write
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import write_tensors
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.detection.config import ANCHOR_SIZES, DETECTIONS
from densepath.transfer.detection.detector import Detector
from densepath.transfer.detection.detectors import DETECTORS, check_backbone
from densepath.transfer.network_file import network_path, read_network

DETECTOR_FILE = Path("exported") / "detector.safetensors"  # in a run folder
KEY = "densepath_detector"


@dataclass(frozen=True)
class DetectorNotes:
    """The metadata of a detector.

    Args:
        detector: a name in DETECTORS.
        backbone: a timm name.
        category_ids, category_names: the categories of the labels 1, 2, ...
        test_size: short edge of its input images in pixels.
        mean, std: mean and standard deviation of each channel, in 0-1.
        anchor_sizes: in pixels of its input images.
        detections_per_image: maximum number of detections.
        window: the pixel values that are mapped to 0 and 1.
        image_size: the median short side of the training images in pixels; 0 if unknown.
        orientation: how images with an orientation tag were read: as "stored" in the file, or as "viewed", turned by
            the tag; None if there were none.
        mpp: µm per pixel of the training images; None if unknown.
        bits: of the training images, 8 or 16, where the window does not show it; see PixelSpec.
    """

    detector: str
    backbone: str
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    anchor_sizes: tuple[int, ...] = ANCHOR_SIZES
    detections_per_image: int = DETECTIONS
    window: tuple[float, float] = (0.0, 255.0)
    image_size: int = 0
    orientation: Orientation | None = None
    mpp: float | None = None
    bits: int | None = None

    @property
    def spec(self) -> PixelSpec:
        """How the detector sees pixels. Raises UserError where the notes make no sense."""
        return PixelSpec(2, len(self.mean), self.window, self.mean, self.std, self.bits)

    def build(self) -> Detector:
        """The detector with random weights.

        Raises:
            UserError: the backbone is unknown, or does not fit the detector.
        """
        backbone = build_backbone(self.backbone, len(self.mean))
        check_backbone(self.detector, backbone)
        return DETECTORS[self.detector](
            backbone,
            len(self.category_ids),
            anchor_sizes=self.anchor_sizes,
            detections_per_image=self.detections_per_image,
        )


def save_detector(path: Path, model: Detector, notes: DetectorNotes) -> None:
    """Write a safetensors file."""
    with atomic_write(path) as part:
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        write_tensors(state, part, {"format": "pt", KEY: json.dumps(asdict(notes))})


def detector_path(run: str | Path) -> Path:
    """The file of a detector, given by it or by the folder of its run."""
    return network_path(run, DETECTOR_FILE)


def load_detector(path: Path) -> tuple[Detector, DetectorNotes]:
    """Build the detector of a file, on the CPU and in evaluation mode.

    Raises:
        UserError: there is no such file, or it is not a detector.
    """
    model, notes = read_network(path, KEY, "detector", "detect", _notes_from)
    return model, notes


def _notes_from(values: Any) -> DetectorNotes:
    """The notes from plain values, after a check of their types."""
    fields: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    notes = DetectorNotes(**fields)
    sizes = (notes.test_size, notes.detections_per_image, *notes.anchor_sizes)
    if not notes.category_ids or len(notes.category_names) != len(notes.category_ids):
        raise ValueError("categories")
    if any(type(number) is not int for number in (*notes.category_ids, *sizes)) or min(sizes) < 1:
        raise ValueError("whole numbers")
    if type(notes.image_size) is not int or notes.image_size < 0:
        raise ValueError("a size")
    if notes.orientation not in (None, *get_args(Orientation)):
        raise ValueError("an orientation")
    if notes.mpp is not None and not (isinstance(notes.mpp, float) and notes.mpp > 0):
        raise ValueError("µm per pixel")
    if not isinstance(notes.detector, str) or not isinstance(notes.backbone, str):
        raise ValueError("names")
    _ = notes.spec  # refuses what is not a mean, a standard deviation and a window
    return notes
