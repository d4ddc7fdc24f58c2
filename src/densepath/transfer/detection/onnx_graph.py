"""What a detector's ONNX file computes: objects from the stored pixels of one image of any size."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from densepath.transfer.detection.predictor import TrainedDetector
from densepath.transfer.detection.samples import DIVISOR, LONGEST


class DetectorGraph(nn.Module):
    """A detector with the steps before and after it, for tracing: sizes are tensors.

    Args:
        model: the trained detector.
    """

    def __init__(self, model: TrainedDetector) -> None:
        super().__init__()
        self.detector, self.notes, self.dtype = model.detector, model.notes, model.dtype
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.compile cannot be exported with a loop
            self.paint: Any = torch.jit.script(_paint)

    def forward(self, image: Tensor, score: Tensor) -> tuple[Tensor, ...]:
        """Find the objects with at least a score and, as in ``predict``, a pixel.

        Args:
            image: (H, W, C) as stored.
            score: (1,) float32

        Returns:
            boxes (N, 4) x1 y1 x2 y2 in pixels of the image, scores (N,), labels (N,); with a detector of masks also
            masks (N, M, M) and the label map (H, W) int32.
        """
        size = torch._shape_as_tensor(image)[:2]
        sides: tuple[Any, ...] = size.unbind()
        scale = torch.minimum(self.notes.test_size / size.min().double(), LONGEST / size.max().double())
        shape = (size * scale).round().long().clamp(min=1)  # as resized_shape
        resized: tuple[Any, ...] = shape.unbind()
        room: tuple[Any, ...] = (-shape % DIVISOR).unbind()
        spec = self.notes.spec
        pixels = spec.apply_window(image.float().permute(2, 0, 1)[None])
        pixels = F.interpolate(pixels, list(resized), mode="bilinear", antialias=True, align_corners=False)
        pixels = F.pad(spec.normalize(pixels), (0, room[1], 0, room[0]))
        found = self.detector.detect(ImageList(pixels, [resized]))[0]
        kept = torch.where(found["scores"] >= score)[0]
        boxes = found["boxes"][kept] * (size / shape).flip(0).repeat(2)
        outputs = boxes, found["scores"][kept], found["labels"][kept]
        if "masks" not in found:
            edges = boxes.round()  # of the pixels whose centers lie in the box
            seen = torch.where((edges[:, 0] < edges[:, 2]) & (edges[:, 1] < edges[:, 3]))[0]
            return tuple(each[seen] for each in outputs)
        masks = found["masks"][kept]
        y, x = (_sampling(boxes[:, axis::2], sides[axis ^ 1], masks.shape[-1]) for axis in (1, 0))
        labels, areas = self.paint(masks, y, x, torch.zeros(*sides, dtype=torch.int32))
        numbers = F.pad((areas > 0).long().cumsum(0), (1, 0))  # of the objects that have a pixel
        seen = torch.where(areas > 0)[0]
        return *(each[seen] for each in (*outputs, masks)), numbers[labels.long()].to(torch.int32)


def _sampling(edges: Tensor, length: Tensor, count: int) -> Tensor:
    """The weights (N, length, count) of a mask's values for the pixels of an axis: linear interpolation within the box,
    zeros outside, as in :func:`~densepath.transfer.detection.instances.paste`.

    Args:
        edges: (N, 2) start and end of the boxes on this axis, in pixels.
        length: pixels of the axis.
        count: values of a mask.
    """
    low, high = edges.double()[:, :, None].unbind(1)  # (N, 1) each
    pixel = torch.arange(length)  # type: ignore[call-overload]
    place = ((pixel + 0.5 - low) / (high - low).clamp(min=1e-9) * count - 0.5).clamp(0, count - 1)
    inside = (pixel >= low.round()) & (pixel < high.round())
    near = (1 - (place[..., None] - torch.arange(count)).abs()).clamp(min=0)
    return (near * inside[..., None]).float()


def _paint(masks: Tensor, down: Tensor, across: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The label map (H, W): k for the k-th object, the smallest one on top; of equally large ones, the best.
    And the pixels of each object (N,)."""
    count = masks.shape[0]
    areas = torch.zeros([count], dtype=torch.int32)
    smallest = torch.full_like(labels, 2**31 - 1)  # the pixels of the object on top
    for step in range(count):  # one by one, since the masks of all objects would fill the memory
        k = count - 1 - step
        shown = torch.mm(torch.mm(down[k], masks[k]), across[k].t()) >= 0.5
        area = torch.sum(shown).to(torch.int32)
        # Of one shape in all steps: onnxruntime warns of each step of a loop that changes that of its first
        areas = torch.where(torch.arange(count) == k, area, areas)
        on_top = shown & (area <= smallest)
        smallest = torch.where(on_top, area, smallest)
        labels = torch.where(on_top, torch.full_like(labels, k + 1), labels)
    return labels, areas
