"""A small labelled set with tiles, a small table, and a command line that starts without the time of imports."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from densepath.synthetic.tissue import write_tissue

TABLE = """
title: A table
source: an invented study
seeds: [0, 1]
pretrain_seed: 0
baseline: random
backbone: test_resnet
pretrain: {max_steps: 80, batch_size: 4, view_size: 64, log_every: 1, method_options: {queue_size: 16}}
rates: {of: one core, pretrain: 100}
tasks:
  - {name: probe, verb: probe, data: tissue, table: Tissue, column: probe, metrics: [mean_iou, dice],
     options: {size: 64}}
  - name: detect
    verb: detect
    data: tissue
    table: Tissue
    metrics: [box_ap50]
    options: {detector: mask_rcnn_fpn_small, max_steps: 2, batch_size: 2, train_size: [64, 64], test_size: 64}
rows:
  - {name: random, weights: random, curve: random, paper: {probe: [50.0, null]}}
  - {name: MoCo, recipe: moco_v2_small, curve: MoCo, paper: {detect: [12.5]}}
"""


@pytest.fixture(scope="session")
def tissue(tmp_path_factory):
    """A data set with tiles/ in it; read-only."""
    return write_tissue(tmp_path_factory.mktemp("benchmark") / "tissue", train=3, test=2, tiles=8, size=64, seed=1)


@pytest.fixture
def table(tmp_path):
    """The path of a table with two rows, two tasks and two seeds: nine runs."""
    path = tmp_path / "small.yaml"
    path.write_text(TABLE)
    return path


@pytest.fixture(scope="module")
def densepath():
    """A function that starts a command in a folder and returns its process."""
    with tempfile.TemporaryDirectory() as folder:  # the path of pytest's own may be too long for a socket
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        server = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "cli_server.py", folder], stdout=subprocess.PIPE, env=environment
        )
        try:
            assert server.stdout.readline() == b"ready\n"

            def start(line, where):
                words = [f"{folder}/python", "-m", "densepath", *line.split()]
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
                return subprocess.Popen(words, cwd=where, env=environment, **pipes)

            yield start
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
