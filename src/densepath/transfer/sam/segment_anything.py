"""Segment Anything as it is, without training: masks by prompts, or of everything in an image."""

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

from densepath.core.errors import UserError
from densepath.nets.hub import fetch, quiet

Found = tuple[npt.NDArray[np.bool_], float]  # a mask (H, W), and the IoU that the model predicts for it
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_AT_ONCE = 64  # prompts that the mask decoder is given together


class SegmentAnything:
    """A Segment Anything model of any size, by ``transformers``.

    Args:
        weights: a folder in the layout of ``transformers``, with safetensors; or a name on the Hugging Face hub, whose
            files are fetched over the network where they are not in its cache.
        device: where it computes, in float32.

    Raises:
        UserError: ``transformers`` is missing, or there is no such model.

    Source: Kirillov et al., "Segment Anything", ICCV 2023.
    """

    def __init__(self, weights: str | Path, device: torch.device) -> None:
        try:
            import transformers
            from transformers import MaskGenerationPipeline, SamModel, SamProcessor
        except ImportError as error:
            raise UserError("this needs transformers; install it by pip install 'densepath[sam]'") from error
        try:
            folder = Path(weights)
            if not folder.is_dir():
                if not _HUB_NAME.fullmatch(str(weights)):
                    raise FileNotFoundError("it is no folder and no name")
                folder = fetch(str(weights))
            with quiet(transformers):
                model: Any
                model, notes = SamModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
                if notes["missing_keys"] or notes["mismatched_keys"]:
                    raise ValueError("its tensors are those of another model")
                processor: Any = SamProcessor.from_pretrained(folder)
        except UserError:
            raise
        except Exception as error:  # a missing file, a damaged one, no network: each has its own
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{weights} is no Segment Anything model that can be read ({reason}); give a folder with config.json, "
                "model.safetensors and the processor's settings, or a name such as facebook/sam-vit-huge"
            ) from error
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
        """Masks of all that a grid of points lies on, by the generator of ``transformers``.

        Each point gives three masks. Those remain whose predicted IoU and stability are higher than demanded (stable
        is a mask that changes little when the threshold of its logits does), and of masks whose boxes overlap the one
        with the highest predicted IoU.

        Args:
            image: (H, W, 3)
            points_per_side: of the grid.
            predicted_iou, stability: 0 to 1.
            box_nms: the overlap of boxes from which on masks are taken for the same.
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
        """One mask for each box: of the model's three the one with the highest predicted IoU.

        Args:
            image: (H, W, 3)
            boxes: (N, 4) x1 y1 x2 y2 in its pixels.
            prompt: whether the model is told the boxes, or their centers alone.
        """
        if not len(boxes):
            return
        if prompt == "point":
            centers = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2  # (N, 1, 2)
            prompts = {"input_points": [centers.tolist()], "input_labels": [np.ones((len(boxes), 1), int).tolist()]}
        else:
            prompts = {"input_boxes": [boxes.tolist()]}
        inputs = self.processor(Image.fromarray(image), **prompts, return_tensors="pt")
        told = {name: inputs[name].to(self.device) for name in prompts}
        told = {name: value.float() if value.is_floating_point() else value for name, value in told.items()}
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.device))
        for start in range(0, len(boxes), _AT_ONCE):
            some = {name: value[:, start : start + _AT_ONCE] for name, value in told.items()}
            out = self.model(image_embeddings=embeddings, **some)
            scores, best = out.iou_scores[0].max(dim=1)  # (n,)
            masks = self._whole(out.pred_masks[0][torch.arange(len(best)), best, None], inputs)
            yield from zip(masks, scores.tolist(), strict=True)

    def _whole(self, logits: Tensor, inputs: Any) -> npt.NDArray[np.bool_]:
        """Masks in the resolution of their image, (n, H, W), from the model's own, (n, 1, h, w)."""
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        (masks,) = self.processor.image_processor.post_process_masks([logits], *sizes)
        whole: npt.NDArray[np.bool_] = masks[:, 0].cpu().numpy()
        return whole
