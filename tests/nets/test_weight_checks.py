"""Weights that no network can compute with are refused by name, wherever they come from."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.decoders.build import build_decoder, load_decoder
from densepath.nets.teachers import build_teacher
from densepath.nets.weights import load_weights
from densepath.training.saver import load_task

NAME = "test_resnet"
CONV, NORM = "conv1.0.weight", "layer1.0.bn1.running_var"


def state(change):
    tensors = timm.create_model(NAME, num_classes=0).state_dict()
    change(tensors)
    return tensors


def nan(tensors):
    tensors[CONV][0, 0, 0, 0] = torch.nan


def infinite(tensors):
    tensors[NORM][0] = torch.inf


def negative(tensors):
    tensors[NORM][0] = -1e-6


def half_nan(tensors):
    tensors[CONV] = tensors[CONV].half()
    nan(tensors)


def meta(tensors):
    tensors[CONV] = tensors[CONV].to("meta")


def sparse(tensors):
    tensors[CONV] = tensors[CONV].to_sparse()


def complex_numbers(tensors):
    tensors[CONV] = tensors[CONV] + 1j


def whole(tensors):
    tensors[CONV] = tensors[CONV].mul(99).to(torch.int8)


CASES = [
    (nan, r"conv1\.0\.weight holds NaN or infinite numbers"),
    (half_nan, r"conv1\.0\.weight holds NaN or infinite numbers"),
    (infinite, r"layer1\.0\.bn1\.running_var holds NaN or infinite numbers"),
    (negative, r"layer1\.0\.bn1\.running_var holds negative variances"),
    (meta, r"conv1\.0\.weight does not hold plain numbers"),
    (sparse, r"conv1\.0\.weight does not hold plain numbers"),
    (complex_numbers, r"conv1\.0\.weight holds complex numbers"),
    (whole, r"conv1\.0\.weight holds whole numbers: quantized weights"),
]


@pytest.mark.parametrize(("change", "message"), CASES)
def test_of_a_backbone_and_of_a_teacher(tmp_path, change, message):
    path = tmp_path / "weights.pth"
    torch.save(state(change), path)
    backbone = build_backbone(NAME)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    for load in (lambda: load_weights(backbone, path), lambda: build_teacher(NAME, str(path))):
        with pytest.raises(UserError, match=message) as refused:
            load()
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_whole_numbers_of_a_decoder_and_of_a_checkpoint(tmp_path):
    decoder, _ = build_decoder(build_backbone("unet_3d_w2", 1))
    name = next(iter(decoder.state_dict()))
    torch.save(decoder.state_dict() | {name: decoder.state_dict()[name].bool()}, tmp_path / "w.pth")
    task = torch.nn.Linear(2, 1)
    state = {"state_dict": {"weight": torch.ones(1, 2, dtype=torch.int8), "bias": torch.zeros(1)}}
    for load in (lambda: load_decoder(decoder, tmp_path / "w.pth"), lambda: load_task(task, state, tmp_path)):
        with pytest.raises(UserError, match="holds whole numbers"):
            load()


def test_tensors_that_are_not_used_may_hold_anything(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(state(lambda tensors: None) | {"head.mask": torch.tensor([-torch.inf])}, path)
    load_weights(build_backbone(NAME), path)


def test_of_a_teacher_in_a_folder(tmp_path):
    save_file(state(nan), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": NAME}))
    with pytest.raises(UserError, match=r"conv1\.0\.weight holds NaN"):
        build_teacher(str(tmp_path))
