"""Pre-training methods, one file each."""

from densepath.methods.base import Losses, Method
from densepath.methods.concl import ConCL
from densepath.methods.moco_v2 import MoCoV2

METHODS: dict[str, type[Method]] = {"moco_v2": MoCoV2, "concl": ConCL}

__all__ = ["METHODS", "ConCL", "Losses", "Method", "MoCoV2"]
