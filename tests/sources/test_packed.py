"""Packed stores of any dtype, of 2 and 3 dimensions, read whole and in boxes."""

from __future__ import annotations

import errno
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from benchmarks.pretended_gpu import pretended_gpu
from densepath.core.errors import UserError
from densepath.sources import image_files
from densepath.sources import packed as packed_module
from densepath.sources.corrupt import LARGEST_SHARE, CorruptImage
from densepath.sources.packed import PackedTiles
from densepath.sources.packing import open_store, pack, write_store
from densepath.sources.path_table import PathTable
from densepath.sources.pixel_source import PixelSpec

SIZES = {
    "tiles of one size": [(6, 8)] * 4,
    "tiles": [(6, 8), (3, 9), (7, 2), (6, 8)],
    "volumes": [(4, 6, 5), (2, 7, 3), (5, 3, 6), (4, 4, 4)],
    "volumes of one size": [(4, 6, 5)] * 4,
}
DTYPES = [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float16, np.float32, np.float64]


def images_of(sizes: list[tuple[int, ...]], channels: int, dtype: npt.DTypeLike) -> list[npt.NDArray]:
    rng = np.random.default_rng(0)
    return [(rng.normal(0, 40, (*size, channels)) % 100).astype(dtype) for size in sizes]


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(("channels", "dtype"), [(1, dtype) for dtype in DTYPES] + [(3, np.int16), (5, np.uint8)])
def test_a_store_gives_back_images_of_any_kind(tmp_path: Path, kind: str, channels: int, dtype: npt.DTypeLike) -> None:
    images = images_of(SIZES[kind], channels, dtype)
    ndim = len(SIZES[kind][0])
    spec = PixelSpec.default(channels, (-50.0, 50.0), ndim)
    spacing = np.arange(4 * ndim, dtype=np.float32).reshape(4, ndim) + 1
    store = open_store(write_store(tmp_path / "s.safetensors", images, "abcd", spec, spacing))
    assert (len(store), store.spec, store.names(2)) == (4, spec, "c")
    index = torch.tensor([2, 0, 3, 2])
    part = store.gather(index)
    assert part.pixels.numpy().dtype == dtype
    assert part.sizes.tolist() == [list(SIZES[kind][k]) for k in index.tolist()] == store.sizes(index).tolist()
    assert torch.equal(store.spacing(index), torch.from_numpy(spacing)[index])  # type: ignore[arg-type]
    for pixels, position in zip(part.pixels.numpy(), index.tolist(), strict=True):
        corner = tuple(slice(n) for n in SIZES[kind][position])
        assert np.array_equal(pixels[corner], images[position])
        assert np.count_nonzero(pixels) == np.count_nonzero(images[position])
        assert np.array_equal(store.read(position), images[position])


def test_pixels_of_another_byte_order_keep_their_values(tmp_path: Path) -> None:
    images = images_of(SIZES["tiles"], 3, np.int16)
    store = open_store(write_store(tmp_path / "s.safetensors", [i.astype(">i2") for i in images], "abcd", PixelSpec()))
    assert store.dtype == torch.int16
    assert all(np.array_equal(store.read(k), image) for k, image in enumerate(images))


