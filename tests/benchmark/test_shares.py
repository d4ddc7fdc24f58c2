"""Labelled shares are what pre-training left out, in the rows of all weights."""

import os
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from densepath.benchmark import shares as shares_module
from densepath.benchmark.config import load_table
from densepath.benchmark.grid import make_grid
from densepath.benchmark.identity import read_tiles
from densepath.benchmark.labelled_sets import read_classes, read_labelled, read_outlined, read_plain
from densepath.benchmark.mask_sets import read_masks
from densepath.benchmark.overlap import check_overlap
from densepath.benchmark.shares import write_left_images
from densepath.core.errors import UserError
from densepath.sources.names import AllNames
from densepath.sources.open import find_source
from densepath.synthetic.tissue import write_tissue
from densepath.training.config import PretrainConfig
from densepath.training.run_images import find_images
from densepath.transfer.classify.cohort import read_pool
from densepath.transfer.classify.config import ClassifyConfig
from densepath.transfer.classify.splits import make_study, only_listed

TABLE = """
seeds: [0, 1]
pretrain_seed: 0
baseline: random
backbone: test_resnet
pretrain: {max_steps: 40, batch_size: 4, view_size: 64, method_options: {queue_size: 16}}
rates: {of: one core, pretrain: 100, classify: 20}
tasks:
  - {name: shared, verb: classify, data: chest, metrics: [macro_auc], options: {epochs: 1}, pretrain: {fraction: 7e-1}}
  - {name: whole, verb: classify, data: chest, metrics: [macro_auc], options: {epochs: 1}}
rows:
  - {name: random, weights: random}
  - {name: MoCo, recipe: moco_v2_small}
"""


