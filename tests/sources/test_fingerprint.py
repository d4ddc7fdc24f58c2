"""Images are known by their names and sizes."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from densepath.sources.fingerprint import digest_of_names, digests_of_contents, fingerprint
from densepath.sources.open import find_source
from densepath.sources.packing import pack, write_store
from densepath.sources.path_table import PathTable
from densepath.sources.pixel_source import PixelSpec


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    for name in ("a/1", "a/2", "b/1", "b/3"):
        path = tmp_path / "tiles" / f"{name}.bmp"  # not compressed: all files have one size
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return tmp_path / "tiles"


def of(source):
    return fingerprint(find_source(source))


def test_images_may_move_and_be_named_in_other_ways(folder, tmp_path, monkeypatch):
    before = of(folder)
    assert before.keys() == {"names", "sizes", "samples"}
    assert of(f"{folder}/**/*.bmp") == before
    (folder / "all.txt").write_text("a/1.bmp\na/2.bmp\nb/1.bmp\nb/3.bmp\n")
    assert of(folder / "all.txt") == before
    shutil.move(folder, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert of(".") == of(tmp_path / "elsewhere") == before


def test_a_packed_store_has_the_names_of_its_files(folder, tmp_path):
    before, store = of(folder), of(pack(folder, tmp_path / "store.safetensors"))
    assert store["names"] == before["names"]
    assert {name: store[name].split()[0] for name in ("sizes", "samples")} == {"sizes": "store", "samples": "images"}
    (folder / "b" / "3.bmp").unlink()
    Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save(folder / "b" / "3.bmp")
    again = of(pack(folder, tmp_path / "again.safetensors"))
    assert [name for name in store if again[name] != store[name]] == ["samples"]


def test_a_small_image_between_large_ones_of_a_store_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr("densepath.sources.fingerprint._SAMPLES", 4)
    images = [np.zeros((side, side, 3), np.uint8) for side in (200, 8, 200, 200)]
    before = of(write_store(tmp_path / "a.safetensors", images, "abcd", PixelSpec()))
    images[1][4, 4] = 1
    after = of(write_store(tmp_path / "b.safetensors", images, "abcd", PixelSpec()))
    assert [name for name in before if after[name] != before[name]] == ["samples"]
    part = torch.tensor([0, 2])
    parts = [fingerprint(find_source(tmp_path / f"{name}.safetensors").take(part)) for name in "ab"]
    assert parts[0] == parts[1]  # without it


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        (lambda f: (f / "a" / "1.bmp").rename(f / "b" / "0.bmp"), ["names", "samples"]),
        (lambda f: [(f / x).rename(f / y) for x, y in ("ac", "ba", "cb")], ["names", "samples"]),  # classes swapped
        (lambda f: (f / "a").rename(f / "z"), ["names", "samples"]),
        (lambda f: Image.new("RGB", (32, 40)).save(f / "a" / "1.bmp"), ["sizes", "samples"]),
        (lambda f: shutil.copy(f / "a" / "1.bmp", f / "a" / "2.bmp"), ["samples"]),
    ],
)
def test_what_has_changed_is_seen(folder, change, differ):
    before = of(folder)
    change(folder)
    after = of(folder)
    assert [name for name in before if after[name] != before[name]] == differ


def test_a_name_that_is_not_a_path_has_no_content(folder):
    found = digests_of_contents([folder / "a" / "1.bmp", folder / "missing", "null\0character", "surrogate\ud800"])
    assert found[0] and found[1:] == ["", "", ""]


def test_names_differ_by_their_characters_and_where_they_end():
    tables = [
        ["d/ab", "d/c"],
        ["d/a", "d/bc"],
        ["d/ab", "d/c", "d/"],
        ["d/c", "d/ab"],
        ["dd/ab", "d/c"],
        ["d/é", "d/c"],
    ]
    digests = [digest_of_names(PathTable.of(names)) for names in tables]
    assert len(set(digests)) == len(tables)
    assert digest_of_names(PathTable.of(["other/place/ab", "other/place/c"])) == digests[0]
    assert digest_of_names(PathTable.of(["one"])) == digest_of_names(PathTable.of(["in/a/folder/one"]))
