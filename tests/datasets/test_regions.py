"""Grids of the features of tiles, from files of features to a run."""

import h5py
import numpy as np
import pytest
import torch

from densepath.cli import main
from densepath.core.errors import UserError
from densepath.datasets.regions import write_regions
from densepath.sources.packing import open_store
from densepath.training.pretrain import pretrain

SMALL = "vit_tiny_patch16_224(img_size=3, patch_size=1, embed_dim=16, depth=2, num_heads=2, patch_gelu=True)"


def write_slide(path, corners, features):
    with h5py.File(path, "w") as file:
        file["features"] = features
        file["coords"] = corners
        file["coords"].attrs["patch_size_level0"] = 512


@pytest.fixture
def slides(tmp_path):
    """Two slides: one of 9 x 5 tiles without some, and one of 4 x 4; places -> features."""
    rng, tables = np.random.default_rng(0), {}
    (tmp_path / "features").mkdir()
    for name, columns, rows, left in (("a", 9, 5, 1000), ("b", 4, 4, 0)):
        places = [(x, y) for x in range(columns) for y in range(rows) if (x, y) not in ((5, 1), (6, 2), (8, 0))]
        values = rng.normal(scale=3, size=(len(places), 40)).astype(np.float32)
        order = rng.permutation(len(places))
        corners = np.array(places)[order] * 512 + [left, 64]
        write_slide(tmp_path / "features" / f"{name}.h5", corners, values[order])
        tables[name] = dict(zip(places, values, strict=True))
    return tmp_path / "features", tables


def test_each_feature_is_where_its_tile_is(slides, tmp_path):
    folder, tables = slides
    store = open_store(write_regions(folder, tmp_path / "regions.safetensors", grid=4))
    names = [store.names(position) for position in range(len(store))]
    assert names == ["a_0_0", "a_1_0", "b_0_0"]  # one tile in sixteen is too few
    gathered = store.gather(torch.arange(3)).pixels
    assert gathered.shape == (3, 4, 4, 40) and gathered.dtype == torch.float32
    for name, region in zip(names, gathered.numpy(), strict=True):
        slide, column, row = name.split("_")
        for x in range(4):
            for y in range(4):
                expected = tables[slide].get((4 * int(column) + x, 4 * int(row) + y), np.zeros(40))
                assert np.array_equal(region[y, x], expected)
    seen = store.spec.normalize(store.spec.apply_window(gathered.movedim(-1, 1).clone()))
    torch.testing.assert_close(seen, gathered.movedim(-1, 1), rtol=0, atol=1e-4)


def test_a_run_learns_from_regions_of_384_numbers(tmp_path):
    rng = np.random.default_rng(1)
    places = np.array([(x, y) for x in range(16) for y in range(8)])
    (tmp_path / "features").mkdir()
    write_slide(tmp_path / "features" / "a.h5", places * 512, rng.normal(size=(128, 384)).astype(np.float16))
    store = tmp_path / "regions.safetensors"
    assert main(["data", "regions", str(tmp_path / "features"), str(store), "--grid", "4"]) == 0
    options = {"prototypes": 16, "hidden_dim": 16, "dim": 8, "local_crops": 2, "local_size": 2 / 3}
    run = {"data": store, "method": "hipt_region", "backbone": SMALL, "method_options": options, "view_size": 3}
    folder = pretrain(**run, out=tmp_path / "run", max_steps=2, batch_size=8, devices="cpu", precision="32")
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_what_is_no_grid_is_refused(slides, tmp_path):
    folder, _ = slides
    write_slide(folder / "c.h5", np.array([[0, 0], [256, 0]]), np.zeros((2, 40), np.float32))
    with pytest.raises(UserError, match="the tiles of c overlap or have gaps"):
        write_regions(folder, tmp_path / "r.safetensors", grid=4)
    write_slide(folder / "c.h5", np.array([[0, 0], [512, 0]]), np.zeros((2, 8), np.float32))
    with pytest.raises(UserError, match="have 8 and 40 numbers"):
        write_regions(folder, tmp_path / "r.safetensors", grid=2)
    (folder / "c.h5").unlink()
    with pytest.raises(UserError, match="lower --least"):
        write_regions(folder, tmp_path / "r.safetensors", grid=16)
    with pytest.raises(UserError, match=r"name it r\.h5\.safetensors"):
        write_regions(folder, tmp_path / "r.h5")
    assert not (tmp_path / "r.safetensors").exists()