_IMAGE = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "names", "spacing", "message"),
    [
        ([], "", None, "at least one image"),
        ([_IMAGE] * 2, "a", None, "2 images cannot have 1 name"),
        ([_IMAGE], "ab", None, "1 image cannot have 2 names"),
        ([_IMAGE, _IMAGE[..., :1]], "ab", None, r"image 1 has the shape \[4, 5, 1\]; give height x width x 3"),
        ([_IMAGE[..., 0]], "a", None, r"image 0 has the shape \[4, 5\]"),
        ([_IMAGE[:0]], "a", None, r"image 0 has the shape \[0, 5, 3\]"),
        ([_IMAGE > 0], "a", None, "image 0 is bool; convert it to whole numbers or floats"),
        ([_IMAGE.astype(np.uint16), _IMAGE.astype(np.int16)], "ab", None, "image 1 is int16, and those before"),
        ([_IMAGE] * 2, "ab", np.ones((1, 2)), r"spacing has the shape \[1, 2\], not \[2, 2\]"),
        ([_IMAGE], "a", [[0.5, -0.5]], "spacing must be positive"),
    ],
)
def test_what_does_not_fit_in_a_store_is_refused(
    tmp_path: Path, images: list[npt.NDArray], names: str, spacing: npt.ArrayLike, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_store(tmp_path / "s.safetensors", images, names, PixelSpec(), spacing)
    assert not list(tmp_path.iterdir())


def test_a_store_is_a_new_file_with_its_suffix(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.safetensors", [_IMAGE], "a", PixelSpec(), [[0.5, 0.5]])
    with pytest.raises(UserError, match="already exists"):
        write_store(path, [_IMAGE], "a", PixelSpec())
    with pytest.raises(UserError, match=r"name it s\.bin\.safetensors"):
        write_store(tmp_path / "s.bin", [_IMAGE], "a", PixelSpec())


def test_a_store_lacks_no_image_that_a_later_attempt_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    read = image_files.read_image

    def failing(path: Any, *given: Any) -> Any:
        if str(path).endswith("1.png"):
            raise CorruptImage(str(path), "cannot be read") from PermissionError(errno.EACCES, "Permission denied")
        return read(path, *given)

    monkeypatch.setitem(LARGEST_SHARE, 2, 0.5)
    monkeypatch.setattr(image_files, "read_image", failing)
    with pytest.raises(UserError, match=r"1 image cannot be read now: .*1\.png"):
        pack(tmp_path, tmp_path / "s.safetensors")
    assert not (tmp_path / "s.safetensors").exists()


@pytest.mark.parametrize("kind", SIZES)
def test_boxes_are_the_parts_of_the_images(tmp_path: Path, kind: str) -> None:
    images = images_of(SIZES[kind], 2, np.int16)
    ndim = len(SIZES[kind][0])
    store = open_store(write_store(tmp_path / "s.safetensors", images, "abcd", PixelSpec.default(2, ndim=ndim)))
    index = torch.tensor([3, 1, 2])
    sizes = store.sizes(index)
    low = (sizes * torch.tensor([[0.0], [0.3], [0.5]])).long()
    boxes = torch.stack((low, torch.minimum(low + 2, sizes)), dim=1)
    part = store.gather(index, boxes)
    assert torch.equal(part.boxes, boxes) and torch.equal(part.sizes, sizes)  # type: ignore[arg-type]
    assert max(part.pixels.shape[1:-1]) <= 2
    for pixels, position, box in zip(part.pixels.numpy(), index.tolist(), boxes.tolist(), strict=True):
        inside = images[position][tuple(slice(a, b) for a, b in zip(*box, strict=True))]
        assert np.array_equal(pixels[tuple(slice(n) for n in inside.shape[:-1])], inside)
        assert np.count_nonzero(pixels) == np.count_nonzero(inside)


ODD = {
    "first": [(7, 8), (6, 8), (6, 8), (6, 8)],
    "in the middle": [(6, 8), (6, 8), (6, 9), (6, 8)],
    "two that fill a row": [(2, 8), (4, 8), (6, 8), (6, 8)],
    "a volume": [(3, 6, 5), (4, 6, 5), (4, 6, 5), (4, 6, 5)],
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ODD)
def test_a_part_gives_its_own_images_wherever_it_leaves_one_of_another_size_out(
    tmp_path: Path, kind: str, device: str
) -> None:
    sizes = ODD[kind]
    images = images_of(sizes, 3, np.uint16)
    spec = PixelSpec.default(3, (0.0, 100.0), len(sizes[0]))
    store = open_store(write_store(tmp_path / "s.safetensors", images, "abcd", spec))
    with nullcontext() if device == "cpu" or torch.cuda.is_available() else pretended_gpu():
        store = store.to(device)
        for chosen in ([1, 3], [3, 1], [2, 3], [0, 3], [0, 1, 2, 3]):
            part = store.take(torch.tensor(chosen))
            index = torch.arange(len(part)).flip(0)
            pixels = part.gather(index).pixels.cpu().numpy()
            for image, position in zip(pixels, index.tolist(), strict=True):
                expected = images[chosen[position]]
                assert np.array_equal(part.read(position), expected)
                assert np.array_equal(image[tuple(map(slice, expected.shape))], expected)


def test_parts_of_images_in_memory_have_digests_of_their_own(tmp_path: Path) -> None:
    pixels = torch.arange(4 * 6 * 8, dtype=torch.uint8)
    tables = torch.full((4, 2), 6, dtype=torch.int32) + torch.tensor([0, 2], dtype=torch.int32), torch.arange(4) * 48
    whole = PackedTiles(pixels, *tables, PathTable.of("abcd"), spec=PixelSpec.default(1))
    parts = [whole.take(torch.tensor(chosen)).digest(tmp_path) for chosen in ([0, 1], [2, 3])]
    assert len({*parts, whole.digest(tmp_path)}) == 3


@pytest.mark.parametrize("max_side", [0, -1])
def test_a_side_is_positive(tmp_path: Path, max_side: int) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=f"max_side is {max_side}; give the longest side"):
        pack(tmp_path, tmp_path / "s.safetensors", max_side=max_side)


def test_boxes_are_read_of_large_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_store(tmp_path / "s.safetensors", images_of([(6, 8), (3, 9)], 3, np.uint8), "ab", PixelSpec())
    assert not open_store(path).reads_boxes
    for limit, reads in ((48, False), (47, True)):
        monkeypatch.setattr(packed_module, "_LARGE", limit)
        assert open_store(path).reads_boxes == reads


def test_stores_of_version_1_still_open(tmp_path: Path) -> None:
    images = images_of([(6, 8), (3, 9)], 3, np.uint8)
    path = write_store(tmp_path / "s.safetensors", images, "ab", PixelSpec())
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = {"format": "densepath-tiles", "version": "1", "count": "2"}  # all that it said
    path.write_bytes(data[:8] + json.dumps(header).encode().ljust(length) + data[8 + length :])
    store = open_store(path)
    assert store.spec == PixelSpec()
    assert all(np.array_equal(store.read(k), images[k]) for k in (0, 1))


@pytest.mark.parametrize(
    "pixels",
    [
        "nonsense",
        "[]",
        "{}",
        json.dumps({"channels": 3, "mean": [1]}),
        json.dumps(PixelSpec.default(1).record()),  # other channels than the pixels have
        json.dumps(PixelSpec.default(3, ndim=3).record()),
        json.dumps(PixelSpec().record() | {"channels": 10**30}),
    ],
)
def test_a_store_whose_spec_does_not_fit_is_refused(tmp_path: Path, pixels: str) -> None:
    path = write_store(tmp_path / "s.safetensors", images_of([(6, 8), (3, 9)], 3, np.uint8), "ab", PixelSpec())
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["pixels"] = pixels
    path.write_bytes(data[:8] + json.dumps(header).encode().ljust(length) + data[8 + length :])
    if pixels == "{}":
        assert open_store(path).spec == PixelSpec()  # all that a record may leave out
        return
    with pytest.raises(UserError, match=r"s\.safetensors is damaged"):
        open_store(path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_a_store_on_a_gpu_gives_the_same_images_and_boxes(tmp_path: Path, kind: str, dtype: npt.DTypeLike) -> None:
    ndim = len(SIZES[kind][0])
    spec = PixelSpec.default(1, ndim=ndim)
    store = open_store(write_store(tmp_path / "s.safetensors", images_of(SIZES[kind], 1, dtype), "abcd", spec))
    there = store.to("cuda")
    index = torch.tensor([3, 1, 2])
    boxes = torch.stack((torch.zeros(3, ndim, dtype=torch.int64), torch.full((3, ndim), 2)), dim=1)
    for wanted in (None, boxes):
        here, gathered = store.gather(index, wanted), there.gather(index, wanted)
        assert gathered.pixels.is_cuda and gathered.pixels.dtype == here.pixels.dtype
        assert torch.equal(gathered.pixels.cpu().float(), here.pixels.float())
        assert torch.equal(gathered.pixels.float().cpu(), here.pixels.float())
