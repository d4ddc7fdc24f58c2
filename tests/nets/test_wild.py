"""Checkpoints as other projects write them give the features of the network that they were written from."""

from __future__ import annotations

import copy
import pickle
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from lightly.models.modules import MoCoProjectionHead
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights, read_weights
from densepath.nets.weights.layouts import to_detectron2

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def source() -> nn.Module:
    """torchvision's ResNet-18 whose every tensor, batch statistics included, has moved from its start."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1)
                module.bias.normal_(0, 0.1)
    return network.eval()


@torch.no_grad()
def maps(network: Any) -> list[Tensor]:
    """What a ResNet of torchvision or timm gives after its stem and after each of its layers."""
    found = [network.bn1(network.conv1(IMAGES)).relu()]
    x = network.maxpool(found[0])
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        found.append(x := layer(x))
    return found


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    """A network of the same shape with other numbers."""
    return {key: torch.full_like(value, 3) for key, value in state.items()}


def without_classifier(network: nn.Module) -> State:
    return {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}


def openselfsup(network: nn.Module) -> dict[str, Any]:
    state = without_classifier(network)
    slow = under("encoder_k.0.", other(state)) | {"queue": torch.zeros(128, 16), "neck.mlp.0.weight": torch.zeros(2, 2)}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.03}]}
    return {"meta": {"epoch": 200}, "state_dict": slow | under("backbone.", state), "optimizer": optimizer}


def moco(network: nn.Module) -> dict[str, Any]:
    state = without_classifier(network)
    head = {"fc.0.weight": torch.zeros(4, 4), "fc.0.bias": torch.zeros(4)}
    both = under("module.encoder_q.", state | head) | under("module.encoder_k.", other(state | head))
    return {"epoch": 200, "arch": "resnet18", "state_dict": both | {"module.queue": torch.zeros(128, 16)}}


def pcl(network: nn.Module) -> dict[str, Any]:
    state = network.state_dict()  # its head is the classifier
    return {
        "epoch": 200,
        "state_dict": OrderedDict(under("module.encoder_k.", other(state))) | under("module.encoder_q.", state),
    }


class Lightly(nn.Module):
    """MoCo as the examples of lightly build it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone_momentum = nn.Sequential(*list(copy.deepcopy(network).children())[:-1])
        self.backbone_momentum.load_state_dict(other(self.backbone_momentum.state_dict()))
        self.backbone = nn.Sequential(*list(network.children())[:-1])
        self.projection_head = MoCoProjectionHead(512, 32, 16)


def lightly(network: nn.Module) -> dict[str, Any]:
    settings = Namespace(lr=0.1, folder=Path("data"), weight=np.float32(3))
    return {"epoch": 1, "state_dict": Lightly(network).state_dict(), "hyper_parameters": {"args": settings}}


def sololearn(network: nn.Module) -> dict[str, Any]:
    state = without_classifier(network)
    head = {"projector.0.weight": torch.zeros(4, 4), "classifier.weight": torch.zeros(9, 4)}
    both = under("momentum_backbone.", other(state)) | under("backbone.", state)
    return {"state_dict": both | head, "hyper_parameters": configuration()}


def configuration() -> Any:
    """What omegaconf would leave in a file."""
    config = sys.modules["omegaconf.dictconfig"].DictConfig()
    config.__dict__.update(content={"lr": 0.1}, object_type=dict, element_type=Any)
    return config


