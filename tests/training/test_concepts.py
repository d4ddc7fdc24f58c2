"""Runs whose concepts are label maps of their images."""

import numpy as np
import pytest
import torch
from PIL import Image

from densepath.annotations import label_cache
from densepath.annotations.cells.find import cells
from densepath.core.errors import UserError
from densepath.methods import ConCL
from densepath.runs.checkpoints import read_checkpoint, write_checkpoint
from densepath.runs.metrics import read_metrics
from densepath.sources.packing import pack
from densepath.training.export import export
from densepath.training.pretrain import pretrain

OPTIONS = {"queue_size": 40, "concept_queue_size": 64, "warmup": 0.0}


@pytest.fixture
def run(tmp_path, tiles):
    def start(out, concepts="superpixels", data=tiles, **options):
        method = {**OPTIONS, "concepts": concepts}
        common = {"method": "concl", "backbone": "test_resnet", "max_steps": 4, "batch_size": 8, "view_size": 64}
        common |= {"devices": "cpu", "precision": "32", "log_every": 1, "cache": "none", "workers": 0}
        common["cache_dir"] = tmp_path / "cache"
        options = common | options
        options["method_options"] = method | options.get("method_options", {})
        return pretrain(data=data, out=tmp_path / out, **options)

    return start


def weights(out, name="last"):
    return read_checkpoint(out / "checkpoints" / f"{name}.ckpt")["state_dict"]


def different(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def test_a_resumed_run_with_superpixels_ends_with_the_same_bits(tmp_path, run, monkeypatch):
    out = run("run", save_every_steps=2)
    whole = weights(out)
    assert all(row["shared_concepts"] > 0 for row in read_metrics(out / "metrics.csv"))
    (out / "checkpoints" / "last.ckpt").unlink()
    assert read_checkpoint(out / "checkpoints" / "previous.ckpt")["step"] == 2
    monkeypatch.setattr(label_cache, "_write", None)  # the maps are there
    assert different(weights(run("run", save_every_steps=2, resume=True)), whole) == []


def test_files_decoded_images_and_a_store_give_the_same_run(tmp_path, tiles, run):
    store = pack(tiles, tmp_path / "tiles.safetensors")
    first = weights(run("files", max_steps=2))
    assert different(weights(run("ram", cache="ram", max_steps=2)), first) == []
    assert different(weights(run("store", data=store, max_steps=2)), first) == []
    # The maps count: with others the run is another.
    assert different(weights(run("other", max_steps=2, method_options={"superpixel_scale": 400})), first)


def test_each_image_meets_its_own_map(tmp_path, tiles, run, monkeypatch):
    """Maps of one label each, the number of the image, against what arrives in the steps."""
    (tmp_path / "maps").mkdir()
    for number, tile in enumerate(sorted(tiles.iterdir())):
        labels = np.zeros((64, 64), np.uint8)
        labels[: number + 1] = 1
        Image.fromarray(labels).save(tmp_path / "maps" / tile.name)
    seen = []
    restore = ConCL.restore

    def watched(self, batch, concepts, positions):
        assert set(batch.views) == {"query", "key"}  # the reference view is not asked for
        seen.append((batch.index, concepts.labels))
        return restore(self, batch, concepts, positions)

    monkeypatch.setattr(ConCL, "restore", watched)
    run("files", concepts="files", regions=tmp_path / "maps")
    assert len(seen) == 4
    for index, labels in seen:
        rows = (labels[:, :, 0] == 1).sum(1) * 64 / 80
        assert ((rows - (index + 1)).abs() < 1).all()


@pytest.mark.parametrize("concepts", ["nuclei", "saliency"])
def test_every_source_trains(tmp_path, tiles, run, concepts):
    torch.export.save(
        torch.export.export(torch.nn.Conv2d(3, 1, 9, padding=4).eval(), (torch.rand(1, 3, 256, 256),)),
        tmp_path / "model.pt2",
    )
    saliency = concepts == "saliency"
    options = {"regions": tmp_path / "model.pt2"} if saliency else {"method_options": {"nucleus_radius": 3.0}}
    out = run("out", concepts=concepts, max_steps=2, **options)
    rows = read_metrics(out / "metrics.csv")
    assert len(rows) == 2 and all(row["shared_concepts"] > 0 for row in rows)
    assert (out / "exported" / "backbone.safetensors").exists()


@pytest.fixture
def maps(tmp_path, tiles):
    """A label map for each tile."""
    (tmp_path / "maps").mkdir()
    for tile in tiles.iterdir():
        Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(tmp_path / "maps" / tile.name)
    return tmp_path / "maps"


def test_an_export_needs_no_maps(tmp_path, run, maps):
    out = run("run", concepts="files", max_steps=1, regions=maps)
    maps.rename(tmp_path / "elsewhere")
    assert export(out, tmp_path / "weights.safetensors").exists()


def test_a_resumed_run_may_find_its_maps_and_its_cache_elsewhere(tmp_path, run, maps):
    whole = weights(run("run", concepts="files", save_every_steps=2, regions=maps))
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    options = {"regions": maps.rename(tmp_path / "elsewhere"), "cache_dir": tmp_path / "other"}
    again = run("run", concepts="files", save_every_steps=2, resume=True, **options)
    assert different(weights(again), whole) == []


def test_a_folder_that_holds_a_run_is_refused_before_maps_are_made(tmp_path, run, monkeypatch):
    run("run", max_steps=1)
    monkeypatch.setattr(ConCL, "prepare", None)
    for options in ({}, {"resume": True, "method_options": {"superpixel_scale": 9}}):
        with pytest.raises(UserError, match=r"already holds a run|other values of method_options\.superpixel_scale"):
            run("run", max_steps=1, **options)


def test_missing_maps_are_named_before_the_run_begins(tmp_path, tiles, run):
    (tmp_path / "maps").mkdir()
    with pytest.raises(UserError, match=r"images without a label map in .*maps: .*00\.png.* and 37 more"):
        run("out", concepts="files", regions=tmp_path / "maps")
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_resumed_with_other_label_maps(tmp_path, tiles, run):
    maps = tmp_path / "maps"
    for number, tile in enumerate(sorted(tiles.rglob("*.png"))):
        path = maps / tile.relative_to(tiles)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(64, k=number, dtype=np.uint8)).save(path)
    out = run("run", "files", regions=maps, max_steps=1)
    moved = maps.rename(tmp_path / "moved")
    assert run("run", "files", regions=moved, max_steps=1, resume=True) == out
    Image.fromarray(np.eye(64, k=9, dtype=np.uint8)).save(next(moved.rglob("00.png")))
    with pytest.raises(UserError, match=r"the label maps, masks or saliency model are not those that the run in .*run"):
        run("run", "files", regions=moved, max_steps=1, resume=True)


