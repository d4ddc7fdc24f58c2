"""What Mask R-CNN does with its proposals: classes, boxes, masks, and their losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import roi_align


class MaskHeads(RoIHeads):
    """torchvision's heads for boxes and masks, with the mask targets cut where the mask features are.

    torchvision cuts the targets half a pixel beside the box and from masks resized with their image; these are cut
    from the masks in their own resolution, and are binary as in Detectron2. Without a pool of its own the mask head
    takes what the box head saw.
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
        inside = self.box_roi_pool(features, proposals, image_shapes)
        logits, deltas = self.box_predictor(self.box_head(inside))
        loss_class, loss_box = fastrcnn_loss(logits, deltas, labels, regression)
        positive = [torch.where(label > 0)[0] for label in labels]
        boxes = [proposal[here] for proposal, here in zip(proposals, positive, strict=True)]
        label = torch.cat([label[here] for label, here in zip(labels, positive, strict=True)])
        if self.mask_roi_pool is None:
            # A second pass of the shared layers would give the positive boxes batch statistics of their own.
            inside = inside[torch.cat(labels) > 0]
        else:
            inside = self.mask_roi_pool(features, boxes, image_shapes)
        masks = self._mask_logits(inside, label)
        wanted = torch.cat(
            [
                mask_targets(target["masks"], match[here], box * target["scale"], masks.shape[-1])
                for target, match, here, box in zip(targets, matched, positive, boxes, strict=True)
            ]
        )
        # The sum keeps the head in the graph when an image batch has no positive box.
        loss_mask = F.binary_cross_entropy_with_logits(masks, wanted) if len(label) else masks.sum()
        return [], {"loss_class": loss_class, "loss_box": loss_box, "loss_mask": loss_mask}

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        pool = self.box_roi_pool if self.mask_roi_pool is None else self.mask_roi_pool
        masks = self._mask_logits(pool(features, boxes, image_shapes), torch.cat(labels)).sigmoid()
        found = zip(boxes, scores, labels, masks.split([len(b) for b in boxes]), strict=True)
        return [{"boxes": b, "scores": s, "labels": c, "masks": m} for b, s, c, m in found]

    def _mask_logits(self, inside: Tensor, label: Tensor) -> Tensor:
        """The masks (N, 2 M, 2 M) of the boxes' own classes (N,), from what is in them (N, C, M, M)."""
        logits = self.mask_predictor(self.mask_head(inside))
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
    # Few of many objects are in a step's boxes, and as floats all their masks would take gigabytes.
    used, match = match.unique(return_inverse=True)
    rois = torch.cat((match[:, None].to(boxes), boxes), dim=1)
    return (roi_align(masks[used, None].float(), rois, size, sampling_ratio=0, aligned=True)[:, 0] >= 0.5).float()
