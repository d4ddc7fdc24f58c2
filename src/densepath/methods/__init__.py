"""Pre-training methods, one file each; a method is imported when it is first used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densepath.methods.base import Losses as Losses
    from densepath.methods.base import Method as Method
    from densepath.methods.base import Reconstruction as Reconstruction
    from densepath.methods.beit_v2 import BEiTv2 as BEiTv2
    from densepath.methods.byol import BYOL as BYOL
    from densepath.methods.c2l import C2L as C2L
    from densepath.methods.cellback import Cellback as Cellback
    from densepath.methods.concl import ConCL as ConCL
    from densepath.methods.conv_mim import ConvMIM as ConvMIM
    from densepath.methods.cpc import CPC as CPC
    from densepath.methods.cube import Cube as Cube
    from densepath.methods.densecl import DenseCL as DenseCL
    from densepath.methods.dino import DINO as DINO
    from densepath.methods.dino_imix import DINOIMix as DINOIMix
    from densepath.methods.dino_sup import DINOSup as DINOSup
    from densepath.methods.dirl import DiRL as DiRL
    from densepath.methods.dirl_byol import DiRLBYOL as DiRLBYOL
    from densepath.methods.dirl_simclr import DiRLSimCLR as DiRLSimCLR
    from densepath.methods.esvit import EsViT as EsViT
    from densepath.methods.eva import EVA as EVA
    from densepath.methods.hipt_region import HIPTRegion as HIPTRegion
    from densepath.methods.ibot import IBOT as IBOT
    from densepath.methods.mae import MAE as MAE
    from densepath.methods.moco_v1 import MoCoV1 as MoCoV1
    from densepath.methods.moco_v2 import MoCoV2 as MoCoV2
    from densepath.methods.model_genesis import ModelGenesis as ModelGenesis
    from densepath.methods.pcl_v2 import PCLV2 as PCLV2
    from densepath.methods.pcrl import PCRL as PCRL
    from densepath.methods.pcrl_released import PCRLReleased as PCRLReleased
    from densepath.methods.selfpatch import SelfPatch as SelfPatch
    from densepath.methods.semantic_genesis import SemanticGenesis as SemanticGenesis
    from densepath.methods.simclr import SimCLR as SimCLR
    from densepath.methods.spark import SparK as SparK
    from densepath.methods.supervised import Supervised as Supervised
    from densepath.methods.swav import SwAV as SwAV
    from densepath.methods.vq_kd import VQKD as VQKD

_CLASSES = {
    "simclr": "SimCLR",
    "byol": "BYOL",
    "moco_v1": "MoCoV1",
    "moco_v2": "MoCoV2",
    "pcl_v2": "PCLV2",
    "densecl": "DenseCL",
    "concl": "ConCL",
    "supervised": "Supervised",
    "spark": "SparK",
    "mae": "MAE",
    "conv_mim": "ConvMIM",
    "eva": "EVA",
    "vq_kd": "VQKD",
    "beit_v2": "BEiTv2",
    "dino": "DINO",
    "dino_imix": "DINOIMix",
    "cellback": "Cellback",
    "dirl": "DiRL",
    "esvit": "EsViT",
    "selfpatch": "SelfPatch",
    "ibot": "IBOT",
    "hipt_region": "HIPTRegion",
    "dino_sup": "DINOSup",
    "dirl_simclr": "DiRLSimCLR",
    "dirl_byol": "DiRLBYOL",
    "pcrl": "PCRL",
    "pcrl_released": "PCRLReleased",
    "c2l": "C2L",
    "model_genesis": "ModelGenesis",
    "swav": "SwAV",
    "semantic_genesis": "SemanticGenesis",
    "cube": "Cube",
    "cpc": "CPC",
}
_HOME = {name: "base" for name in ("Losses", "Method", "Reconstruction")} | {c: m for m, c in _CLASSES.items()}


class _Methods(Mapping[str, "type[Method]"]):
    """The methods of the package by name; a class is imported when it is looked up."""

    def __getitem__(self, name: str) -> type[Method]:
        if name not in _CLASSES:
            raise KeyError(name)
        method: type[Method] = getattr(import_module(f"{__name__}.{name}"), _CLASSES[name])
        return method

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


METHODS: _Methods = _Methods()

__all__ = ["METHODS", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
