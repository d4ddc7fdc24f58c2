"""Label maps from a folder: found by name, checked, and read unchanged."""

from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest
import tifffile
from PIL import Image

from densepath.annotations.label_cache import label_images
from densepath.annotations.label_maps import shrink
from densepath.annotations.labels import LABEL_SUFFIXES
from densepath.concepts import matching
from densepath.concepts.image_labels import FromPath
from densepath.concepts.map_files import MapFiles, same_shape
from densepath.concepts.matching import match_names
from densepath.core.errors import UserError
from densepath.methods.needs import Need
from densepath.sources.open import open_images
from densepath.sources.packing import pack
from densepath.sources.path_table import PathTable
from densepath.training.config import PretrainConfig
from densepath.training.inputs import checksums_of, make_inputs


@pytest.fixture
def folders(tmp_path):
    """Images in subfolders, and their maps in subfolders of another folder, in four formats."""
    rng = np.random.default_rng(0)
    maps = {}
    for number, name in enumerate(["a/1", "a/2", "b/1", "c"]):
        image, path = tmp_path / "tiles" / f"{name}.png", tmp_path / "maps" / name
        image.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (number, 0, 0)).save(image)
        labels = maps[name] = rng.integers(0, 200, (30, 40)) + (0, 0, 60000, 5)[number]
        if number == 0:
            Image.fromarray(labels.astype(np.uint8)).save(path.with_suffix(".png"))
        elif number == 1:
            Image.fromarray(labels.astype(np.uint16)).save(path.with_suffix(".png"))
        elif number == 2:
            tifffile.imwrite(path.with_suffix(".tif"), labels.astype(np.uint16))
        else:
            np.save(path.with_suffix(".npy"), labels)
    return tmp_path, maps


def test_each_image_gets_the_map_with_its_name(folders):
    where, expected = folders
    packed = pack(where / "tiles", where / "tiles.safetensors")
    for source in (where / "tiles", packed, where / "tiles" / "**" / "*.png"):
        images = open_images(source, cache="none")
        maps = label_images(images, MapFiles(where / "maps"), where / "cache").maps
        for position in range(4):
            name = images.names(position).removeprefix(str(where / "tiles") + "/").removesuffix(".png")
            assert np.array_equal(maps[position], shrink(expected[name]))


def test_a_list_of_images_in_one_folder_is_matched_too(folders):
    where, expected = folders
    images = open_images(where / "tiles" / "a", cache="none")
    maps = label_images(images, MapFiles(where / "maps" / "a"), where / "cache").maps
    assert np.array_equal(maps[1], shrink(expected["a/2"]))
    maps = label_images(images, MapFiles(where / "maps"), where / "cache").maps
    assert np.array_equal(maps[1], shrink(expected["a/2"]))


def test_other_maps_have_another_digest_and_another_folder_does_not(folders):
    where, _ = folders
    images = open_images(where / "tiles", cache="none")

    def checksum(folder):
        need = Need("regions", MapFiles(folder))
        method = SimpleNamespace(needs=lambda: {"concepts": need})
        return checksums_of(method, make_inputs(method, PretrainConfig(data="", out="", cache_dir=where / "c"), images))

    before = checksum(where / "maps")
    assert before.keys() == {"regions"}
    moved = (where / "maps").rename(where / "moved")
    assert checksum(moved) == before
    path = next(moved.rglob("*.npy"))
    np.save(path, 1 - np.load(path).clip(0, 1))
    assert checksum(moved) != before


def test_the_paths_of_the_maps_are_freed(folders):
    where, _ = folders
    held = []
    need = Need("regions", FromPath(lambda path: held.append(ref(made := MapFiles(path))) or made, "maps"))
    config = PretrainConfig(data="", out="", regions=where / "maps", cache_dir=where / "cache")
    method = SimpleNamespace(needs=lambda: {"regions": need})
    assert len(make_inputs(method, config, open_images(where / "tiles"))["regions"]) == 4
    assert held[0]() is None


def test_a_coarser_map_with_the_same_aspect_ratio_is_accepted(folders):
    where, _ = folders
    coarse = np.array([[0, 5, 9, 9], [0, 5, 9, 9], [7, 7, 7, 7]])
    np.save(where / "maps" / "c.npy", coarse)
    maps = label_images(open_images(where / "tiles"), MapFiles(where / "maps"), where / "cache").maps
    assert np.array_equal(maps[3], shrink(np.kron(coarse, np.ones((10, 10), int))))


