"""The detectors by name: those of the papers, one more of Detectron2, and a narrow version of each for a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from timm.layers import LayerNorm2d
from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone
from densepath.transfer.detection.anchors import Anchors
from densepath.transfer.detection.config import ANCHOR_SIZES, DETECTIONS, check_anchor_sizes
from densepath.transfer.detection.detector import Detector
from densepath.transfer.detection.feature_maps import DilatedStage, FeaturePyramid, FourthStage
from densepath.transfer.detection.mask_rcnn import HeadSize, MaskRCNN, make_heads, make_rpn
from densepath.transfer.detection.retinanet import RetinaNet
from densepath.transfer.detection.roi_pool import RoIPool, StagePool
from densepath.transfer.detection.simple_pyramid import SimpleFeaturePyramid
from densepath.transfer.detection.windowed_transformer import check_transformer

_BOX_SIZE, _MASK_SIZE = 7, 14  # side of the pooled features of a box in the heads
_PYRAMID_STAGES = (2, 3, 4, 5)
_PYRAMID_STRIDES = (4, 8, 16, 32, 64)  # pixels, of P2-P6
_SINGLE_STRIDE = 16

_WIDE = HeadSize()
_NARROW = HeadSize(64, 256, 2, before_nms=(500, 250), after_nms=(200, 200), rois=64)
# One map has the proposals of all sizes.
_WIDE_SINGLE = replace(_WIDE, before_nms=(12000, 6000), after_nms=(2000, 1000))
_NARROW_SINGLE = replace(_NARROW, before_nms=(1000, 500))
_NARROW_STAGE = replace(_NARROW_SINGLE, after_nms=(200, 50), rois=16)  # stage 5 is not narrower, so it gets fewer boxes


class Builder(Protocol):
    """Builds a detector with random weights.

    Args:
        backbone: becomes a part of the detector.
        classes: number of classes without background.
        anchor_sizes: in pixels.
        detections_per_image: maximum number of detections.

    Raises:
        UserError: the anchor sizes or the backbone do not fit the detector.
    """

    def __call__(
        self, backbone: Backbone, classes: int, *, anchor_sizes: Sequence[int], detections_per_image: int
    ) -> Detector: ...


def mask_rcnn_fpn(
    backbone: Backbone,
    classes: int,
    size: HeadSize = _WIDE,
    anchor_sizes: Sequence[int] = ANCHOR_SIZES,
    detections_per_image: int = DETECTIONS,
) -> MaskRCNN:
    """Mask R-CNN on the levels P2-P6, with one anchor size on each."""
    check_anchor_sizes(anchor_sizes, levels=len(_PYRAMID_STRIDES))
    features = FeaturePyramid(backbone, size.channels, _PYRAMID_STAGES, LastLevelMaxPool())
    anchors = Anchors([[side] for side in anchor_sizes], _PYRAMID_STRIDES)
    return _with_own_heads(
        features, size.channels, _PYRAMID_STAGES, anchors, classes, size=size, detections=detections_per_image
    )


def mask_rcnn_dc5(
    backbone: Backbone,
    classes: int,
    size: HeadSize = _WIDE_SINGLE,
    anchor_sizes: Sequence[int] = ANCHOR_SIZES,
    detections_per_image: int = DETECTIONS,
) -> MaskRCNN:
    """Mask R-CNN on the dilated stage 5, with anchors of all sizes on this single map of stride 16."""
    check_anchor_sizes(anchor_sizes)
    anchors = Anchors([anchor_sizes], [_SINGLE_STRIDE])
    return _with_own_heads(
        DilatedStage(backbone),
        backbone.channels[5],
        (4,),
        anchors,
        classes,
        size=size,
        detections=detections_per_image,
    )


def mask_rcnn_c4(
    backbone: Backbone,
    classes: int,
    size: HeadSize = _WIDE_SINGLE,
    anchor_sizes: Sequence[int] = ANCHOR_SIZES,
    detections_per_image: int = DETECTIONS,
) -> MaskRCNN:
    """Mask R-CNN on f4; the backbone's own stage 5 is the common head of boxes and masks."""
    check_anchor_sizes(anchor_sizes)
    channels = backbone.channels[5]
    return MaskRCNN(
        FourthStage(backbone),
        make_rpn(backbone.channels[4], Anchors([anchor_sizes], [_SINGLE_STRIDE]), size, detections_per_image),
        make_heads(
            box_pool=StagePool(backbone),
            box_head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            box_width=channels,
            mask_pool=None,
            mask_head=nn.Identity(),
            mask_width=channels,
            classes=classes,
            size=size,
            detections=detections_per_image,
        ),
    )


