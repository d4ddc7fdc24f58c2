"""Files and packed stores as sources of images."""

from __future__ import annotations

import json
import logging
import pickle
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from densepath.core.errors import UserError
from densepath.sources import cache as cache_module
from densepath.sources import packing as packing_module
from densepath.sources.image_files import ImageFiles
from densepath.sources.open import check_size, open_images
from densepath.sources.packed import PackedTiles
from densepath.sources.packing import open_store, pack
from densepath.sources.pixel_source import PixelSource, PixelSpec


def write_tiles(folder: Path, sizes: list[tuple[int, int]]) -> list[npt.NDArray[np.uint8]]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(sizes))
    tiles = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    for position, tile in enumerate(tiles):
        Image.fromarray(tile).save(folder / f"{position:04d}.png")
    return tiles


def gathered(images: PixelSource, index: list[int]) -> list[npt.NDArray[np.uint8]]:
    """The images of a batch, cut from its canvas, whose margins must be zero."""
    part = images.gather(torch.tensor(index))
    cut = [pixels[:height, :width].numpy() for pixels, (height, width) in zip(part.pixels, part.sizes, strict=True)]
    assert int(part.pixels.sum(dtype=torch.int64)) == sum(int(image.sum()) for image in cut)
    assert part.sizes.dtype == part.index.dtype == torch.int64
    return cut


SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES | st.integers(1, 12).map(lambda n: [(5, 7)] * n), data=st.data())
def test_store_gives_back_the_images(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tiles = write_tiles(root / "tiles" / "sub", sizes)
        packed = open_store(pack(root / "tiles", root / "tiles.safetensors"))
        assert len(packed) == len(tiles)
        assert [packed.names(k) for k in range(len(packed))] == [f"sub/{k:04d}.png" for k in range(len(tiles))]
        index = data.draw(st.lists(st.integers(0, len(tiles) - 1), min_size=1, max_size=6))
        for source in (packed, packed.to("cpu"), ImageFiles((root / "tiles" / "sub").glob("*.png"))):
            if isinstance(source, ImageFiles):
                source = ImageFiles(sorted(source.paths))
            for image, position in zip(gathered(source, index), index, strict=True):
                assert np.array_equal(image, tiles[position])
        assert packed.smallest()[1] == min(min(size) for size in sizes)


@pytest.mark.parametrize("sizes", [[(8, 6)] * 3, [(8, 6), (3, 7), (5, 5)]])
def test_store_is_a_safetensors_file(tmp_path: Path, sizes: list[tuple[int, int]]) -> None:
    tiles = write_tiles(tmp_path / "tiles", sizes)
    path = pack(tmp_path / "tiles", tmp_path / "store.safetensors")
    with safe_open(path, framework="np") as store:
        assert store.metadata() == {"format": "densepath-tiles", "version": "2", "count": "3"} | {
            "pixels": json.dumps(PixelSpec().record())
        }
        pixels = store.get_tensor("pixels")
        assert pixels.shape == ((3, 8, 6, 3) if len(set(sizes)) == 1 else (sum(tile.size for tile in tiles),))
        assert pixels.tobytes() == b"".join(tile.tobytes() for tile in tiles)
        assert store.get_tensor("sizes").tolist() == [list(size) for size in sizes]
        offsets = store.get_tensor("offsets")
        assert offsets.tolist() == np.cumsum([0, *(tile.size for tile in tiles[:-1])]).tolist()
        starts = store.get_tensor("name_starts")
        names = store.get_tensor("names").tobytes().decode()
        assert [names[a:b] for a, b in pairwise(starts)] == ["0000.png", "0001.png", "0002.png"]


def test_store_is_mapped_and_not_read(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", [(16, 16)] * 4)
    packed = open_store(pack(tmp_path / "tiles", tmp_path / "s.safetensors"))
    packed.pixels.fill_(0)  # changes only this process's pages
    assert open_store(tmp_path / "s.safetensors").pixels.any()


def test_store_that_is_cut_off_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", [(8, 6), (3, 7)])
    path = pack(tmp_path / "tiles", tmp_path / "whole.safetensors")
    data = path.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in (0, 4, 8, 100, 4000, 4096, 4200, len(data) - 1):
        cut.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"cut\.safetensors.*(pack the images again|densepath data pack)"):
            open_store(cut)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"__metadata__": {"format": "pt"}}, "is not a packed store"),
        ({"__metadata__": {"format": "densepath-tiles", "version": "7"}}, "has version 7, not 2"),
        ({"sizes": None}, "header is broken"),
        ({"sizes": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, "header is broken"),
        ({"sizes": {"dtype": "I32", "shape": [2, 3], "data_offsets": [0, 16]}}, "header is broken"),
        ({"sizes": {"dtype": "I32", "shape": [2, 2], "data_offsets": [0, 16]}}, "header is broken"),
        ({"sizes": {"dtype": "I32", "shape": [1, 2], "data_offsets": [0, 8]}}, "header is broken"),
    ],
)
def test_store_with_another_header_is_refused(tmp_path: Path, change: dict, says: str) -> None:
    write_tiles(tmp_path / "tiles", [(8, 6), (3, 7)])
    path = pack(tmp_path / "tiles", tmp_path / "s.safetensors")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = {key: value for key, value in {**json.loads(data[8 : 8 + length]), **change}.items() if value}
    path.write_bytes(data[:8] + json.dumps(header).encode().ljust(length) + data[8 + length :])
    with pytest.raises(UserError, match=says):
        open_store(path)


