"""A trained detector as one file: its weights, and all that is needed to build it and to show it images."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import write_tensors
from densepath.transfer.mask_rcnn import DETECTORS, MaskRCNN

_KEY = "densepath_detector"


@dataclass(frozen=True)
class DetectorNotes:
    """What a detector is, besides its weights.

    Args:
        detector: a name in DETECTORS.
        backbone: a timm name.
        category_ids, category_names: what the labels 1, 2, ... stand for.
        test_size: short edge in pixels of the images that it is shown.
        mean, std: of the colors red, green, blue in 0-1.
    """

    detector: str
    backbone: str
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]
    test_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def build(self) -> MaskRCNN:
        """The detector with random weights."""
        return MaskRCNN(build_backbone(self.backbone), len(self.category_ids), DETECTORS[self.detector])


def save_detector(path: Path, model: MaskRCNN, notes: DetectorNotes) -> None:
    """Write a safetensors file."""
    with atomic_write(path) as part:
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        write_tensors(state, part, {"format": "pt", _KEY: json.dumps(asdict(notes))})


def load_detector(path: Path) -> tuple[MaskRCNN, DetectorNotes]:
    """Build the detector that a file holds, on the CPU and ready to detect.

    Raises:
        UserError: there is no such file, or it holds no detector.
    """
    if not path.is_file():
        raise UserError(f"there is no trained detector {path}; train one with densepath detect")
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            said = json.loads(file.metadata()[_KEY])
        fields: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
        notes = DetectorNotes(**fields)
        model = notes.build()
        model.load_state_dict(state)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} holds no detector of this version of densepath; train it anew") from error
    return model.eval(), notes
