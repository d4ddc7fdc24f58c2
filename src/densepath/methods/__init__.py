"""Pre-training methods, one file each."""

from densepath.methods.base import Losses, Method, Reconstruction
from densepath.methods.beit_v2 import BEiTv2
from densepath.methods.byol import BYOL
from densepath.methods.concl import ConCL
from densepath.methods.conv_mim import ConvMIM
from densepath.methods.densecl import DenseCL
from densepath.methods.eva import EVA
from densepath.methods.mae import MAE
from densepath.methods.moco_v1 import MoCoV1
from densepath.methods.moco_v2 import MoCoV2
from densepath.methods.pcl_v2 import PCLV2
from densepath.methods.simclr import SimCLR
from densepath.methods.spark import SparK
from densepath.methods.supervised import Supervised
from densepath.methods.vq_kd import VQKD

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "byol": BYOL,
    "moco_v1": MoCoV1,
    "moco_v2": MoCoV2,
    "pcl_v2": PCLV2,
    "densecl": DenseCL,
    "concl": ConCL,
    "supervised": Supervised,
    "spark": SparK,
    "mae": MAE,
    "conv_mim": ConvMIM,
    "eva": EVA,
    "vq_kd": VQKD,
    "beit_v2": BEiTv2,
}

__all__ = [
    "BYOL",
    "EVA",
    "MAE",
    "METHODS",
    "PCLV2",
    "VQKD",
    "BEiTv2",
    "ConCL",
    "ConvMIM",
    "DenseCL",
    "Losses",
    "Method",
    "MoCoV1",
    "MoCoV2",
    "Reconstruction",
    "SimCLR",
    "SparK",
    "Supervised",
]
