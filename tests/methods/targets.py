"""What methods are given besides images: small frozen networks, classes."""

import torch
import torch.nn.functional as F

from densepath.methods import VQKD
from densepath.nets.backbones import build_backbone
from densepath.training.config import PretrainConfig
from densepath.training.export import export_parts
from densepath.training.inputs import make_inputs

CODES = {"num_codes": 12, "code_dim": 4, "restart_below": 0.9}  # they restart often
TEACHER = {"teacher": "test_resnet", "teacher_weights": "random"}


def prepare(method, images, **options):
    """Prepare a method as a run with these options does."""
    config = PretrainConfig(data="", out="", **{**TEACHER, **options})
    return method.prepare(images, make_inputs(method, config, images))


def write_tokenizer(folder, backbone="test_vit", seed=1, **options):
    """The file of a tokenizer with random weights."""
    torch.manual_seed(seed)
    method = VQKD(build_backbone(backbone), **{**CODES, **options})
    codebook = method.tokenizer.codebook
    codebook.codes.copy_(F.normalize(torch.randn_like(codebook.codes), dim=1))
    export_parts(folder, method.exported_parts(), {"method": "vq_kd", "backbone": backbone}, 0)
    return folder / "tokenizer.safetensors"
