"""Mask R-CNN on a feature pyramid, from torchvision's detection parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from densepath.nets.backbones import Backbone
from densepath.transfer.mask_heads import MASK_CELLS, MaskHeads
from densepath.transfer.pyramid import ASPECT_RATIOS, FeaturePyramid, PyramidAnchors, PyramidPool

_BOX_CELLS = 7


@dataclass(frozen=True)
class DetectorSize:
    """How wide the detector is behind its backbone; the defaults are the paper's.

    Args:
        channels: of the pyramid's levels and of the mask head.
        hidden: width of the box head's two layers.
        mask_layers: convolutions of the mask head.
        proposals_per_level: kept of each level in training before non-maximum suppression; half as many in testing.
        proposals: kept of each image after non-maximum suppression.
        rois: proposals per image that the heads are trained on, a quarter of them positive.
    """

    channels: int = 256
    hidden: int = 1024
    mask_layers: int = 4
    proposals_per_level: int = 2000
    proposals: int = 1000
    rois: int = 512


DETECTORS = {
    "mask_rcnn_fpn": DetectorSize(),
    "mask_rcnn_fpn_small": DetectorSize(64, 256, 2, proposals_per_level=500, proposals=200, rois=64),
}


def _to_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A hook: boxes and scores in half precision would be pixels off."""
    return output.float() if isinstance(output, Tensor) else type(output)(_to_float32(module, (), o) for o in output)


class MaskRCNN(nn.Module):
    """Mask R-CNN with FPN: all layers trainable, batch norm in the backbone and the pyramid, none in the heads.

    Args:
        backbone: any that gives f2-f5.
        classes: how many kinds of objects, without the background.
        size: how wide the heads are.

    The losses are torchvision's (smooth L1 with beta 1/9 where Detectron2 has L1: the same but for errors under 1/9).

    Source: He et al., "Mask R-CNN", ICCV 2017, with Detectron2's constants.
    """

    def __init__(self, backbone: Backbone, classes: int, size: DetectorSize = DETECTORS["mask_rcnn_fpn"]) -> None:
        super().__init__()
        channels = size.channels
        self.pyramid = FeaturePyramid(backbone, channels)
        self.rpn = RegionProposalNetwork(
            PyramidAnchors(),
            RPNHead(channels, len(ASPECT_RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": size.proposals_per_level, "testing": size.proposals_per_level // 2},
            post_nms_top_n={"training": size.proposals, "testing": size.proposals},
            nms_thresh=0.7,
        )
        predictor = FastRCNNPredictor(size.hidden, classes + 1)
        mask_predictor = MaskRCNNPredictor(channels, channels, classes + 1)
        # torchvision's own start of these layers is coarse: its first mask loss is 3 rather than log 2.
        for layer, std in (
            (predictor.cls_score, 0.01),
            (predictor.bbox_pred, 0.001),
            (mask_predictor.mask_fcn_logits, 0.001),
        ):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.heads = MaskHeads(
            PyramidPool(_BOX_CELLS),
            TwoMLPHead(channels * _BOX_CELLS**2, size.hidden),
            predictor,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=size.rois,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            mask_roi_pool=PyramidPool(MASK_CELLS),
            mask_head=MaskRCNNHeads(channels, (channels,) * size.mask_layers, 1),
            mask_predictor=mask_predictor,
        )
        for part in (self.rpn.head, self.heads.box_predictor, self.heads.mask_predictor):
            part.register_forward_hook(_to_float32)

    def forward(self, images: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses of a training batch.

        Args:
            images: pixels (B, 3, H, W), normalized and padded, and the images' own sizes (height, width).
            targets: of each image: boxes (N, 4) x1 y1 x2 y2 in its pixels; labels (N,) from 1; masks (N, h, w) bool in
                any resolution, and scale (4,) that takes boxes into their pixels.
        """
        levels = self.pyramid(images.tensors)
        proposals, losses = self.rpn(images, levels, targets)
        losses = {"loss_objectness": losses["loss_objectness"], "loss_proposals": losses["loss_rpn_box_reg"]}
        return losses | self.heads(levels, proposals, images.image_sizes, targets)[1]

    @torch.no_grad()
    def detect(self, images: ImageList) -> list[dict[str, Tensor]]:
        """Of each image, best first: boxes (N, 4) in its pixels, scores (N,), labels (N,), masks (N, 28, 28) in 0-1."""
        levels = self.pyramid(images.tensors)
        proposals, _ = self.rpn(images, levels)
        return self.heads(levels, proposals, images.image_sizes)[0]
