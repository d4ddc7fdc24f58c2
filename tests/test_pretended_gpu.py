"""Each kind of work gives on a GPU what it gives on a CPU, as far as this can be told without one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.pretended_gpu import GPU, main, pretended_gpu
from densepath.cli import main as command_line
from densepath.synthetic.tissue import write_tiles, write_tissue
from tests.transfer.mil.conftest import write_study
from tests.transfer.segment.conftest import write_store

VIT = "vit_tiny_patch16_224(class_token=False,global_pool='avg',fc_norm=False,depth=2,embed_dim=24,num_heads=3)"
EXACT = "--precision 32 --seed 0"
PRETRAIN = f"{EXACT} --max_steps 2 --batch_size 6"
ONCE = f"{EXACT} --epochs 1 --batch_size 2"
SEGMENT = f"{ONCE} --validate_every 1"
DETECT = "--detector mask_rcnn_fpn_small --max_steps 1 --train_size 96 96 --test_size 96 --precise_bn_batches 1"
# Commands, each with the files of it that must be the same.
WORK = {
    "concepts": [
        (f"pretrain --config concl_small --data {{}}/tiles --out r --view_size 64 --backbone test_resnet {PRETRAIN}",
         ["r/metrics.csv", "r/exported/backbone.safetensors"]),
        ("show concepts --data {}/tiles --weights r --count 2 --out c.png", []),
        ("embed --data {}/tiles --weights r --precision 32 --out e.safetensors", ["e.safetensors"]),
        ("probe --data {}/tissue --weights r --out p.json", ["p.json"]),
        ("probe --data {}/tiles --labels folders --weights r --folds 2 --out l.json", ["l.json"]),
    ],
    "tokens": [
        (f"pretrain --config dino_small --data {{}}/tiles --out r --view_size 64 --backbone {VIT} {PRETRAIN}",
         ["r/metrics.csv", "r/exported/backbone.safetensors"]),
        ("show attention --data {}/tiles --weights r --count 2 --out a", ["a/attention.csv"]),
    ],
    "patches": [
        (f"pretrain --config mae_small --data {{}}/tiles --out r --view_size 64 --backbone {VIT} {PRETRAIN}",
         ["r/metrics.csv", "r/exported/backbone.safetensors"]),
    ],
    "detector": [
        (f"detect --data {{}}/tissue --weights random --backbone test_resnet --batch_size 2 --out d {DETECT} {EXACT}",
         ["d/metrics.json", "d/exported/detector.safetensors"]),
        ("predict d --data {}/tissue/test --precision 32 --out p", ["p/predictions.json"]),
    ],
    "classifier": [
        (f"classify --data {{}}/tiles --backbone test_resnet --folds 2 --out c {ONCE}",
         ["c/scores.csv", "c/predictions.csv"]),
        ("predict c --data {}/tiles --precision 32 --out p", ["p/predictions.csv"]),
    ],
    "segmenter": [
        (f"segment --data {{}}/tissue --backbone test_resnet --view_size 64 --out s {SEGMENT}",
         ["s/scores.csv", "s/cases.csv"]),
        ("predict s --data {}/tissue/test --precision 32 --out p", ["p/sizes.csv"]),
    ],
    "volumes": [
        (f"pretrain --config pcrl_3d_small --data {{}}/S --out r --view_size 16 16 16 --backbone unet_3d_w4 {PRETRAIN}",
         ["r/metrics.csv", "r/exported/backbone.safetensors"]),
        (f"segment --data {{}}/S --weights r --view_size 16 16 16 --out s {SEGMENT}",
         ["s/scores.csv", "s/cases.csv"]),
    ],
    "slides": [
        ("mil --data {0}/study/features --table {0}/study/table.csv --epochs 2 --folds 2 --out m"
         " --precision 32", ["m/patient-preds.csv", "m/scores.json"]),
    ],
}  # fmt: skip
# What differs between two runs of the same command.
_TIMES = {"images_per_second", "waiting", "seconds", "date", "created"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with tiles of two classes, tissue with outlined glands, volumes, and features of slides."""
    folder = tmp_path_factory.mktemp("data")
    for seed in range(2):
        write_tiles(folder / "tiles" / "ab"[seed], 8, 128, seed=seed)
    write_tissue(folder / "tissue", train=3, test=2, size=96, seed=0)
    write_store(folder)
    write_study(folder / "study", patients=12)
    return folder


def read(path: Path):
    """What a result holds: numbers and texts, or tensors."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    return json.loads(path.read_text())


def assert_near(one, other, where):
    """Numbers to three digits: the order of sums differs between devices."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - _TIMES:
            assert_near(one[key], other[key], f"{where}: {key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_near(*pair, f"{where}: {number}")
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=lambda text: f"{where}: {text}")
    else:
        try:
            numbers = float(one), float(other)
        except (TypeError, ValueError):
            assert one == other, where
        else:
            assert numbers == pytest.approx(numbers[::-1], rel=1e-3, abs=1e-4, nan_ok=True), where


@pytest.mark.parametrize("work", WORK)
def test_a_gpu_gives_what_a_cpu_gives(work, data, tmp_path, monkeypatch):
    for device, run in (("gpu", main), ("cpu", command_line)):
        (tmp_path / device).mkdir()
        monkeypatch.chdir(tmp_path / device)
        for command, _ in WORK[work]:
            words = command.format(data).split()
            words += [] if words[0] == "show" else ["--devices", "1" if device == "gpu" else "cpu"]
            assert run(words) == 0, words
    for path in (name for _, files in WORK[work] for name in files):
        found = [read(tmp_path / device / path) for device in ("gpu", "cpu")]
        assert found[0]
        assert_near(*found, path)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat((x, torch.ones(1, 3))),
        lambda x: torch.ones(4)[x[:, 0] > 0],
        lambda x: x.index_select(0, torch.tensor([1])),
        lambda x: x.__setitem__(slice(2), torch.ones(2, 3)[torch.ones(2, device=GPU) > 0]),
        lambda x: x.numpy(),
    ],
)
def test_devices_must_not_be_mixed(mix):
    with pretended_gpu():
        x = torch.zeros(4, 3, device="cuda")
        with pytest.raises((RuntimeError, TypeError)):
            mix(x)


def test_indices_and_scalars_of_the_host_may_be_used_and_waits_are_counted():
    with pretended_gpu() as waits:
        x = torch.zeros(4, 3).to("cuda", non_blocking=True)
        x *= torch.tensor(3.0)
        x.copy_(torch.zeros(4, 3), non_blocking=True)
        x[torch.tensor([3]).to("cuda", non_blocking=True)] = x.new_full((), 0.0)
        assert not waits and x.device == GPU and x.is_cuda
        x[[0, 2], 0] = 3
        x[torch.tensor([1])] = torch.full((1, 3), 6.0, device="cuda")
        x.copy_(x.to(torch.float64) + x.new_tensor(0.0) + torch.zeros(4, 3).cuda())
        assert sum(waits.values()) == 4
        waits.clear()
        assert x.cpu().tolist() == [[3, 0, 0], [6, 6, 6], [3, 0, 0], [0, 0, 0]]
        assert float(x.sum()) == 24 and len(x[x[:, 0] > 3]) == 1
    assert sum(waits.values()) == 3
    assert not isinstance(torch.zeros(1), type(x))
