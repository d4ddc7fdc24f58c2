"""Backbones: encoders whose stages can be read one by one."""

from densepath.nets.backbones.backbone import Backbone
from densepath.nets.backbones.timm_backbone import TRIAL_SIZE, TimmBackbone, build_backbone, is_named, make_network

__all__ = ["TRIAL_SIZE", "Backbone", "TimmBackbone", "build_backbone", "is_named", "make_network"]