def test_a_run_whose_labels_were_numbered_in_each_map_is_not_resumed(tmp_path, tiles):
    """Versions whose runs have no digest of label maps numbered Cellback's labels, too."""
    (tmp_path / "maps").mkdir()
    for tile in tiles.glob("*.png"):
        Image.fromarray(np.eye(64, dtype=np.uint8)).save(tmp_path / "maps" / tile.name)
    method = {"prior": "files", "prototypes": 24, "local_crops": 0, "head_batch_norm": True}
    options = {"data": tiles, "regions": tmp_path / "maps", "out": tmp_path / "run", "method": "cellback"}
    options |= {"method_options": method, "backbone": "test_vit", "max_steps": 1, "batch_size": 8, "view_size": 48}
    options |= {"devices": "cpu", "precision": "32", "workers": 0, "cache_dir": tmp_path / "cache"}
    folder = pretrain(**options) / "checkpoints"
    state = read_checkpoint(folder / "last.ckpt")
    assert state["facts"].pop("regions_numbers") == "kept"
    write_checkpoint(folder, state)
    pretrain(**options, resume=True)  # its digest tells
    del state["facts"]["regions"]
    write_checkpoint(folder, state)
    pretrain(**options, resume=True)  # it is complete
    state["step"] = 0
    write_checkpoint(folder, state)
    with pytest.raises(
        UserError, match=r"numbered the labels of each map from 0, .*; start it again in another folder"
    ):
        pretrain(**options, resume=True)


@pytest.mark.parametrize("neighborhoods", [1, 3])
def test_concl_trains_with_cells(tmp_path, tiles, run, neighborhoods):
    points = "\n".join(["x,y,class", *(f"{x},{y},{x // 20}" for x in range(2, 60, 6) for y in range(2, 30, 5))])
    (tmp_path / "points").mkdir()
    for path in tiles.rglob("*.png"):
        (tmp_path / "points" / f"{path.stem}.csv").write_text(points)
    cells(data=tiles, out=tmp_path / "C", source="csv", points=tmp_path / "points", workers=0)
    out = run("run", "cells", cells=tmp_path / "C", max_steps=2, method_options={"num_concepts": neighborhoods})
    rows = read_metrics(out / "metrics.csv")
    assert all(0 < row["cellular_share"] < 1 and np.isfinite(row["concept_loss"]) for row in rows)
    options = {"max_steps": 2, "method_options": {"num_concepts": neighborhoods}, "resume": True}
    for path in (tmp_path / "points").iterdir():
        path.write_text(points.replace("\n2,", "\n3,"))
    cells(data=tiles, out=tmp_path / "C", source="csv", points=tmp_path / "points", workers=0)
    with pytest.raises(UserError, match=r"the cells have been found again since the run in .* was started, and are"):
        run("run", "cells", cells=tmp_path / "C", **options)
    table = (tmp_path / "C" / "cells.csv").read_text()
    (tmp_path / "C" / "cells.csv").write_text(table.replace(",60,", ",61,", 1).replace(",50,", ",51,", 1))
    with pytest.raises(UserError, match=r"the cells are not those that the run in .* was started with"):
        run("run", "cells", cells=tmp_path / "C", **options)
    with pytest.raises(UserError, match="concl needs cells; find them with densepath cells"):
        run("other", "cells")
