"""Images are known by their names and sizes."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from densepath.sources import patience
from densepath.sources.fingerprint import digest_of_names, digests_of_contents, digests_of_packed, fingerprint
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
    assert {name: store[name].split()[0] for name in ("sizes", "samples")} == {"sizes": "store", "samples": "store"}
    (folder / "b" / "3.bmp").unlink()
    Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save(folder / "b" / "3.bmp")
    again = of(pack(folder, tmp_path / "again.safetensors"))
    assert [name for name in store if again[name] != store[name]] == ["samples", "pixels"]


def test_a_small_image_between_large_ones_of_a_store_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr("densepath.sources.fingerprint._SAMPLES", 4)
    images = [np.zeros((side, side, 3), np.uint8) for side in (200, 8, 200, 200)]
    before = of(write_store(tmp_path / "a.safetensors", images, "abcd", PixelSpec()))
    images[1][4, 4] = 1
    after = of(write_store(tmp_path / "b.safetensors", images, "abcd", PixelSpec()))
    assert [name for name in before if after[name] != before[name]] == ["pixels"]
    part = torch.tensor([0, 2])
    parts = [fingerprint(find_source(tmp_path / f"{name}.safetensors").take(part)) for name in "ab"]
    assert parts[0] == parts[1]  # without it


def test_pixels_of_a_store_that_change_away_from_the_middle_are_noticed(tmp_path):
    """Also in digests of single images, by which test images are known."""
    images = [np.zeros((224, 224, 3), np.uint8) for _ in range(3)]
    places = [(slice(56, 84), slice(0, 224)), (slice(0, 100), slice(124, 224))]
    stores = [find_source(write_store(tmp_path / "s.safetensors", images, "abc", PixelSpec()))]
    for number, place in enumerate(places):
        changed = [image.copy() for image in images]
        changed[1][place] = 255
        stores.append(find_source(write_store(tmp_path / f"{number}.safetensors", changed, "abc", PixelSpec())))
    digests = [digests_of_packed(store, range(3)) for store in stores]
    assert [len({each[k] for each in digests}) for k in range(3)] == [1, 3, 1]
    assert len({fingerprint(store)["pixels"] for store in stores}) == 3


def test_one_of_thousands_of_small_images_of_a_store_is_noticed(tmp_path):
    images, names = np.random.default_rng(0).integers(0, 256, (3000, 8, 8, 3), np.uint8), [str(k) for k in range(3000)]
    before = of(write_store(tmp_path / "a.safetensors", images, names, PixelSpec()))
    images[1002] = 255 - images[1002]  # not one of 1,024 that are sampled
    after = of(write_store(tmp_path / "b.safetensors", images, names, PixelSpec()))
    assert [name for name in before if after[name] != before[name]] == ["samples"]


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


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file whose reads give EIO")
def test_a_file_that_a_disk_fails_to_give_is_not_one_of_other_content(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "PAUSES", ())
    (tmp_path / "a.bmp").symlink_to("/proc/self/mem")
    assert digests_of_contents([tmp_path / "a.bmp"]) == [""]


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
