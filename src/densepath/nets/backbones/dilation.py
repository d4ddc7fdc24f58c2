"""Dilation of a backbone's last stage: the same weights give a finer map."""

from __future__ import annotations

import torch

from densepath.core.errors import UserError
from densepath.nets.backbones.backbone import Backbone
from densepath.nets.backbones.names import create_network
from densepath.nets.backbones.timm_backbone import TRIAL_SIZE


@torch.no_grad()
def dilate_last_stage(backbone: Backbone) -> None:
    """Remove the stride of stage 5 and dilate its later convolutions instead: f5 gets the stride 16 of f4.

    Every second position of the new f5, along both axes, equals the old f5. Weights and their names do not change.
    Detectron2 also dilates the convolution that had the stride, so that pre-trained weights give other features, and
    supports only ResNet-50 and deeper.

    Args:
        backbone: modified in place.

    Raises:
        UserError: timm cannot dilate the network.
    """
    channels = backbone.in_channels
    try:
        dilated = create_network(backbone.name, features_only=True, output_stride=16, in_chans=channels)
        side = dilated.eval()(torch.zeros(1, channels, TRIAL_SIZE, TRIAL_SIZE))[-1].shape[-1]
        if side != TRIAL_SIZE // 16:
            raise ValueError(f"stride {TRIAL_SIZE // side}")
        dilated.to(next(backbone.parameters())).load_state_dict(backbone.net.state_dict())
    except Exception as error:  # each model family of timm raises its own errors
        raise UserError(f"the last stage of {backbone.name} cannot be dilated; use a ResNet or RegNet") from error
    backbone.net = dilated.train(backbone.training)
    backbone.strides[backbone.deepest] = (16, 16)