@pytest.fixture
def chest(tmp_path):
    """Twenty images of ten patients, of whom two are test patients; and a folder with the training images only."""
    rng, lines = np.random.default_rng(0), ["file,label,split"]
    (tmp_path / "D").mkdir()
    (tmp_path / "tiles").mkdir()
    for number in range(20):
        patient, name = number // 2, f"{1000 + number // 2:08d}_{number % 2:03d}.png"
        Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(tmp_path / "D" / name)
        lines.append(f"{name},{'ab'[patient % 2]},{'test' if patient > 7 else 'train'}")
        if patient <= 7:
            shutil.copy(tmp_path / "D" / name, tmp_path / "tiles")
    (tmp_path / "D" / "labels.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.parametrize("fraction", [0.9, 0.6])
def test_the_list_is_what_pre_training_leaves_out(chest, fraction):
    tiles = read_tiles(chest / "tiles", chest / "cache")
    for seed in (0, 1):
        used, left = find_images(PretrainConfig(data=chest / "tiles", out="", fraction=fraction, seed=seed))
        listed = write_left_images(tiles, fraction, seed, chest / "cache").read_text().split()
        paths = [str(Path(name).absolute()) for name in AllNames(left)]
        patients = sorted({Path(name).name[:8] for name in paths})
        assert listed == [*paths, *patients]
        assert not {*patients} & {Path(name).name[:8] for name in AllNames(used)}


@pytest.mark.parametrize("spelled", ["tiles", "./tiles"])
def test_the_list_is_what_pre_training_leaves_out_where_some_patients_are_unknown(chest, monkeypatch, spelled):
    monkeypatch.chdir(chest)
    for number, path in enumerate(sorted((chest / "tiles").iterdir())):
        if number % 4 > 1:
            path.rename(path.with_name(f"x{number}.png"))
    tiles = read_tiles(spelled, chest / "cache")
    for seed in range(4):
        left = find_images(PretrainConfig(data=chest / "tiles", out="", fraction=0.6, seed=seed))[1]
        listed = write_left_images(tiles, 0.6, seed, chest / "cache").read_text().split()
        assert sorted(os.path.realpath(name) for name in listed if "/" in name) == sorted(AllNames(left))


def test_all_rows_train_on_the_images_that_pre_training_left_out(chest):
    """The share in the table, 7e-1, is a text in YAML."""
    (chest / "mine.yaml").write_text(TABLE)
    data = read_plain("chest", chest / "D", chest / "cache", None, {})
    table, tiles = load_table(chest / "mine.yaml"), read_tiles(chest / "tiles", chest / "cache")
    grid = make_grid(table, {"chest": data}, tiles, {}, chest / "cache")
    lists = {place: run.inputs.get("train_images") for place, run in grid.places.items()}
    assert len({path for (_, task, _), path in lists.items() if task == "shared"}) == 1
    assert all(path is None for (_, task, _), path in lists.items() if task == "whole")
    run = grid.places["MoCo", "shared", 1]
    assert run.parent.options["fraction"] == 0.7 and run.parent.seed == 0
    used, _ = find_images(PretrainConfig(data=chest / "tiles", out="", fraction=0.7))
    seen = {Path(name).name for name in AllNames(used)}
    labels = chest / "D" / "labels.csv"
    config = ClassifyConfig(data=chest / "D", labels=labels, out="")
    study = only_listed(
        make_study(read_pool(config, find_source(chest / "D"), chest / "D", labels), None), run.inputs["train_images"]
    )
    trained = {study.train.names[p] for p in study.fit}
    assert trained and trained.isdisjoint(seen) and len(trained) + len(seen) == 16
    assert len(study.tested) == 4
    own = make_grid(load_table(chest / "mine.yaml"), {"chest": data}, None, {}, chest / "cache")
    assert not [place for place in own.places if place[1] == "shared"]
    assert any("what pre-training leaves out" in line for line in own.skipped)


@pytest.mark.parametrize("name", ["pcrl_table2", "pcrl_figure4a", "pcrl_figure4b"])
def test_the_tables_of_pcrl_do_not_draw_a_share_of_their_own(name):
    tasks = yaml.safe_load(files("densepath").joinpath(f"benchmark/configs/{name}.yaml").read_text())["tasks"]
    shared = [task for task in tasks if "pretrain" in task]
    assert shared and not any("fraction" in task["options"] for task in shared)


def test_the_official_test_of_images_without_labels_is_compared(chest):
    data = read_plain("chest", chest / "D", chest / "cache", None, {})
    assert (len(data.train.names), len(data.test.names), data.folds) == (16, 4, False)
    assert check_overlap([read_tiles(chest / "tiles", chest / "cache")], [data]) == []
    shutil.copy(chest / "D" / "00001009_000.png", chest / "tiles")
    with pytest.raises(UserError, match=r"1 patient \(00001009\), with 2 of 4 test images"):
        check_overlap([read_tiles(chest / "tiles", chest / "cache")], [data])


def manifest(folder, images):
    """Write the patients of images, or none of them."""
    path = folder / "manifest.csv"
    path.unlink(missing_ok=True)
    lines = "".join(f"{name},{patient}\n" for name, patient in images.items())
    if images:
        path.write_text(f"file,patient\n{lines}")


@pytest.mark.parametrize("read", [read_classes, read_plain, read_labelled, read_outlined, read_masks])
def test_a_manifest_is_part_of_a_set(read, tmp_path):
    folder, cache = tmp_path / "D", tmp_path / "cache"
    if read is read_outlined:
        write_tissue(folder, train=2, test=1, size=32, seed=0)
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    else:
        names = [f"{name}/{k}.png" for name in ("images/a", "images/b") for k in range(3)]
        for number, name in enumerate(names):
            for path in (folder / name, folder / name.replace("images", "labels", 1)):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8), number + 1, np.uint8)).save(path)
    data = folder if read is read_outlined else folder / "images"
    found = []
    for patients in ("", "aaabbb", "abcabc"):
        manifest(folder, dict(zip(names, patients, strict=False)))
        found.append(read("x", data, cache, None, {}).digest)
    assert len(set(found)) == 3


@pytest.mark.parametrize("option", [{}, {"fraction": 0.5}, {"val_share": 0.5}])
def test_a_manifest_makes_new_runs_of_pre_training_only_where_it_divides_the_images(option, chest):
    shares = ", ".join(f"{name}: {value}" for name, value in option.items())
    table = TABLE.replace(", pretrain: {fraction: 7e-1}", f", pretrain: {{{shares}}}")
    (chest / "mine.yaml").write_text(table)
    for image in (chest / "tiles").iterdir():
        image.rename(image.with_name(f"tile {image.name.removesuffix('.png').replace('_', ' ')}.png"))
    tiles = read_tiles(chest / "tiles", chest / "cache")
    sets = {"chest": read_plain("chest", chest / "D", chest / "cache", None, {})}
    found = []
    for patients in ("", "aaaabbbbccccdddd", "abcdabcdabcdabcd"):
        manifest(chest / "tiles", dict(zip((Path(name).name for name in tiles.names), patients, strict=False)))
        shares_module._listed.cache_clear()
        grid = make_grid(load_table(chest / "mine.yaml"), sets, tiles, {}, chest / "cache")
        found.append(grid.places["MoCo", "shared", 0].parent.name)
    assert len(set(found)) == (3 if option else 1)
