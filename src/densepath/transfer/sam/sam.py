"""``densepath sam``: scores Segment Anything without training, with the metrics of detectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pycocotools import mask as rle

from densepath.annotations.coco import open_split
from densepath.annotations.splits import check_objects, fit_window, summarize_split
from densepath.core.errors import UserError
from densepath.core.locks import refuse_held, sole_writer
from densepath.core.paths import AnyPath, as_path
from densepath.core.records import CONFIG
from densepath.core.single_values import take_single_values
from densepath.core.streams import say
from densepath.sources.run_folders import refuse_among_images
from densepath.training.caller_state import state_of_the_caller
from densepath.training.hardware import choose_device
from densepath.transfer.detection.config import DETECTIONS
from densepath.transfer.detection.evaluation import evaluate
from densepath.transfer.detection.instances import encode_mask
from densepath.transfer.sam.segment_anything import Found, SegmentAnything

Prompt = Literal["automatic", "point", "box"]
_PROMPTS = ("automatic", "point", "box")


@take_single_values
@state_of_the_caller()
def sam(
    *,
    data: AnyPath,
    out: str | Path,
    orientation: Literal["stored", "viewed"] | None = None,
    weights: AnyPath = "facebook/sam-vit-huge",
    prompt: Prompt = "automatic",
    points_per_side: int = 32,
    predicted_iou: float = 0.88,
    stability: float = 0.95,
    box_nms: float = 0.7,
    detections_per_image: int = DETECTIONS,
    pictures: int = 8,
    devices: int | str = "auto",
) -> dict[str, float]:
    """Score Segment Anything on the outlined objects of the test images, without training.

    A reference for detectors. With the prompts "point" and "box" the model is given the location of every true object:
    it cannot miss an object or find a false one, so its scores are not comparable with those of a detector. The score
    of a mask is the IoU that the model predicts for it.

    Args:
        data: a folder as ``densepath data`` writes it: images and COCO instances.
        out: a folder for ``metrics.json``, ``predictions.json`` (COCO results) and ``pictures/``; those of an earlier
            call are replaced.
        orientation: for images with an orientation tag (of cameras), the pixels that the outlines describe: as "stored"
            in the file, or as "viewed", turned by the tag. Without it such images are refused.
        weights: a folder with a model in the layout of ``transformers``, or its name on the Hugging Face hub.
        prompt: "automatic" for a grid of points; "point" for the center of each true box; "box" for the true boxes.
        points_per_side: points per side of the grid; this and the next three options are for "automatic" only.
        predicted_iou: threshold of the IoU that the model predicts for a mask.
        stability: threshold of a mask's stability: the IoU of the masks at a higher and at a lower logit threshold.
        box_nms: IoU of boxes above which only the best mask is kept.
        detections_per_image: maximum number of masks per image that are scored.
        pictures: number of test images to draw with true and predicted outlines.
        devices: "auto" (a GPU, or the CPU if there is none) or "cpu".

    Returns:
        mask_ap, mask_ap50, mask_ap75, and for "automatic" box_ap, box_ap50, box_ap75, in percent.

    Raises:
        UserError: the data, the weights or an option are invalid, or another process writes to ``out``.

    Source: Kirillov et al., "Segment Anything", ICCV 2023, its mask generator with its defaults; the comparison is
    Table 6 of "Convolutional masked image modeling for dense prediction tasks on pathology images", WACV 2024.
    """
    data, weights = as_path(data), as_path(weights)
    out = Path(out)
    refuse_among_images(out, data)
    refuse_held(out)
    if prompt not in _PROMPTS:
        raise UserError(f"no prompt is called {prompt!r}; use one of {', '.join(_PROMPTS)}")
    if points_per_side < 1 or detections_per_image < 1:
        raise UserError(
            f"points_per_side is {points_per_side} and detections_per_image {detections_per_image}; give at least 1"
        )
    if not all(0 <= share <= 1 for share in (predicted_iou, stability, box_nms)):
        raise UserError(
            f"predicted_iou is {predicted_iou}, stability {stability} and box_nms {box_nms}; give numbers from 0 to 1"
        )
    if (out / CONFIG).exists():
        raise UserError(f"{out} holds another run; use another folder")
    images = open_split(data, "test", orientation=orientation)
    check_objects(images)
    fit_window(images)
    categories = images.category_ids
    if prompt == "automatic" and len(categories) > 1:
        raise UserError(
            f"{images.annotations} has {len(categories)} categories, but automatic masks have none; use the prompt "
            "point or box"
        )
    say(f"densepath: {summarize_split(images, 'test')}")
    model = SegmentAnything(weights, choose_device(devices))
    generator: dict[str, Any] = {
        "points_per_side": points_per_side,
        "predicted_iou": predicted_iou,
        "stability": stability,
        "box_nms": box_nms,
    }

    def find(sample: dict[str, Any]) -> list[dict[str, Any]]:
        image = images.spec.to_rgb(sample["image"])
        # Encoded one by one: the masks of a thousand nuclei would take a gigabyte.
        if prompt == "automatic":
            found = model.everything(image, **generator)
            return [_result(one, sample["image_id"], categories[0]) for one in found]
        labels = zip(model.prompted(image, sample["boxes"], prompt), sample["labels"], strict=True)
        return [_result(one, sample["image_id"], categories[label - 1]) for one, label in labels]

    with sole_writer(out):
        return evaluate(
            find,
            lambda sample, found: found,
            images,
            out,
            boxes=prompt == "automatic",
            detections_per_image=detections_per_image,
            pictures=pictures,
        )


def _result(found: Found, image_id: int, category_id: int) -> dict[str, Any]:
    """A mask in COCO's results format, with its bounding box."""
    mask, score = found
    runs = encode_mask(mask)
    box = rle.toBbox(runs).tolist()
    return {"image_id": image_id, "category_id": category_id, "score": score, "bbox": box, "segmentation": runs}
