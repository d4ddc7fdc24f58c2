"""What every method owes to a run, whatever it learns."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from targets import write_tokenizer

from densepath.annotations.cells.cell_files import Cells, cell_path, write_cell_rows, write_cells
from densepath.methods import METHODS
from densepath.runs.checkpoints import read_checkpoint
from densepath.training.pretrain import pretrain
from densepath.training.recipes import all_options

SMALL = {"queue_size": 40, "concept_queue_size": 64, "num_concepts": 3, "stage": 3, "warmup": 0.25, "match": "geometry"}
SMALL |= {"num_clusters": [9, 12], "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
SMALL |= {"side": 12, "num_classes": 6, "neighbors": 6, "discovery_epochs": 0, "classification_epochs": 0}
SMALL |= {"patch": 16, "head_batch_norm": True, "attention": "factored"}
SMALL |= {
    "num_codes": 12,
    "patch_prototypes": 24,
    "prototypes": 24,
    "interaction_prototypes": 12,
    "local_crops": 3,
    "local_size": 1 / 3,
}
TEACHER = {"teacher": "test_vit", "teacher_weights": "random"}
GIVEN = {"supervised": {"labels": "labels.csv"}, "eva": TEACHER, "vq_kd": TEACHER}
GIVEN["beit_v2"] = {"tokenizer": "tokenizer.safetensors"}
GIVEN |= {"cellback": {"cells": "cells"}, "dirl": {"regions": "maps"}}
GIVEN |= {name: {"cells": "cells"} for name in ("dino_sup", "dirl_simclr", "dirl_byol")}
BACKBONES = dict.fromkeys(("mae", "eva", "vq_kd", "beit_v2", "dino", "dino_imix", "dirl"), "test_vit")
BACKBONES |= dict.fromkeys(("esvit", "selfpatch", "ibot", "hipt_region"), "test_vit")
BACKBONES |= dict.fromkeys(("dirl_simclr", "dirl_byol"), "test_vit")


def write_regions(folder, tiles):
    """Cells of images, and maps of what is a cell."""
    rows = []
    (folder / "maps").mkdir()
    for number, path in enumerate(sorted(tiles.glob("*.png"))):
        cells = Cells.of(torch.rand(number % 5, 2).mul(64).numpy(), (64, 64))
        write_cells(cell_path(folder / "cells", path.stem), cells)
        row = dict.fromkeys(("mpp", "width", "height", "classes", "problem"), "")
        rows.append({**row, "slide": path.stem, "path": str(path), "cells": len(cells), "classes": "cell"})
        Image.fromarray(np.eye(64, k=number, dtype=np.uint8)).save(folder / "maps" / path.name)
    write_cell_rows(folder / "cells", rows)


@pytest.mark.parametrize(
    ("method", "backbone"),
    [*((method, BACKBONES.get(method, "test_resnet")) for method in METHODS), ("concl", "test_vit")],
)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, tiles, method, backbone, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text("".join(f"{number:02d}.png,{number % 3}\n" for number in range(40)))
    write_tokenizer(tmp_path)
    write_regions(tmp_path, tiles)
    options = {name: value for name, value in SMALL.items() if name in all_options(method, {})}
    if backbone == "test_vit" and "stage" in options:
        options["stage"] = 4
    options = {"data": tiles, "out": tmp_path / "run", "method": method, "method_options": options, "max_steps": 4}
    options |= GIVEN.get(method, {})
    if method == "selfpatch":
        options["method_options"]["local_size"] = 1.0  # three patches
    if method == "dirl":
        options["method_options"]["prior"] = "files"
    options |= {"backbone": backbone, "batch_size": 8, "devices": "cpu", "precision": "32"}
    options["view_size"] = 64 if method == "spark" else 48  # multiples of its patches
    folder = pretrain(**options, save_every_steps=2) / "checkpoints"
    whole = read_checkpoint(folder / "last.ckpt")
    (folder / "last.ckpt").unlink()
    assert read_checkpoint(folder / "previous.ckpt")["step"] == 2
    pretrain(**options, save_every_steps=2, resume=True)
    resumed = read_checkpoint(folder / "last.ckpt")
    assert resumed["step"] == whole["step"] == 4
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    pairs = {name: (value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items()}
    assert [name for name, (one, other) in pairs.items() if not torch.equal(one, other)] == []
