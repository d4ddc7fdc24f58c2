"""A detector's outputs as instances of the whole image: masks pasted, run-length encoded, in COCO's results format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        detections: boxes (N, 4) in the image's pixels, scores (N,), labels (N,) from 1, and perhaps masks (N, M, M).
        size: height, width of the image.
        category_ids: of the labels 1, 2, ...
    """
    found = {key: value.float().cpu() for key, value in detections.items()}
    results: list[dict[str, Any]] = []
    for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
        x1, y1, x2, y2 = box.tolist()
        results.append(
            {
                "image_id": image_id,
                "category_id": category_ids[int(label) - 1],
                "score": score.item(),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
        )
    if "masks" in found:
        for result, mask, box in zip(results, found["masks"], found["boxes"], strict=True):
            result["segmentation"] = encode_mask(paste_mask(mask, box, size))
    return results


def objects_of(
    sample: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The true and the found objects of an image as masks (H, W) bool that can be compared.

    Args:
        sample: image (H, W, 3), boxes (N, 4) x1 y1 x2 y2, masks (N, H, W).
        results: what was found in it, in COCO's results format. If that is boxes alone, all objects are full boxes.
    """
    if all("segmentation" in result for result in results):
        return list(np.asarray(sample["masks"])), [decode_mask(result["segmentation"]) for result in results]
    size = sample["image"].shape[:2]
    found = [(x, y, x + width, y + height) for x, y, width, height in (result["bbox"] for result in results)]
    return [fill_box(box, size) for box in sample["boxes"]], [fill_box(box, size) for box in found]


def fill_box(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """The pixels of an image (height, width) whose centers lie in a box x1 y1 x2 y2, (height, width) bool."""
    x1, y1, x2, y2 = (max(round(float(edge)), 0) for edge in box)
    mask = np.zeros(size, dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> COCO's compressed run lengths, ready for JSON."""
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()}


def decode_mask(encoded: Mapping[str, Any]) -> np.ndarray:
    """The (H, W) bool mask that :func:`encode_mask` took."""
    return rle.decode(dict(encoded)).astype(bool)
