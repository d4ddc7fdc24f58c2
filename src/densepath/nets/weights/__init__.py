"""Weights of backbones: reading, writing, and the layouts of other libraries."""

from densepath.nets.weights.backbone_weights import Weights, load_weights, read_weights, weights_file
from densepath.nets.weights.saving import FORMAT_VERSION, pixel_notes, save_backbone, write_tensors

__all__ = [
    "FORMAT_VERSION",
    "Weights",
    "load_weights",
    "pixel_notes",
    "read_weights",
    "save_backbone",
    "weights_file",
    "write_tensors",
]
