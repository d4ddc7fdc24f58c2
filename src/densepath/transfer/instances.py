"""A detector's outputs as instances of the whole image: masks pasted, run-length encoded, in COCO's results format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torch import Tensor


def paste_mask(mask: Tensor, box: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Draw a box's mask into its image.

    Args:
        mask: (M, M) probabilities; the cells fill the box from edge to edge.
        box: (4,) x1 y1 x2 y2 in the image's pixels.
        size: height, width of the image.

    Returns:
        (height, width) bool: the probability at each pixel's center is at least 0.5.
    """
    height, width = size
    image = np.zeros(size, dtype=bool)
    x1, y1, x2, y2 = box.tolist()
    # Only the pixels whose centers lie in the box.
    left, top = max(round(x1), 0), max(round(y1), 0)
    right, bottom = min(round(x2), width), min(round(y2), height)
    if left >= right or top >= bottom:
        return image
    x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), dim=-1)[None]
    inside = F.grid_sample(mask[None, None], grid, align_corners=False, padding_mode="border")[0, 0]
    image[top:bottom, left:right] = (inside >= 0.5).numpy()
    return image


def coco_results(
    detections: Mapping[str, Tensor], image_id: int, size: tuple[int, int], category_ids: list[int]
) -> list[dict[str, Any]]:
    """One image's detections in COCO's results format, best first.

    Args:
        detections: boxes (N, 4) in the image's pixels, scores (N,), labels (N,) from 1, masks (N, M, M).
        size: height, width of the image.
        category_ids: of the labels 1, 2, ...
    """
    boxes, scores, labels, masks = (detections[k].float().cpu() for k in ("boxes", "scores", "labels", "masks"))
    results = []
    for box, score, label, mask in zip(boxes, scores, labels, masks, strict=True):
        x1, y1, x2, y2 = box.tolist()
        results.append(
            {
                "image_id": image_id,
                "category_id": category_ids[int(label) - 1],
                "score": score.item(),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": encode_mask(paste_mask(mask, box, size)),
            }
        )
    return results


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> COCO's compressed run lengths, ready for JSON."""
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()}


def decode_mask(encoded: Mapping[str, Any]) -> np.ndarray:
    """The (H, W) bool mask that :func:`encode_mask` took."""
    return rle.decode(dict(encoded)).astype(bool)