def vitdet(
    backbone: Backbone,
    classes: int,
    size: HeadSize = _WIDE,
    anchor_sizes: Sequence[int] = ANCHOR_SIZES,
    detections_per_image: int = DETECTIONS,
) -> MaskRCNN:
    """ViTDet: Mask R-CNN on a vision transformer's simple pyramid P2-P6, with deeper heads and layer norms.

    With patches of 14 px the levels have strides of 3.5 to 56 px instead of 4 to 64. The box head has as many
    convolutions as the mask head, and one fully connected layer.

    Source: Li et al., "Exploring plain vision transformer backbones for object detection", ECCV 2022, with Detectron2's
    ``mask_rcnn_vitdet``.
    """
    check_anchor_sizes(anchor_sizes, levels=len(_PYRAMID_STRIDES))
    strides = [stride * backbone.patch_size / _SINGLE_STRIDE for stride in _PYRAMID_STRIDES]
    anchors = Anchors([[side] for side in anchor_sizes], strides)
    widths = [size.channels] * size.mask_layers
    inside = (size.channels, _BOX_SIZE, _BOX_SIZE)
    return MaskRCNN(
        SimpleFeaturePyramid(backbone, size.channels),
        make_rpn(size.channels, anchors, size, detections_per_image, convolutions=2),
        make_heads(
            box_pool=RoIPool(_BOX_SIZE, _PYRAMID_STAGES, strides[0]),
            box_head=FastRCNNConvFCHead(inside, widths, [size.hidden], norm_layer=LayerNorm2d),
            box_width=size.hidden,
            mask_pool=RoIPool(_MASK_SIZE, _PYRAMID_STAGES, strides[0]),
            mask_head=MaskRCNNHeads(size.channels, widths, 1, norm_layer=LayerNorm2d),
            mask_width=size.channels,
            classes=classes,
            size=size,
            detections=detections_per_image,
        ),
    )


def _with_own_heads(
    features: nn.Module,
    channels: int,
    levels: Sequence[int],
    anchors: Anchors,
    classes: int,
    *,
    size: HeadSize,
    detections: int,
) -> MaskRCNN:
    """A Mask R-CNN with separate heads: two fully connected layers for boxes, convolutions for masks."""
    return MaskRCNN(
        features,
        make_rpn(channels, anchors, size, detections),
        make_heads(
            box_pool=RoIPool(_BOX_SIZE, levels),
            box_head=TwoMLPHead(channels * _BOX_SIZE**2, size.hidden),
            box_width=size.hidden,
            mask_pool=RoIPool(_MASK_SIZE, levels),
            mask_head=MaskRCNNHeads(channels, (size.channels,) * size.mask_layers, 1),
            mask_width=size.channels,
            classes=classes,
            size=size,
            detections=detections,
        ),
    )


def check_backbone(detector: str, backbone: Backbone) -> None:
    """Check that a backbone has the features that a detector needs.

    Raises:
        UserError: it lacks stages, as vision transformers do; or it is a ConvNet, and the detector needs a transformer.
    """
    if detector in TRANSFORMER_DETECTORS:
        check_transformer(backbone)
    elif not set(_PYRAMID_STAGES) <= set(backbone.stages):
        have = ", ".join(f"f{stage}" for stage in backbone.stages)
        raise UserError(
            f"{detector} needs the stages f2 to f5, but {backbone.name} has only {have}; use the detector vitdet for "
            "a vision transformer with patches of 14 or 16 px, or another backbone, e.g. resnet18"
        )


DETECTORS: dict[str, Builder] = {
    "mask_rcnn_fpn": mask_rcnn_fpn,
    "mask_rcnn_fpn_small": partial(mask_rcnn_fpn, size=_NARROW),
    "mask_rcnn_c4": mask_rcnn_c4,
    "mask_rcnn_c4_small": partial(mask_rcnn_c4, size=_NARROW_STAGE),
    "mask_rcnn_dc5": mask_rcnn_dc5,
    "mask_rcnn_dc5_small": partial(mask_rcnn_dc5, size=_NARROW_SINGLE),
    "retinanet": RetinaNet,
    "retinanet_small": partial(RetinaNet, channels=64),
    "vitdet": vitdet,
    "vitdet_small": partial(vitdet, size=_NARROW),
}
BOXES_ONLY = tuple(name for name in DETECTORS if name.startswith("retinanet"))
TRANSFORMER_DETECTORS = ("vitdet", "vitdet_small")
# For 16 images; as released, except ViTDet, whose 1e-4 was for 64.
BASE_LR = dict.fromkeys(DETECTORS, 0.02) | dict.fromkeys(("retinanet", "retinanet_small"), 0.01)
BASE_LR |= dict.fromkeys(TRANSFORMER_DETECTORS, 1e-4)
