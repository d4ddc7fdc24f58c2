"""Objects of new images: ``load_detector(...).predict``, and torchvision's plain inference loop on the same network.

The plain loop decodes an image, resizes and normalizes it with torchvision's transforms, detects, and pastes the masks
by ``paste_masks_in_image``, image by image; both keep objects with a score of at least 0.5. The images are synthetic
tissue; the network has random weights unless ``--detector`` names a trained one, whose finds are then realistic.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.transforms import v2

from benchmarks.measure import in_turns, parser, ratio, report
from densepath.synthetic.tissue import write_tissue
from densepath.training.hardware import choose_hardware
from densepath.transfer.detection.detector_file import DetectorNotes
from densepath.transfer.detection.predictor import TrainedDetector, load_detector
from densepath.transfer.detection.samples import padded, resized_shape

_SCORE = 0.5


@torch.no_grad()
def plain(model: TrainedDetector, path: Path, device: torch.device) -> Tensor:
    """The masks (N, H, W) of an image, by torchvision's functions."""
    pixels = decode_image(str(path), ImageReadMode.RGB)
    size = (int(pixels.shape[1]), int(pixels.shape[2]))
    transform = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize(list(resized_shape(*size, model.notes.test_size)), antialias=True),
            v2.Normalize(list(model.notes.mean), list(model.notes.std)),
        ]
    )
    shown = padded([transform(pixels).to(device)])
    found = {name: value.cpu() for name, value in model.detector.detect(shown)[0].items()}
    kept = found["scores"] >= _SCORE
    height, width = shown.image_sizes[0]
    boxes = found["boxes"][kept] * torch.tensor([size[1] / width, size[0] / height] * 2)
    masks: Tensor = paste_masks_in_image(found["masks"][kept][:, None], boxes, size)
    return masks[:, 0] >= 0.5


def main() -> None:
    """Measure both, in turns, over the same images."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--detector", help="a run of detect with masks; by default random weights")
    made.add_argument("--images", type=int, default=8)
    made.add_argument("--size", type=int, default=522, help="side of the images in pixels")
    made.add_argument("--device", default="auto")
    asked = made.parse_args()
    device = choose_hardware(asked.device).device
    if asked.detector:
        model = load_detector(asked.detector)
    else:
        notes = DetectorNotes("mask_rcnn_fpn_small", "regnetx_002", (1,), ("gland",), 256, (0.5,) * 3, (0.2,) * 3)
        model = TrainedDetector(notes.build(), notes).eval()
    model.to(device)
    with tempfile.TemporaryDirectory() as folder:
        write_tissue(Path(folder, "T"), train=1, test=asked.images, size=asked.size)
        files = sorted(Path(folder, "T", "test").iterdir())
        rows = [_row(model, files, device, asked.repeats)]
    report(f"{model.notes.detector}, {len(files)} images of {asked.size} px, {device.type}", rows, asked.json)


def _row(model: TrainedDetector, files: list[Path], device: torch.device, repeats: int) -> dict[str, Any]:
    cases = {
        "densepath": lambda: [model.predict(file, score=_SCORE, window=0) for file in files],
        "torchvision": lambda: [plain(model, file, device) for file in files],
    }
    seconds = in_turns(cases, repeats, device, warmup=1)
    return {
        "case": "prediction",
        "densepath images per second": len(files) / statistics.median(seconds["densepath"]),
        "torchvision images per second": len(files) / statistics.median(seconds["torchvision"]),
        "speed / torchvision's": ratio(seconds["torchvision"], seconds["densepath"]),
    }


if __name__ == "__main__":
    main()
