"""Training with compiled networks. The compiler is torch's without its code generation, which takes minutes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partialmethod
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters

from densepath.core.errors import UserError
from densepath.methods import BYOL, MAE, MoCoV2
from densepath.nets.backbones import build_backbone
from densepath.synthetic.tissue import write_tiles
from densepath.training.batch_norm import share_statistics
from densepath.training.compiled import compile_networks, compiling, require_compilable, uncompiled
from densepath.training.config import PretrainConfig
from densepath.training.pretrain import pretrain

SMALL: dict[str, Any] = {"backbone": "test_resnet", "view_size": 64, "batch_size": 8, "batch_norm_group": 4}
SMALL |= {"devices": "cpu", "precision": "32", "workers": 0, "max_steps": 2, "log_every": 1}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("quick")
def test_a_compiled_run_is_the_same_up_to_rounding(tmp_path):
    write_tiles(tmp_path / "tiles", 8, 64, seed=0)
    made = {}
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        pretrain("moco_v2_small", data=tmp_path / "tiles", out=out, compile=compiled, **SMALL)
        assert (counters["stats"]["unique_graphs"] > 1) == compiled
        with (out / "metrics.csv").open() as file:
            losses = [float(row["loss"]) for row in csv.DictReader(file)]
        made[compiled] = losses, load_file(out / "exported" / "backbone.safetensors").keys()
    assert made[True] == (pytest.approx(made[False][0], rel=1e-3), made[False][1]) and len(made[True][0]) == 2


def test_backbones_with_their_stages_and_blocks_of_transformers_are_compiled():
    method = MoCoV2(build_backbone("test_resnet"), queue_size=8)
    compile_networks(method)
    compiled = {name for name, module in method.named_modules() if module._compiled_call_impl is not None}
    assert {"backbone", "backbone.net.layer2", "key_backbone.network", "key_backbone.network.net.conv1"} <= compiled
    assert not any(name.startswith("head") for name in compiled)
    method = MAE(build_backbone("test_vit"))
    compile_networks(method)
    compiled = {name for name, module in method.named_modules() if module._compiled_call_impl is not None}
    assert {"backbone.net.model.blocks.0", "decoder.blocks.0"} <= compiled
    assert all(name.rpartition(".")[0].endswith("blocks") for name in compiled)


@pytest.mark.usefixtures("quick")
def test_pictures_and_scores_compile_nothing():
    backbone = build_backbone("test_resnet")
    compile_networks(backbone)
    uncompiled(backbone)(torch.zeros(2, 3, 64, 64))
    assert not counters["stats"]["unique_graphs"]
    backbone(torch.zeros(2, 3, 64, 64))
    assert counters["stats"]["unique_graphs"]


def test_a_network_that_cannot_be_compiled_is_reported(monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=fail))
    backbone = build_backbone("test_resnet")
    compile_networks(backbone)
    with pytest.raises(UserError, match=r"failed: .*: no C\+\+ compiler; leave --compile out"), compiling():
        backbone(torch.zeros(2, 3, 64, 64))
    torch._dynamo.reset()


def test_layers_that_several_processes_share_are_not_compiled():
    shared, own = (BYOL(build_backbone("test_resnet")) for _ in range(2))
    share_statistics(shared, "auto", 0, 8, processes=2)
    require_compilable(shared, 1)
    with pytest.raises(UserError, match="give --batch_norm per_process, or leave --compile out"):
        require_compilable(shared, 2)
    share_statistics(own, "per_process", 0, 8, processes=2)
    require_compilable(own, 2)
    with pytest.raises(UserError, match="leave --compile out, or use ddp"):
        PretrainConfig(data=".", out=".", compile=True, strategy="fsdp")
