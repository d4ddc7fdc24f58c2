"""The benchmarks run; what they measure is not looked at."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, loading, measure, peers, step
from densepath.training.hardware import choose_hardware

TINY = ["--backbone", "test_resnet", "--size", "64", "--image_size", "64", "--batch_size", "4", "--repeats", "1"]


def test_a_step_is_compared_with_its_bare_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "step.json"
    monkeypatch.setattr(sys, "argv", ["step", *TINY, "--device", "cpu", "--method", "concl", "--json", str(out)])
    step.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert row["case"] == "densepath concl"
    assert row["step/bare"] > 1 and 0 < row["views %"] < 100 and row["k-means %"] > 0 and row["queue %"] > 0
    assert row["bare_images_per_second"] > row["images_per_second"] > 0 and row["peak_mib"] > 100


def test_watched_functions_are_put_back() -> None:
    owner = torch.nn.Linear(2, 2)
    parts = measure.Parts(torch.device("cpu"))
    parts.watch(owner, "forward", "pass")
    owner(torch.ones(1, 2))
    assert parts.seconds()["pass"] > 0 and "forward" in vars(owner)
    parts.restore()
    assert "forward" not in vars(owner)


@pytest.mark.parametrize("name", sorted(peers.PEERS))
def test_peers_learn(name: str) -> None:
    torch.manual_seed(0)
    peer = peers.PEERS[name]("resnet18")
    peer(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)).backward()
    trained = [p for p in peer.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)


def test_memory_does_not_grow_with_the_number_of_tiles(tmp_path: Path) -> None:
    loading.memory(1000), loading.store_memory(1000, tmp_path)
    assert loading.memory(10**6)["order_mib"] < 16  # the names alone are 32 MiB, and lie in a file
    assert loading.store_memory(10**6, tmp_path)["mib"] < 32


def test_the_device_is_compared_with_the_cpu(tmp_path: Path) -> None:
    options = {"data": None, "batch_size": 4, "image_size": 64, "size": 64, "backbone": "test_resnet"}
    asked = Namespace(method=["concl"], more_backbones=[], **options)
    made = gpu.sections(asked, choose_hardware("cpu"), tmp_path)
    (row,) = made["correctness"]()
    assert row["views: largest difference"] == 0 and row["loss, float32"] == row["loss, float32 on the CPU"]
