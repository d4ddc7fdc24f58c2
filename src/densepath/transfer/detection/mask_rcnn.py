"""Mask R-CNN on any feature maps, from torchvision's detection modules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from densepath.transfer.detection.anchors import Anchors
from densepath.transfer.detection.config import DETECTIONS
from densepath.transfer.detection.detector import Detector, fill_linear, start_predictor, to_float32
from densepath.transfer.detection.mask_heads import MaskHeads, l1_loss


@dataclass(frozen=True)
class HeadSize:
    """The sizes of a Mask R-CNN's heads; the defaults are the paper's with FPN.

    Args:
        channels: channels of the pyramid's levels and of the mask head.
        hidden: width of the box head's two layers.
        mask_layers: convolutions of the mask head before the upsampling.
        before_nms: proposals per level kept before non-maximum suppression, in training and in testing.
        after_nms: proposals per image kept after it, in training and in testing.
        rois: proposals per image that the heads are trained on, at most a quarter of them positive.
    """

    channels: int = 256
    hidden: int = 1024
    mask_layers: int = 4
    before_nms: tuple[int, int] = (2000, 1000)
    after_nms: tuple[int, int] = (1000, 1000)
    rois: int = 512


class MaskRCNN(Detector):
    """Mask R-CNN.

    Args:
        features: as in :class:`Detector`.
        rpn: maps -> proposals.
        heads: maps and proposals -> objects.

    Losses and initial weights are Detectron2's, with which the papers' results were computed. torchvision's differ:
    smooth L1 with beta 1/9 for boxes, and weights of the box head's layers that are 0.58 times as large.

    Source: He et al., "Mask R-CNN", ICCV 2017, with Detectron2's constants.
    """

    def __init__(self, features: nn.Module, rpn: RegionProposalNetwork, heads: MaskHeads) -> None:
        super().__init__(features)
        self.rpn = rpn
        self.heads = heads
        for part in (rpn.head, heads.box_predictor, heads.mask_predictor):
            part.register_forward_hook(to_float32)

    def forward(self, images: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses; see :meth:`Detector.forward`."""
        maps = self.features(images.tensors)
        proposals, losses = self.rpn(images, maps, targets)
        losses = {"loss_objectness": losses["loss_objectness"], "loss_proposals": losses["loss_rpn_box_reg"]}
        return losses | self.heads(maps, proposals, images.image_sizes, targets)[1]

    @torch.no_grad()
    def detect(self, images: ImageList) -> list[dict[str, Tensor]]:
        """The objects, with masks; see :meth:`Detector.detect`."""
        maps = self.features(images.tensors)
        proposals, _ = self.rpn(images, maps)
        found: list[dict[str, Tensor]] = self.heads(maps, proposals, images.image_sizes)[0]
        return found


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network, with the L1 loss of boxes that Detectron2 has."""

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        positive, negative = (torch.cat(each).nonzero()[:, 0] for each in self.fg_bg_sampler(labels))
        sampled = torch.cat((positive, negative))
        loss_box = l1_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], len(sampled))
        wanted = torch.cat(labels)[sampled]
        return F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], wanted), loss_box


def make_rpn(
    channels: int, anchors: Anchors, size: HeadSize, detections: int, convolutions: int = 1
) -> RegionProposalNetwork:
    """Build the region proposal network.

    Args:
        channels: channels of the maps.
        anchors: the anchors on the maps.
        size: gives the numbers of proposals. In testing they grow in proportion with ``detections`` above 100, as each
            object needs several proposals.
        detections: maximum number of detections per image.
        convolutions: number of convolutions before the predictions.
    """
    more = max(1.0, detections / DETECTIONS)
    before, after = (
        {"training": kept[0], "testing": round(more * kept[1])} for kept in (size.before_nms, size.after_nms)
    )
    return ProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0], convolutions),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=before,
        post_nms_top_n=after,
        nms_thresh=0.7,
    )


def make_heads(
    *,
    box_pool: nn.Module,
    box_head: nn.Module,
    box_width: int,
    mask_pool: nn.Module | None,
    mask_head: nn.Module,
    mask_width: int,
    classes: int,
    size: HeadSize,
    detections: int,
) -> MaskHeads:
    """Build the heads that turn proposals into objects.

    Args:
        box_pool: pools the features of proposals for the box head.
        box_head: pooled features -> (N, box_width).
        box_width: output channels of the box head.
        mask_pool: pools the features of boxes for the mask head; None for the box head's features.
        mask_head: pooled features -> (N, mask_width, M, M); masks are 2M x 2M.
        mask_width: output channels of the mask head.
        classes: number of classes without background.
        size: channels of the second last mask layer, and proposals to train on.
        detections: maximum number of detections per image.
    """
    predictor = FastRCNNPredictor(box_width, classes + 1)
    mask_predictor = MaskRCNNPredictor(mask_width, size.channels, classes + 1)
    box_head.apply(fill_linear)
    nn.init.zeros_(mask_predictor.conv5_mask.bias)
    # torchvision initializes these layers with large weights: its first mask loss is 3 instead of log 2.
    start_predictor(predictor.cls_score, 0.01)
    start_predictor(predictor.bbox_pred, 0.001)
    start_predictor(mask_predictor.mask_fcn_logits, 0.001)
    return MaskHeads(
        box_pool,
        box_head,
        predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=size.rois,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=detections,
        mask_roi_pool=mask_pool,
        mask_head=mask_head,
        mask_predictor=mask_predictor,
    )