@pytest.mark.parametrize(
    ("size", "other", "same"),
    [
        ((30, 40), (30, 40), True),
        ((15, 20), (30, 40), True),
        ((7, 10), (30, 40), True),  # 7.5 rows rounded
        ((60, 80), (30, 40), True),
        ((40, 30), (30, 40), False),
        ((30, 42), (30, 40), False),
        ((0, 0), (30, 40), False),
    ],
)
def test_aspect_ratios_are_compared_up_to_rounding(size, other, same):
    assert same_shape(size, other) is same


def test_a_changed_map_has_its_own_cache(folders):
    where, _ = folders
    images = open_images(where / "tiles")
    before = label_images(images, MapFiles(where / "maps"), where / "cache").maps[3].copy()
    np.save(where / "maps" / "c.npy", np.eye(30, 40, dtype=np.int64))
    after = label_images(images, MapFiles(where / "maps"), where / "cache").maps[3]
    assert np.array_equal(after, shrink(np.eye(30, 40))) and not np.array_equal(before, after)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda maps: [p.unlink() for p in maps.rglob("*.*")],
            r"images without a label map in .*: .*1\.png, .*and 1 more",
        ),
        (lambda maps: (maps / "c.npy").unlink(), r"images without a label map in .*maps: .*c\.png; give every image"),
        (lambda maps: np.save(maps / "c.npy", np.zeros((30, 30), int)), r"c\.npy has 30 x 30 px and its image 40 x 30"),
        (lambda maps: np.save(maps / "c.npy", np.full((30, 40), -1)), r"c\.npy has the label -1; number .* from 0"),
        (lambda maps: np.save(maps / "c.npy", np.full((30, 40), 0.5)), r"c\.npy holds fractions"),
        (lambda maps: np.save(maps / "c.npy", np.full((30, 40), np.nan)), r"c\.npy holds fractions"),
        (lambda maps: np.save(maps / "c.npy", np.zeros((30, 40, 3), int)), r"c\.npy holds an array of 3 axes"),
        (lambda maps: np.save(maps / "c.npy", np.array([{}]), allow_pickle=True), r"c\.npy.*; replace the label map"),
        (
            lambda maps: (maps / "c.npy").write_bytes(b"x"),
            r"c\.npy: is not an array of numbers.*; replace the label map",
        ),
        (lambda maps: (maps / "a/1.png").write_bytes(b""), r"1\.png: the file is empty; replace the label map"),
        (lambda maps: Image.new("RGB", (40, 30)).save(maps / "a/1.png"), r"1\.png is a color image, not a label map"),
        (lambda maps: Image.new("L", (40, 30)).save(maps / "a/1.tif"), r"1\.png and .*1\.tif have the same name"),
    ],
)
def test_unusable_maps_are_named(folders, spoil, message):
    where, _ = folders
    spoil(where / "maps")
    with pytest.raises(UserError, match=message):
        label_images(open_images(where / "tiles"), MapFiles(where / "maps"), where / "cache")
    assert not list((where / "cache").rglob("*.npy"))


def test_images_with_the_same_name_need_different_maps(folders):
    where, _ = folders
    (where / "flat").mkdir()
    for name in ("1", "2", "c"):
        Image.new("L", (40, 30)).save(where / "flat" / f"{name}.png")
    with pytest.raises(UserError, match=r"belong to several images: .*1\.png; put them into the same subfolders"):
        match_names([str(path) for path in sorted((where / "tiles").glob("*/*.png"))], where / "flat", LABEL_SUFFIXES)


def test_names_of_many_images_are_matched_in_little_memory(tmp_path, bounded_memory, monkeypatch):
    """20,000 images: all paths and their parts at once would take 80 MiB."""
    files = [f"slide{n // 500:03d}/{n:05d}" for n in range(20_000)]
    listed = [f"{file}{'.png' if n % 3 else '.PNG'}" for n, file in enumerate(files)]
    monkeypatch.setattr(matching, "_files", lambda folder, suffixes: iter(listed))
    names = PathTable.of(f"/data/{file}.jpg" for file in files)
    with bounded_memory(16):
        matches = match_names(names, tmp_path, LABEL_SUFFIXES)
    for n in (0, 1, 499, 500, 19_999):
        assert matches.path(f"/data/{files[n]}.jpg") == tmp_path / listed[n]
