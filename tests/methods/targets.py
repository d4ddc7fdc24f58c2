"""Small frozen networks that methods learn from."""

import torch
import torch.nn.functional as F

from densepath.methods import VQKD
from densepath.nets.backbones import build_backbone
from densepath.training.export import export_parts

# Codes restart often.
TEACHER = {"teacher": "test_resnet", "teacher_weights": "random", "num_codes": 12, "code_dim": 4, "restart_below": 0.9}


def write_tokenizer(folder, backbone="test_vit", seed=1, **options):
    """The file of a tokenizer with random weights."""
    torch.manual_seed(seed)
    method = VQKD(build_backbone(backbone), **{**TEACHER, **options})
    codebook = method.tokenizer.codebook
    codebook.codes.copy_(F.normalize(torch.randn_like(codebook.codes), dim=1))
    export_parts(folder, method.exported_parts(), {"method": "vq_kd", "backbone": backbone}, 0)
    return folder / "tokenizer.safetensors"