def test_pack_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", [(8, 6)] * 5)
    for position in (1, 3):
        (tmp_path / "tiles" / f"{position:04d}.png").write_bytes(b"broken")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="2 of 5 images were found damaged, more than 1%") as error:
        pack(tmp_path / "tiles", tmp_path / "out" / "s.safetensors")
    assert "0001.png" in str(error.value) and "0003.png" in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_no_progress_is_printed_where_nobody_watches(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tiles(tmp_path / "tiles", [(80, 60)] * 3)
    pack(tmp_path / "tiles", tmp_path / "s.safetensors")
    open_images(tmp_path / "tiles")
    assert capfd.readouterr() == ("", "densepath: 3 images in 1 folder, 60-80 px, read each time\n")


def test_pack_refuses_other_suffixes_and_files_that_exist(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", [(8, 6)])
    with pytest.raises(UserError, match=r"name it tiles\.bin\.safetensors"):
        pack(tmp_path / "tiles", tmp_path / "tiles.bin")
    pack(tmp_path / "tiles", tmp_path / "s.safetensors")
    with pytest.raises(UserError, match="already exists"):
        pack(tmp_path / "tiles", tmp_path / "s.safetensors")


def test_a_store_that_another_command_has_written_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiles(tmp_path / "tiles", [(8, 6)])
    store = tmp_path / "s.safetensors"
    monkeypatch.setattr(packing_module, "write_tables", lambda *_: store.write_bytes(b"of the other"))
    with pytest.raises(UserError, match="already exists"):
        pack(tmp_path / "tiles", store)
    assert store.read_bytes() == b"of the other" and len(list(tmp_path.iterdir())) == 2


def test_pack_leaves_out_a_corrupt_image_and_names_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiles = write_tiles(tmp_path / "tiles", [(4, 4)] * 120)
    (tmp_path / "tiles" / "0007.png").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        packed = open_store(pack(tmp_path / "tiles", tmp_path / "s.safetensors"))
    assert [record.getMessage().count("0007.png") for record in caplog.records] == [1]
    assert len(packed) == 119
    assert packed.names(7) == "0008.png"
    assert np.array_equal(gathered(packed, [7])[0], tiles[8])


def test_files_and_their_cache_put_the_next_readable_image_in_a_corrupt_ones_place(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles", [(4, 4)] * 200)
    for position in (60, 199):
        (tmp_path / "tiles" / f"{position:04d}.png").write_bytes(b"broken")
    files = open_images(tmp_path / "tiles", cache="none")
    cached = open_images(tmp_path / "tiles", cache="ram")
    index = [59, 60, 61, 199, 60]
    for source in (files, cached):
        part = source.gather(torch.tensor(index))
        assert part.index.tolist() == [59, 61, 61, 0, 61]
        for image, position in zip(gathered(source, index), part.index.tolist(), strict=True):
            assert np.array_equal(image, tiles[position])
    assert isinstance(cached, PackedTiles)
    assert sorted(cached.corrupt) == [60, 199]
    assert cached.smallest()[1] == 4
    assert "0060.png: not an image" in cached.corrupt[60]


@pytest.mark.parametrize("cache", ["auto", "ram"])
def test_caching_ends_when_more_than_one_in_a_hundred_is_corrupt(tmp_path: Path, cache: str) -> None:
    write_tiles(tmp_path / "tiles", [(4, 4)] * 100)
    for position in range(30, 55):
        (tmp_path / "tiles" / f"{position:04d}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="20 of 100 images were found damaged") as error:
        open_images(tmp_path / "tiles", cache=cache)  # type: ignore[arg-type]
    assert "0030.png" in str(error.value) and "\n" not in str(error.value)


def test_source_without_one_readable_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    for source in (lambda: open_images(tmp_path), lambda: check_size(open_images(tmp_path, cache="none"), 32)):
        with pytest.raises(UserError, match=r"none of 1 image can be read.*a\.png"):
            source()


def test_auto_caches_what_fits_into_its_share_of_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiles(tmp_path / "tiles", [(10, 10)] * 10)  # 3000 bytes decoded
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(cache_module, "available_memory", lambda: 12_000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert isinstance(open_images(tmp_path / "tiles"), PackedTiles)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert isinstance(open_images(tmp_path / "tiles"), ImageFiles)
    assert isinstance(open_images(tmp_path / "tiles", cache="none"), ImageFiles)
    assert isinstance(open_images(tmp_path / "tiles", cache="ram"), PackedTiles)
    monkeypatch.setattr(cache_module, "available_memory", lambda: 3_000)
    with pytest.raises(UserError, match="decoded images take about"):
        open_images(tmp_path / "tiles", cache="ram")


def test_cache_gives_up_when_the_sample_of_sizes_misled_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(4, 4)] * 128
    for position in range(1, 128, 2):  # between the headers that are looked at
        sizes[position] = (64, 64)
    tiles = write_tiles(tmp_path / "tiles", sizes)
    monkeypatch.setattr(cache_module, "available_memory", lambda: 400_000)
    assert isinstance(open_images(tmp_path / "tiles"), ImageFiles)
    cached = open_images(tmp_path / "tiles", cache="none")
    monkeypatch.setattr(cache_module, "available_memory", lambda: 10_000_000)
    cached = open_images(tmp_path / "tiles")  # whose block must grow
    assert isinstance(cached, PackedTiles)
    for position in (0, 1, 127):
        assert np.array_equal(gathered(cached, [position])[0], tiles[position])


def test_large_files_are_reduced_and_stores_of_them_too(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", [(40, 100), (20, 30)])
    sources = [
        open_images(tmp_path / "tiles", cache="none", max_side=50),
        open_images(tmp_path / "tiles", cache="ram", max_side=50),
        open_store(pack(tmp_path / "tiles", tmp_path / "s.safetensors", max_side=50)),
    ]
    first, *others = [gathered(source, [0, 1]) for source in sources]
    assert [image.shape for image in first] == [(20, 50, 3), (20, 30, 3)]
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_open_images_knows_stores_and_refuses_other_files(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", [(8, 6)])
    path = pack(tmp_path / "tiles", tmp_path / "s.safetensors")
    assert isinstance(open_images(str(path)), PackedTiles)
    assert isinstance(open_images(path, cache="ram"), PackedTiles)
    with pytest.raises(UserError, match="unknown cache 'disk'"):
        open_images(path, cache="disk")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"gone\.safetensors cannot be read"):
        open_images(tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        open_images(tmp_path / "gone")


def test_images_smaller_than_needed_are_refused_by_name(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", [(40, 40), (40, 31), (50, 50)])
    store = pack(tmp_path / "tiles", tmp_path / "s.safetensors")
    for source in (open_images(tmp_path / "tiles", cache="none"), open_images(store)):
        assert source.smallest() == (1, 31)
        check_size(source, 31)
        with pytest.raises(UserError, match=r"0001\.png has a side of 31 px, and 32 px are needed"):
            check_size(source, 32)


def test_files_survive_the_way_to_a_worker_process(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles", [(8, 6), (3, 7)])
    files = pickle.loads(pickle.dumps(open_images(tmp_path / "tiles", cache="none")))
    assert np.array_equal(gathered(files, [1])[0], tiles[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sizes", [[(8, 6)] * 5, [(8, 6), (3, 7), (5, 5), (1, 9), (2, 2)]])
def test_store_on_a_gpu_gives_the_same_batches(tmp_path: Path, sizes: list[tuple[int, int]]) -> None:
    write_tiles(tmp_path / "tiles", sizes)
    path = pack(tmp_path / "tiles", tmp_path / "s.safetensors")
    on_gpu, mapped = open_images(path, device="cuda"), open_images(path)
    assert isinstance(on_gpu, PackedTiles) and isinstance(mapped, PackedTiles)
    assert on_gpu.device.type == ("cuda" if mapped.uniform else "cpu")  # images of many sizes are faster on the CPU
    on_gpu = mapped.to("cuda")
    index = torch.tensor([4, 0, 3, 3])
    expected = mapped.gather(index)
    for part in (on_gpu.gather(index), mapped.gather(index, pin=True)):  # type: ignore[call-arg]
        if part.pixels.is_cpu:
            assert part.pixels.is_pinned()
        assert torch.equal(part.sizes.cpu(), expected.sizes)
        assert torch.equal(part.index.cpu(), expected.index)
        for got, wanted, (height, width) in zip(part.pixels.cpu(), expected.pixels, expected.sizes, strict=True):
            assert torch.equal(got[:height, :width], wanted[:height, :width])
            assert int(got.sum()) == int(wanted.sum())