@pytest.fixture(autouse=True)
def omegaconf(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("omegaconf.dictconfig")
    module.DictConfig = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    return module


def mmselfsup(network: nn.Module) -> dict[str, Any]:
    state = without_classifier(network)
    slow = under("encoder_k.module.0.", other(state)) | {"encoder_k.steps": torch.tensor(3)}
    return {"meta": {"mmselfsup_version": "0.11"}, "state_dict": slow | under("backbone.", state)}


def dino(network: nn.Module) -> dict[str, Any]:
    state = without_classifier(network)
    teacher = under("backbone.", other(state)) | {"head.mlp.0.weight": torch.zeros(2, 2)}
    return {
        "teacher": teacher,
        "student": under("module.backbone.", state),
        "args": Namespace(arch="resnet18"),
        "epoch": 1,
    }


def bare(network: nn.Module) -> dict[str, Any]:
    return network.state_dict()


KINDS: dict[str, tuple[Callable[[nn.Module], dict[str, Any]], str, str]] = {
    "OpenSelfSup, ConCL": (openselfsup, "backbone.", "encoder_k.0.conv1.weight"),
    "MoCo": (
        moco,
        "module.encoder_q.",
        "module.encoder_q.fc.0.weight, module.encoder_q.fc.0.bias, module.encoder_k.conv1",
    ),
    "PCL": (pcl, "module.encoder_q.", "module.encoder_q.fc.weight, module.encoder_q.fc.bias, module.encoder_k.conv1"),
    "lightly": (lightly, "backbone.", "backbone_momentum.0.weight"),
    "solo-learn": (sololearn, "backbone.", "momentum_backbone.conv1.weight"),
    "mmselfsup": (mmselfsup, "backbone.", "encoder_k.module.0.conv1.weight"),
    "DINO": (dino, "student.module.backbone.", "teacher.backbone.conv1.weight"),
    "torchvision": (bare, "", "fc.weight, fc.bias"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_gives_the_features_of_its_network_bit_for_bit(
    kind: str, legacy: bool, source: nn.Module, tmp_path: Path
) -> None:
    write, prefix, unused = KINDS[kind]
    if legacy and kind in ("lightly", "solo-learn", "DINO"):
        pytest.skip("these came after the old format of torch")
    path = tmp_path / "checkpoint_0200.pth.tar"
    torch.save(write(source), path, _use_new_zipfile_serialization=not legacy)
    backbone = build_backbone("resnet18").eval()
    line = load_weights(backbone, path)
    said = f"resnet18 with 100 of 100 tensors from {path}{f' under {prefix}' if prefix else ''}; not used: {unused}"
    assert line.startswith(said)
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(backbone(IMAGES).values(), maps(source), strict=True))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_b0"])
@torch.no_grad()
def test_a_whole_network_of_timm_gives_its_features_bit_for_bit(name: str, tmp_path: Path) -> None:
    network = timm.create_model(name, num_classes=7).eval()
    torch.save({"epoch": 3, "state_dict": network.state_dict(prefix="module.")}, tmp_path / "model_best.pth.tar")
    backbone = build_backbone(name).eval()
    assert " under module.; not used: module." in load_weights(backbone, tmp_path / "model_best.pth.tar")
    wanted = network.forward_intermediates(IMAGES, intermediates_only=True, norm=False)
    found = backbone(IMAGES).values()
    assert all(torch.equal(*pair) for pair in zip(found, wanted[-len(found) :], strict=True))


def numbers(state: State) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in state.items()}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up."])
def test_a_pickle_of_detectron2_gives_the_features_bit_for_bit(
    prefix: str, protocol: int, source: nn.Module, tmp_path: Path
) -> None:
    state = under(prefix, to_detectron2(without_classifier(source)))
    head = {"roi_heads.box_head.fc1.weight": np.zeros((2, 2), np.float32)}
    content = {"model": numbers(state) | head, "__author__": "torchvision", "matching_heuristics": True}
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    backbone = build_backbone("resnet18").eval()
    line = load_weights(backbone, path)
    said = f" under {prefix}" if prefix else ""
    assert line == f"resnet18 with 100 of 100 tensors from {path}{said}; not used: roi_heads.box_head.fc1.weight"
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(backbone(IMAGES).values(), maps(source), strict=True))


def test_a_pickle_of_old_frozen_norms_gives_the_features(source: nn.Module, tmp_path: Path) -> None:
    """Only scale and bias, the statistics folded into them."""
    state = to_detectron2(without_classifier(source))
    for norm in [key.removesuffix("running_var") for key in state if key.endswith("running_var")]:
        mean, variance = state.pop(f"{norm}running_mean"), state.pop(f"{norm}running_var")
        state[f"{norm}weight"] = state[f"{norm}weight"] / (variance + 1e-5).sqrt()
        state[f"{norm}bias"] = state[f"{norm}bias"] - mean * state[f"{norm}weight"]
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps({"model": numbers({key: value.detach() for key, value in state.items()})}))
    backbone = build_backbone("resnet18").eval()
    load_weights(backbone, path)
    with torch.no_grad():
        for found, wanted in zip(backbone(IMAGES).values(), maps(source), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_too_little_that_fits_names_what_lacks_and_what_is_there_instead(source: nn.Module, tmp_path: Path) -> None:
    content = moco(source)
    content["state_dict"] = {key: value for key, value in content["state_dict"].items() if ".layer3." not in key}
    torch.save(content, tmp_path / "moco.pth.tar")
    message = (
        r"moco.pth.tar does not fit resnet18: it has 75 of the 100 tensors \(not layer3.0.conv1.weight, .* more; "
        r"instead module.encoder_q.fc.0.weight, module.encoder_q.fc.0.bias, .* more\); name the backbone"
    )
    with pytest.raises(UserError, match=message):
        load_weights(build_backbone("resnet18"), tmp_path / "moco.pth.tar")


def test_settings_beside_the_tensors_are_never_made(source: nn.Module, tmp_path: Path, omegaconf: Any) -> None:
    path = tmp_path / "solo.ckpt"
    torch.save(sololearn(source), path)

    class Loud:
        def __init__(self) -> None:
            raise AssertionError("made")

        __setstate__ = __new__ = __init__  # type: ignore[assignment]

    omegaconf.DictConfig = Loud
    trusted = set(torch.serialization.get_safe_globals())
    assert "backbone.conv1.weight" in read_weights(path).state_dict
    assert set(torch.serialization.get_safe_globals()) == trusted
