"""A small labelled set with tiles, and a small table."""

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
