"""What Mask R-CNN does with its proposals: classes, boxes, masks, and their losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import roi_align

MASK_CELLS = 14  # side of the features of a box; its mask has twice as many


class MaskHeads(RoIHeads):
    """torchvision's heads for boxes and masks, with the mask targets cut where the mask features are.

    torchvision cuts the targets half a pixel beside the box and from masks resized with their image; these are cut
    from the masks in their own resolution, and are binary as in Detectron2.
    """

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if targets is None:
            return self._detect(features, proposals, image_shapes), {}
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        loss_class, loss_box = fastrcnn_loss(logits, deltas, labels, regression)
        positive = [torch.where(label > 0)[0] for label in labels]
        boxes = [proposal[here] for proposal, here in zip(proposals, positive, strict=True)]
        wanted = torch.cat(
            [
                mask_targets(target["masks"], match[here], box * target["scale"], 2 * MASK_CELLS)
                for target, match, here, box in zip(targets, matched, positive, boxes, strict=True)
            ]
        )
        label = torch.cat([label[here] for label, here in zip(labels, positive, strict=True)])
        masks = self._mask_logits(features, boxes, image_shapes, label)
        # The sum keeps the head in the graph when an image batch has no positive box.
        loss_mask = F.binary_cross_entropy_with_logits(masks, wanted) if len(label) else masks.sum()
        return [], {"loss_class": loss_class, "loss_box": loss_box, "loss_mask": loss_mask}

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        masks = self._mask_logits(features, boxes, image_shapes, torch.cat(labels)).sigmoid()
        found = zip(boxes, scores, labels, masks.split([len(b) for b in boxes]), strict=True)
        return [{"boxes": b, "scores": s, "labels": c, "masks": m} for b, s, c, m in found]

    def _mask_logits(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
        label: Tensor,
    ) -> Tensor:
        """The masks (N, 28, 28) of the boxes' own classes (N,)."""
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        return logits[torch.arange(len(label), device=label.device), label]


def mask_targets(masks: Tensor, match: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut each box's true mask out of its image.

    Args:
        masks: (M, H, W) bool.
        match: (N,) which mask each box belongs to.
        boxes: (N, 4) in pixels of the masks.
        size: side of the result, in cells.

    Returns:
        (N, size, size) float, 0 or 1.
    """
    rois = torch.cat((match[:, None].to(boxes), boxes), dim=1)
    return (roi_align(masks[:, None].float(), rois, size, sampling_ratio=0, aligned=True)[:, 0] >= 0.5).float()
