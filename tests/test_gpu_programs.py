"""What is run on a GPU needs one only for its figures: the host's work and the programs are tested here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_evidence, loading, measure, operators, step
from benchmarks.pretended_gpu import pretended_gpu
from benchmarks.step import Step
from benchmarks.tiles import packed_store
from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone
from densepath.sources.packing import open_store
from densepath.synthetic.tissue import write_tiles, write_tissue
from densepath.training.hardware import choose_hardware

# Operators of a step, with two batch-norm groups where the recipe has groups. Lower a number when fewer are launched.
# And values that the host reads, of tensors on the CPU too: views are drawn there.
COUNTS = {
    "moco_v2": (2334, 29),
    "concl": (3401, 46),
    "densecl": (2430, 29),
    "conv_mim": (2380, 50),
    "pcrl": (4518, 203),
    "dino_small": (3065, 48),
    "dirl_small": (5648, 48),
}
HIDE = """
import sys

class Hidden:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {"docstring_parser", "faster_coco_eval", "jsonargparse", "lightly", "pycocotools",
                                  "typeshed_client"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""
VIT = "vit_tiny_patch16_224(class_token=False, global_pool='avg', fc_norm=False, depth=2, embed_dim=24, num_heads=3)"


@pytest.fixture(scope="module")
def images():
    with packed_store(None, 64, 64) as store:
        yield open_store(store).to("cpu")


@pytest.mark.parametrize("recipe", COUNTS)
def test_the_operators_of_a_step_and_what_the_host_reads_have_not_doubled(recipe, images):
    backbone = VIT if recipe.startswith("di") else "test_resnet"
    found = operators.count(Step(recipe, images, 64, 64, backbone, choose_hardware("cpu", "32"))).row()
    launched, read = COUNTS[recipe]
    assert launched / 2 < found["operators"] < 2 * launched, found
    assert found["values read by the host"] < 2 * read, found


def test_the_evidence_runs_from_its_folder(tmp_path, capfd, monkeypatch):
    write_tissue(tmp_path / "d", train=2, test=1, size=96, seed=0)
    write_tiles(tmp_path / "t", 8, 64, seed=0)
    packed = tmp_path / "packed"
    words = ["--pack", str(packed), "--data", str(tmp_path / "d"), "--tiles", str(tmp_path / "t"), "--wheels"]
    monkeypatch.setattr(sys, "argv", ["gpu_evidence", *words])
    gpu_evidence.main()
    words = ["--devices", "cpu", "--backbone", "test_resnet", "--sizes", "64", "--seeds", "0", "--steps", "4"]
    command = [sys.executable, "-m", "benchmarks.gpu_evidence", *words, "--batch_size", "8", "--json", "out.json"]
    environment = {"OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path)}  # the folder comes first on the path
    subprocess.run(command, cwd=packed, env=environment, check=True)
    assert (packed / "COMMANDS.txt").read_text().startswith("python -m benchmarks.gpu ")
    (rows,) = json.loads((packed / "out.json").read_text())["tables"].values()
    assert [row["case"] for row in rows] == ["64 px, K=8, seed 0", "64 px, K=1, seed 0"]
    assert all(0 < row["mean IoU %"] < 100 and row["concept loss / chance"] > 0 for row in rows)
    monkeypatch.setattr(gpu_evidence, "_MOST_MIB", 0.1)
    with pytest.raises(SystemExit, match="more than"):
        gpu_evidence.write_folder(tmp_path / "again", Path(tmp_path / "d"), Path(tmp_path / "t"), wheels=())
    assert not (tmp_path / "again").exists()  # the same command with --count works
    with pytest.raises(UserError, match="not a data set"):
        gpu_evidence.write_folder(tmp_path / "again", Path(tmp_path / "t"), Path(tmp_path / "t"), wheels=())


def test_wheels_are_for_the_python_of_the_image_and_in_the_tested_versions(tmp_path, monkeypatch):
    asked = []

    def run(command):
        asked.extend(command)
        return subprocess.CompletedProcess(command, "nowhere" in command)

    monkeypatch.setattr(subprocess, "run", run)
    gpu_evidence.download(tmp_path / "wheels", ["jsonargparse"])
    assert asked[-1] == f"jsonargparse=={version('jsonargparse')}"
    assert {"--no-deps", "3.12", "manylinux_2_28_x86_64"} <= set(asked)
    with pytest.raises(SystemExit, match="--wheels"):
        gpu_evidence.download(tmp_path / "wheels", ["nowhere"])


def test_rows_that_need_no_missing_package_are_measured_without_it(tmp_path):
    """As on a machine that has torch, timm and Lightning, before the wheels are installed."""
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    options = "--device cpu --precision 32 --size 64 --image_size 64 --batch_size 4 --workers 0 --steps 1 --repeats 1"
    options += " --method moco_v2 --peer moco_v2 --more --volumes --more_backbones --json g.json"
    sections = ["--sections", "peers", "steps, resnet18", "detection", "loading"]
    command = [sys.executable, "-m", "benchmarks.gpu", *options.split(), *sections]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    found = json.loads((tmp_path / "g.json").read_text())["tables"]
    assert found["detection"] == "FAILED: No module named 'faster_coco_eval'"
    assert found["peers"] == "FAILED: No module named 'lightly'"
    assert len(found["loading"]) == 4


def test_the_next_run_is_expected_to_take_as_long_as_those_of_its_size():
    spent = {224: [(50.0, 60.0), (40.0, 45.0)], 96: [(8.0, 20.0)]}
    assert gpu_evidence.expected_seconds(224, spent) == 60 and gpu_evidence.expected_seconds(96, spent) == 20
    assert gpu_evidence.expected_seconds(112, {224: spent[224]}) == 50 / 4 + 10
    assert gpu_evidence.expected_seconds(224, {}) == 0


def test_results_survive_a_kill_and_cases_that_take_too_long_end(tmp_path, monkeypatch):
    measure.write_json(tmp_path / "a.json", {"first": []})
    before = (tmp_path / "a.json").read_text()
    monkeypatch.setattr(os, "replace", lambda *_: sys.exit("killed"))
    with pytest.raises(SystemExit, match="killed"):
        measure.write_json(tmp_path / "a.json", {"second": []})
    assert (tmp_path / "a.json").read_text() == before
    with pytest.raises(TimeoutError, match="ended after 0 s"):
        measure.isolated(time.sleep, 60, seconds=0.1)


def test_places_of_synchronizations_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    with measure.synchronizations(torch.device("cuda")) as places:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert measure.listed([*places, "a"]) == "2 at elsewhere; 1 at a"


def test_compiled_steps_have_compiled_bare_passes_and_gpus_choose_algorithms_as_in_runs(images, monkeypatch):
    compiled = []
    monkeypatch.setattr(Backbone, "compile", lambda module, **_: compiled.append(module))
    for batch in (64, 48):  # with groups of 32 the bare passes have a copy with plain batch norms
        made = Step("moco_v2", images, 64, batch, "test_resnet", choose_hardware("cpu", "32"), compiled=True)
        assert len(compiled) == 2
        made._bare()
        assert len(compiled) == (4 if batch == 64 else 2)
        compiled.clear()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    with pretended_gpu():
        step._hardware(Namespace(cpu_time=False, device="1", precision="32"))
    assert torch.backends.cudnn.benchmark


def test_sections_are_chosen_by_the_beginnings_of_their_titles():
    made = dict.fromkeys(("steps, resnet18", "whole runs", "steps, volumes", "loading"))
    assert list(gpu.chosen(made, None)) == list(made)
    assert list(gpu.chosen(made, ["loading", "steps, v", "steps"])) == ["loading", "steps, volumes", "steps, resnet18"]
    with pytest.raises(SystemExit, match="there are: steps, resnet18; whole runs"):
        gpu.chosen(made, ["runs"])


def test_the_speed_of_each_source_is_known_as_soon_as_it_is_measured(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(loading, "images_per_second", lambda *arguments: calls.append(arguments[2:]) or 1.0)
    write_tiles(tmp_path / "t", 4, 32, seed=0)
    rows = loading.speed(tmp_path / "t", 2, 3, 0, 1, seconds=5.0)
    assert next(rows)["case"] == "packed store" and calls == [(3, 5.0)]
    assert len(list(rows)) == 3
