"""The heads of Mask R-CNN: classes, boxes and masks of proposals, and their losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import roi_align


class MaskHeads(RoIHeads):
    """torchvision's heads for boxes and masks, with mask targets aligned with the mask features.

    torchvision crops the targets half a pixel off the box, from masks resized with their image. Here they are cropped
    from the masks at their own resolution, and are binary as in Detectron2. Without its own pool the mask head uses
    the features of the box head.
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
        loss_class, loss_box = box_losses(logits, deltas, torch.cat(labels), torch.cat(regression))
        positive = [torch.where(label > 0)[0] for label in labels]
        boxes = [proposal[here] for proposal, here in zip(proposals, positive, strict=True)]
        label = torch.cat([label[here] for label, here in zip(labels, positive, strict=True)])
        if self.mask_roi_pool is None:
            # In a second pass of the shared layers the positive boxes would have other batch statistics.
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
        # The sum keeps the head in the graph if no box of the batch is positive.
        loss_mask = F.binary_cross_entropy_with_logits(masks, wanted) if len(label) else masks.sum()
        return [], {"loss_class": loss_class, "loss_box": loss_box, "loss_mask": loss_mask}

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        pool = self.box_roi_pool if self.mask_roi_pool is None else self.mask_roi_pool
        masks = self._mask_logits(pool(features, boxes, image_shapes), torch.cat(labels)).sigmoid()
        found = zip(boxes, scores, labels, masks.split([b.shape[0] for b in boxes]), strict=True)
        return [{"boxes": b, "scores": s, "labels": c, "masks": m} for b, s, c, m in found]

    def _mask_logits(self, inside: Tensor, label: Tensor) -> Tensor:
        """The masks (N, 2 M, 2 M) of the boxes' own classes (N,), from their pooled features (N, C, M, M)."""
        logits = self.mask_predictor(self.mask_head(inside))
        return logits[torch.arange(label.shape[0], device=label.device), label]


def box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of the classes and of the boxes of proposals, as in Detectron2.

    Args:
        logits: (N, classes), of which 0 is the background.
        deltas: (N, 4 * classes) a box for each class.
        labels: (N,)
        wanted: (N, 4)
    """
    positive = (labels > 0).nonzero()[:, 0]
    own = deltas.view(len(labels), -1, 4)[positive, labels[positive]]
    return F.cross_entropy(logits, labels), l1_loss(own, wanted[positive], len(labels))


def l1_loss(deltas: Tensor, wanted: Tensor, count: int) -> Tensor:
    """The sum of the absolute errors of the positive boxes (P, 4), divided by the number of all sampled boxes."""
    return F.l1_loss(deltas, wanted, reduction="sum") / count


def mask_targets(masks: Tensor, match: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crop each box's true mask.

    Args:
        masks: (M, H, W) bool.
        match: (N,) index of each box's mask.
        boxes: (N, 4) in pixels of the masks.
        size: side of the result.

    Returns:
        (N, size, size) float, 0 or 1.
    """
    # A step's boxes show only few of many objects; as floats all masks would take gigabytes.
    used, match = match.unique(return_inverse=True)
    rois = torch.cat((match[:, None].to(boxes), boxes), dim=1)
    return (roi_align(masks[used, None].float(), rois, size, sampling_ratio=0, aligned=True)[:, 0] >= 0.5).float()
