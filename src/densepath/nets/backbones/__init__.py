"""Backbones: encoders whose stages can be read one by one."""

from densepath.nets.backbones.backbone import Backbone
from densepath.nets.backbones.timm_backbone import TimmBackbone, build_backbone, is_named, make_network
from densepath.nets.backbones.trial import TRIAL_SIZE

__all__ = ["TRIAL_SIZE", "Backbone", "TimmBackbone", "build_backbone", "is_named", "make_network"]
