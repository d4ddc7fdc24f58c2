"""RetinaNet: boxes directly from a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher, _topk_min
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from densepath.nets.backbones import Backbone
from densepath.transfer.detection.anchors import ASPECT_RATIOS, Anchors
from densepath.transfer.detection.config import ANCHOR_SIZES, DETECTIONS, check_anchor_sizes
from densepath.transfer.detection.detector import Detector, to_float32
from densepath.transfer.detection.feature_maps import FeaturePyramid

_STAGES = (3, 4, 5)
_STRIDES = (8, 16, 32, 64, 128)  # pixels, of P3-P7
_OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
_SCORE, _NMS = 0.05, 0.5
_CHANNELS = 256
_CANDIDATES = 1000  # of each level, before non-maximum suppression


class RetinaNet(Detector):
    """RetinaNet on P3-P7, with P6 and P7 from f5 as in Detectron2; it detects boxes only.

    Focal loss with gamma 2 and alpha 0.25, L1 loss for boxes; an anchor is positive from an IoU of 0.5, background
    below 0.4. An image's losses are divided by the number of its own positive anchors, as in the paper; Detectron2
    divides by a running mean over batches. There is one classifier per class; ConCL's released configuration keeps
    Detectron2's 80, of which only one is used.

    Args:
        backbone: any backbone with f3-f5.
        classes: number of classes without background.
        channels: channels of the levels and of the heads' four convolutions.
        anchor_sizes: in pixels, one for each level; two more sizes per octave are added.
        detections_per_image: maximum number of detections.

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017.
    """

    finds_masks = False

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        channels: int = _CHANNELS,
        anchor_sizes: Sequence[int] = ANCHOR_SIZES,
        detections_per_image: int = DETECTIONS,
    ) -> None:
        check_anchor_sizes(anchor_sizes, levels=len(_STRIDES))
        extra = LastLevelP6P7(backbone.channels[5], channels)
        extra.use_P5 = False  # torchvision uses P5 if it has as many channels as f5
        super().__init__(FeaturePyramid(backbone, channels, _STAGES, extra))
        self.head = RetinaNetHead(channels, len(_OCTAVE) * len(ASPECT_RATIOS), classes)
        self.anchors = Anchors([[size * step for step in _OCTAVE] for size in anchor_sizes], _STRIDES)
        self.detections_per_image = detections_per_image
        self._matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        self._coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        for part in (self.head.classification_head, self.head.regression_head):
            part.register_forward_hook(to_float32)
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    # The default initialization is for 256 channels; with fewer, activations would vanish.
                    layer.weight.data *= (_CHANNELS / channels) ** 0.5

    def forward(self, images: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses; see :meth:`Detector.forward`. Masks are not used."""
        levels = list(self.features(images.tensors).values())
        anchors = self.anchors(images, levels)
        matches = [self._match(target["boxes"], each) for target, each in zip(targets, anchors, strict=True)]
        wanted = [{"boxes": target["boxes"], "labels": target["labels"] - 1} for target in targets]
        losses = self.head.compute_loss(wanted, self.head(levels), anchors, matches)
        return {"loss_class": losses["classification"], "loss_box": losses["bbox_regression"]}

    def _match(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """For each anchor (N,) the index of its box, or a negative number."""
        if not len(boxes):
            return torch.full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
        matches: Tensor = self._matcher(box_iou(boxes, anchors))
        return matches

    @torch.no_grad()
    def detect(self, images: ImageList) -> list[dict[str, Tensor]]:
        """The objects, without masks; see :meth:`Detector.detect`."""
        levels = list(self.features(images.tensors).values())
        outputs = self.head(levels)
        per_position = len(_OCTAVE) * len(ASPECT_RATIOS)
        counts = [per_position * level.shape[-2] * level.shape[-1] for level in levels]
        rows = zip(
            outputs["cls_logits"].sigmoid(),
            outputs["bbox_regression"],
            self.anchors(images, levels),
            images.image_sizes,
            strict=True,
        )
        return [self._select(*row, counts) for row in rows]

    def _select(
        self, scores: Tensor, deltas: Tensor, anchors: Tensor, size: tuple[int, int], counts: list[int]
    ) -> dict[str, Tensor]:
        """The objects of one image.

        Args:
            scores: (N, classes) in 0-1.
            deltas: (N, 4) relative to the anchors.
            anchors: (N, 4)
            size: height, width of the image.
            counts: number of anchors per level.
        """
        classes = scores.shape[1]
        candidates, start = [], 0
        for level in scores.split(counts):
            level = level.flatten()
            best, place = level.topk(_topk_min(level, _CANDIDATES, 0))
            candidates.append(start + place[best > _SCORE])
            start += level.shape[0]
        chosen = torch.cat(candidates)
        anchor, label = chosen // classes, chosen % classes
        boxes = clip_boxes_to_image(self._coder.decode_single(deltas[anchor], anchors[anchor]), size)
        score = scores.flatten()[chosen]
        keep = batched_nms(boxes, score, label, _NMS)[: self.detections_per_image]
        return {"boxes": boxes[keep], "scores": score[keep], "labels": label[keep] + 1}
