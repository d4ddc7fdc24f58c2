"""What is run on a GPU needs one only for its figures: the host's work and the programs are tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_evidence, operators
from benchmarks.step import Step
from benchmarks.tiles import packed_store
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
    assert found["values read by the host"] < 2 * read and found["copies between host and device"] <= 20, found


def test_the_evidence_runs_from_its_folder(tmp_path, capfd, monkeypatch):
    write_tissue(tmp_path / "d", train=2, test=1, size=96, seed=0)
    write_tiles(tmp_path / "t", 8, 64, seed=0)
    packed = tmp_path / "packed"
    words = ["--pack", str(packed), "--data", str(tmp_path / "d"), "--tiles", str(tmp_path / "t")]
    monkeypatch.setattr(sys, "argv", ["gpu_evidence", *words])
    gpu_evidence.main()
    words = ["--devices", "cpu", "--backbone", "test_resnet", "--sizes", "64", "--seeds", "0", "--steps", "4"]
    command = [sys.executable, "-m", "benchmarks.gpu_evidence", *words, "--batch_size", "8", "--json", "out.json"]
    environment = {"OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path)}  # the folder comes first on the path
    subprocess.run(command, cwd=packed, env=environment, check=True)
    (rows,) = json.loads((packed / "out.json").read_text())["tables"].values()
    assert [row["case"] for row in rows] == ["64 px, K=8, seed 0", "64 px, K=1, seed 0"]
    assert all(0 < row["mean IoU %"] < 100 and row["concept loss / chance"] > 0 for row in rows)
    monkeypatch.setattr(gpu_evidence, "_MOST_MIB", 0.1)
    with pytest.raises(SystemExit, match="more than"):
        gpu_evidence.write_folder(tmp_path / "again", Path(tmp_path / "d"), Path(tmp_path / "t"))
