"""Segment Anything without training: masks for prompts, or automatic masks of a whole image."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from densepath.core.errors import UserError, errors_as
from densepath.nets.weights.checks import require_numbers_in
from densepath.nets.weights.hub import fetch, quiet

Found = tuple[npt.NDArray[np.bool_], float]  # a mask (H, W), and the IoU that the model predicts for it
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_AT_ONCE = 64  # prompts per call of the mask decoder


class SegmentAnything:
    """A Segment Anything model of any size from ``transformers``.

    Args:
        weights: a folder in the layout of ``transformers``, with safetensors; or a name on the Hugging Face hub, whose
            files are downloaded if they are not in its cache.
        device: the device, on which it computes in float32.

    Raises:
        UserError: ``transformers`` is missing, or there is no such model.

    Source: Kirillov et al., "Segment Anything", ICCV 2023.
    """

    def __init__(self, weights: str | Path, device: torch.device) -> None:
        try:
            import transformers
            from transformers import MaskGenerationPipeline, SamModel, SamProcessor
        except ImportError as error:
            raise UserError("this needs transformers; run pip install 'densepath[sam]'") from error

        def refusal(error: Exception) -> UserError:  # a missing or corrupt file, no network: many kinds of errors
            reason = (str(error) or type(error).__name__).splitlines()[0]
            return UserError(
                f"{weights} is not a readable Segment Anything model ({reason}); give a folder with config.json, "
                "model.safetensors and the processor's settings, or a name such as facebook/sam-vit-huge"
            )

        with errors_as(refusal):
            folder = Path(weights)
            if not folder.is_dir():
                if not _HUB_NAME.fullmatch(str(weights)):
                    raise FileNotFoundError("it is not a folder or a name on the hub")
                folder = fetch(str(weights))
            with quiet(transformers):
                model: Any
                model, notes = SamModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
                if notes["missing_keys"] or notes["mismatched_keys"]:
                    raise ValueError("its tensors belong to another model")
                processor: Any = SamProcessor.from_pretrained(folder)
        require_numbers_in(model, weights)
        self.device = device
        self.model = model.eval().to(device)
        self.processor = processor
        self._everything: Any = MaskGenerationPipeline(
            model=self.model, image_processor=processor.image_processor, device=device
        )

    def everything(
        self,
        image: npt.NDArray[np.uint8],
        *,
        points_per_side: int,
        predicted_iou: float,
        stability: float,
        box_nms: float,
    ) -> Iterator[Found]:
        """Masks for a grid of points, by the mask generator of ``transformers``.

        Each point gives three masks. Masks are kept if their predicted IoU and stability are above the thresholds (a
        mask is stable if it changes little with the threshold of its logits). Of masks with overlapping boxes the one
        with the highest predicted IoU is kept.

        Args:
            image: (H, W, 3)
            points_per_side: points per side of the grid.
            predicted_iou, stability: thresholds, 0 to 1.
            box_nms: IoU of boxes above which masks are duplicates.
        """
        found = self._everything(
            Image.fromarray(image),
            points_per_batch=_AT_ONCE,
            points_per_crop=points_per_side,
            pred_iou_thresh=predicted_iou,
            stability_score_thresh=stability,
            crops_nms_thresh=box_nms,
        )
        for mask, score in zip(found["masks"], found["scores"].tolist(), strict=True):
            yield np.asarray(mask, bool), score

    @torch.inference_mode()
    def prompted(
        self, image: npt.NDArray[np.uint8], boxes: npt.NDArray[np.float32], prompt: Literal["point", "box"]
    ) -> Iterator[Found]:
        """One mask per box: of the model's three masks the one with the highest predicted IoU.

        Args:
            image: (H, W, 3)
            boxes: (N, 4) x1 y1 x2 y2 in its pixels.
            prompt: whether the prompt is the box or only its center.
        """
        if not len(boxes):
            return
        if prompt == "point":
            centers = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2  # (N, 1, 2)
            prompts = {"input_points": [centers.tolist()], "input_labels": [np.ones((len(boxes), 1), int).tolist()]}
        else:
            prompts = {"input_boxes": [boxes.tolist()]}
        inputs = self.processor(Image.fromarray(image), **prompts, return_tensors="pt")
        tensors = {name: inputs[name].to(self.device) for name in prompts}
        tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.device))
        for start in range(0, len(boxes), _AT_ONCE):
            some = {name: value[:, start : start + _AT_ONCE] for name, value in tensors.items()}
            out = self.model(image_embeddings=embeddings, **some)
            scores, best = out.iou_scores[0].max(dim=1)  # (n,)
            masks = self._full_size(out.pred_masks[0][torch.arange(len(best)), best, None], inputs)
            yield from zip(masks, scores.tolist(), strict=True)

    def _full_size(self, logits: Tensor, inputs: Any) -> npt.NDArray[np.bool_]:
        """Masks at the size of their image, (n, H, W), from the model's logits, (n, 1, h, w)."""
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        (masks,) = self.processor.image_processor.post_process_masks([logits], *sizes)
        full: npt.NDArray[np.bool_] = masks[:, 0].cpu().numpy()
        return full
