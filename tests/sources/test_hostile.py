"""Files made to harm: they are refused by one line, and take no memory to speak of."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densepath.annotations.coco import CocoImages, open_split
from densepath.annotations.coco_writing import write_coco
from densepath.core.errors import UserError
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_image, read_size
from densepath.sources.listing import find_images
from densepath.sources.packing import open_store, pack
from densepath.transfer.detection.average_precision import average_precision

# Numbers at which readers are known to stumble, as files hold them.
_ODD = [struct.pack(f"{order}{kind}", n) for order in "<>" for kind, n in [("I", 2**31 - 1), ("I", 2**32 - 1)]]
_ODD += [b"\0\0\0\0", b"\1\0\0\0", b"\0\0\0\1", struct.pack("<Q", 2**62), struct.pack(">Q", 2**62), b"\xff\xd8", b"\n"]


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[float, float, bytes, bool]]:
    """What may happen to a file: where (a place, and whether it is near an end), the new bytes, and whether they are
    inserted or replace others."""
    where = st.floats(0, 1, exclude_max=True)
    what = st.sampled_from(_ODD) | st.binary(min_size=1, max_size=4)
    return draw(st.lists(st.tuples(where, where, what, st.booleans()), min_size=1, max_size=6))


def mutated(data: bytes, changes: list[tuple[float, float, bytes, bool]], keep: float = 1.0) -> bytes:
    """The bytes with some changed, most of them in the headers and tables at both ends, up to a share of the length."""
    content = bytearray(data)
    for place, region, new, inserted in changes:
        span = min(len(content), 400) if region < 0.75 else len(content)
        start = int(place * span) if region < 0.5 else len(content) - 1 - int(place * span)
        content[max(start, 0) : max(start, 0) + (0 if inserted else len(new))] = new
    return bytes(content[: round(keep * len(content))])


def pixels(channels: int = 3, dtype: Any = np.uint8, size: tuple[int, int] = (24, 34)) -> np.ndarray:
    generator = np.random.default_rng(channels)
    return generator.integers(0, np.iinfo(dtype).max, (*size, channels), dtype=dtype).squeeze()


def _pillow(kind: str, image: np.ndarray | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels() if image is None else image).save(file, format=kind, **options)
    return file.getvalue()


def _tiff(image: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, image, **options)
    return file.getvalue()


WHOLE = {
    "png": _pillow("png"),
    "png with a palette": _pillow("png", np.eye(20, dtype=bool)),
    "png with alpha and 16 bits": _pillow("png", pixels(1, np.uint16)),
    "jpeg": _pillow("jpeg"),
    "progressive jpeg": _pillow("jpeg", progressive=True),
    "webp": _pillow("webp"),
    "lossless webp": _pillow("webp", pixels(4), lossless=True),
    "bmp": _pillow("bmp"),
    "tiff": _pillow("tiff"),
    "lzw tiff": _pillow("tiff", compression="tiff_lzw"),
    "jpeg tiff": _pillow("tiff", compression="jpeg"),
    "turned tiff": _pillow("tiff", compression="tiff_deflate", tiffinfo={274: 3}),
    "16-bit tiff": _tiff(pixels(3, np.uint16), photometric="rgb"),
    "16-bit deflated tiff": _tiff(pixels(3, np.uint16), photometric="rgb", compression="zlib", rowsperstrip=8),
    "turned packed tiff": _pillow("tiff", compression="packbits", tiffinfo={274: 3}),
    "tiled tiff": _tiff(pixels(3, np.uint16), photometric="rgb", tile=(16, 16), compression="zlib", predictor=True),
    "tiff of planes": _tiff(np.moveaxis(pixels(), -1, 0), photometric="rgb", planarconfig="separate"),
    "big-endian bigtiff": _tiff(pixels(3, np.uint16), photometric="rgb", bigtiff=True, byteorder=">"),
}


def _read(path: Path) -> None:
    for read in (read_size, read_image):
        try:
            read(path, 16)
        except CorruptImage as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("kind", WHOLE)
def test_whatever_happens_to_an_image_it_is_read_or_refused(kind: str, tmp_path: Path, bounded_memory: Any) -> None:
    path = tmp_path / "image"
    path.write_bytes(WHOLE[kind])
    read_image(path)

    @settings(max_examples=25)
    @given(changes=mutations(), keep=st.just(1.0) | st.floats(0, 1))
    def fuzz(changes: list[tuple[float, float, bytes, bool]], keep: float) -> None:
        path.write_bytes(mutated(WHOLE[kind], changes, keep))
        _read(path)

    with warnings.catch_warnings(action="ignore"), bounded_memory(600, most=1536):
        fuzz()


def tiff_of(tags: dict[int, int], parts: list[bytes]) -> bytes:
    """A TIFF of four 16-bit channels: ``tags`` besides those of its parts, which are strips or tiles."""
    offsets = 325 if 322 in tags else 279
    known = {258: 16, 262: 2, 277: 4, offsets - 1 if offsets == 325 else 273: 8, offsets: len(parts[0])}
    entries = sorted((known | tags).items())
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    directory = 8 + len(parts[0])
    return b"II*\0" + struct.pack("<I", directory) + parts[0] + struct.pack("<H", len(entries)) + table + b"\0" * 4


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


ZEROS = zlib.compress(bytes(2**27), 1)  # 128 MiB
SMALL = {256: 16, 257: 16, 278: 16, 274: 3}  # turned: Pillow leaves it to tifffile
TILED = {256: 16, 257: 16, 322: 16, 323: 16, 274: 3}
HEAD = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
BOMBS = {
    "huge tiles": tiff_of(TILED | {322: 2**14, 323: 2**13, 259: 8}, [ZEROS]),
    "huge tiles that Pillow reads": tiff_of(
        TILED | {274: 1, 258: 8, 277: 1, 262: 1, 322: 2**14, 323: 2**14, 259: 8}, [ZEROS]
    ),
    "volume": tiff_of(SMALL | {259: 1, 32997: 2**24}, [bytes(2048)]),
    "part longer than the file": tiff_of(SMALL | {259: 8, 279: 2**32 - 1}, [zlib.compress(bytes(2048))]),
    "profile that swells": HEAD + chunk(b"iCCP", b"name\0\0" + ZEROS) + chunk(b"IDAT", zlib.compress(bytes(49 * 16))),
    "text that swells": HEAD + chunk(b"zTXt", b"name\0\0" + ZEROS) + chunk(b"IDAT", zlib.compress(bytes(49 * 16))),
    "pixels that swell": HEAD + chunk(b"IDAT", ZEROS) + chunk(b"IEND", b""),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_images_that_expand_take_no_memory(kind: str, tmp_path: Path, bounded_memory: Any) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[kind])
    tracemalloc.start()
    try:
        with warnings.catch_warnings(action="ignore"), bounded_memory(60):
            try:
                assert read_image(path).shape == (16, 16, 3)
            except CorruptImage as error:
                assert len(error.why) > 5
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def webp(side: int, frame: int, content: int = 16, padding: int = 0) -> bytes:
    """An animation of one frame: the sides of its canvas, of its frame by its head and in fact."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def number(value: int) -> bytes:
        return struct.pack("<I", value)[:3]

    picture = _pillow("webp", np.full((content, content, 3), 99, np.uint8), lossless=True)[12:]
    head = chunk(b"VP8X", bytes([2, 0, 0, 0]) + number(side - 1) * 2) + chunk(b"ANIM", bytes(6))
    frames = chunk(b"ANMF", number(0) * 2 + number(frame - 1) * 2 + number(100) + b"\0" + picture)
    return chunk(b"RIFF", b"WEBP" + head + frames + chunk(b"XXXX", bytes(padding)))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (webp(9000, 16), "an animation whose first frame is a part"),
        (webp(9000, 9000), r"9000 x 9000 px in \d+ bytes"),
        (webp(9000, 9000, padding=10**6), r"9000 x 9000 px in [\d,]+ bytes"),
        (_pillow("webp", np.zeros((5000, 5000, 3), np.uint8), lossless=True), r"5000 x 5000 px in [\d,]+ bytes"),
    ],
    ids=["part", "animation", "padded", "still"],
)
def test_a_webp_of_few_bytes_takes_no_memory(content: bytes, why: str, tmp_path: Path, bounded_memory: Any) -> None:
    (tmp_path / "a.webp").write_bytes(content)
    for read in (read_size, read_image):
        with bounded_memory(30), pytest.raises(CorruptImage, match=why):
            read(tmp_path / "a.webp")


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels(4, size=(20, 30)) // (1 + number)) for number in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(tmp_path / "b.webp", lossless=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp"), read_image(tmp_path / "b.webp"))
    rgb = [frame.convert("RGB") for frame in frames]
    rgb[0].save(tmp_path / "a.webp", save_all=True, append_images=rgb[1:], quality=90)
    first = Image.open(tmp_path / "a.webp")
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp"), np.asarray(first.convert("RGB")))


def test_a_jpeg_of_many_scans_is_refused(tmp_path: Path) -> None:
    data = _pillow("jpeg", np.zeros((1000, 1000, 3), np.uint8), progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "few.jpg").write_bytes(data)
    (tmp_path / "many.jpg").write_bytes(data[:-2] + scan * 1100 + b"\xff\xd9")
    assert read_image(tmp_path / "few.jpg").shape == (1000, 1000, 3)
    with pytest.raises(CorruptImage, match=r"11\d\d progressive scans of 1,000,000 px; save it as a baseline JPEG"):
        read_image(tmp_path / "many.jpg")


@pytest.mark.parametrize("tiled", [False, True])
def test_parts_are_read_however_well_they_compress(tiled: bool, tmp_path: Path) -> None:
    image = np.zeros((400, 300, 3), np.uint16)
    shape = {"tile": (64, 64)} if tiled else {"rowsperstrip": 64}
    for compression in ("zlib", "lzma"):
        tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", compression=compression, **shape)
        assert read_image(tmp_path / "a.tif").shape == image.shape


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A packed store of four images."""
    (tmp_path / "tiles").mkdir()
    for number, size in enumerate([(8, 6), (3, 7), (5, 5), (8, 6)]):
        Image.fromarray(pixels(size=size)).save(tmp_path / "tiles" / f"{number}.png")
    return pack(tmp_path / "tiles", tmp_path / "store.safetensors")


def _use_store(path: Path) -> None:
    """Open a store and read all of it; or get an error that names it."""
    try:
        images = open_store(path)
    except UserError as error:
        assert path.name in str(error) and "\n" not in str(error)
        return
    assert images.smallest()[1] >= 1
    assert all(images.names(position) is not None for position in range(len(images)))
    part = images.gather(torch.arange(len(images)))
    assert part.pixels.nbytes <= 2**20


def test_whatever_happens_to_a_store_it_is_opened_or_refused(store: Path, bounded_memory: Any) -> None:
    data = store.read_bytes()

    @settings(max_examples=60)
    @given(changes=mutations(), keep=st.just(1.0) | st.floats(0, 1))
    def fuzz(changes: list[tuple[float, float, bytes, bool]], keep: float) -> None:
        store.write_bytes(mutated(data, changes, keep))
        _use_store(store)

    with bounded_memory(200):
        fuzz()


NUMBERS = st.integers() | st.sampled_from([0, -1, 2**31, 2**32, 2**63, 2**64, 10**30]) | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.sampled_from(["\0", "../../x", "\ud800", "1"]),
    lambda values: st.lists(values, max_size=5) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=6,
)


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values inside a value of JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inside:
        yield (*here, key)
        yield from places(entry, (*here, key))


def changed(value: Any, data: st.DataObject) -> Any:
    """A value of JSON with some of its parts replaced, removed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(list(places(value)) or [("images",)]))
        holder = value
        for key in way:
            holder = holder[key]
        what = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "double"]))
        if what == "replace":
            holder[last] = data.draw(VALUES)
        elif what == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        else:
            del holder[last]
    return value


def test_whatever_the_header_of_a_store_says_it_is_opened_or_refused(store: Path, bounded_memory: Any) -> None:
    data = store.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])

    @settings(max_examples=80)
    @given(data=st.data())
    def fuzz(data: st.DataObject) -> None:
        text = json.dumps(changed(header, data)).encode()
        store.write_bytes(whole[:8] + text.ljust(length) + whole[8 + length :])
        _use_store(store)

    whole = data
    with bounded_memory(400):
        fuzz()


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("sizes", [[2**31 - 1, 2**31 - 1]] * 4),
        ("sizes", [[0, 0]] * 4),
        ("offsets", [0, -144, 0, 0]),
        ("name_starts", [0, -(2**40), 2**40, 3, 20]),
        ("name_starts", [2**62, 5, 10, 15, 20]),
    ],
)
def test_absurd_tables_of_a_store_are_refused(table: str, values: list[Any], store: Path) -> None:
    data = bytearray(store.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:start])[table]
    begin, end = (start + place for place in entry["data_offsets"])
    data[begin:end] = np.array(values, {"I32": "<i4", "I64": "<i8"}[entry["dtype"]]).tobytes()
    store.write_bytes(data)
    with pytest.raises(UserError, match=r"store\.safetensors is damaged"):
        open_store(store)


@pytest.mark.parametrize("shape", [[2**26, [None]], [2.0, 10], [-2, -10], [True, 20], ["20"], None])
def test_absurd_shapes_in_the_header_of_a_store_are_refused(
    shape: Any, store: Path, tmp_path: Path, bounded_memory: Any
) -> None:
    data = store.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["names"]["shape"] = shape
    store.write_bytes(data[:8] + json.dumps(header).encode().ljust(length) + data[8 + length :])
    with bounded_memory(100), pytest.raises(UserError, match=r"store\.safetensors is damaged"):
        open_store(store)


@pytest.mark.parametrize("length", [2**20 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_absurd_length_is_not_read(length: int, tmp_path: Path, bounded_memory: Any) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b'{"pixels":' + b"[" * 10**6)
    with bounded_memory(100), pytest.raises(UserError, match=r"a\.safetensors"):
        open_store(path)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A data set whose outlines have all forms that COCO knows."""
    folder = tmp_path_factory.mktemp("coco") / "data"
    labels = np.random.default_rng(0).integers(0, 4, (20, 31)).astype(np.int32)
    images = [(f"im_{i}", pixels(size=(20, 31)), labels) for i in range(2)]
    write_coco(folder, {"train": images})
    content = json.loads((folder / "annotations" / "train.json").read_text())
    content["annotations"][0] |= {"segmentation": [[3, 2, 9, 2, 9, 6, 3, 6]], "bbox": [3, 2, 6, 4]}
    content["annotations"][1]["segmentation"] = {"size": [20, 31], "counts": [5, 20 * 31 - 5]}
    return folder, content


def test_whatever_a_coco_json_says_it_is_used_or_refused(
    truth: tuple[Path, dict[str, Any]], bounded_memory: Any
) -> None:
    folder, content = truth
    path = folder / "annotations" / "train.json"
    path.write_text(json.dumps(content))
    assert len(open_split(folder, "train")) == 2

    @settings(max_examples=80)
    @given(data=st.data())
    def fuzz(data: st.DataObject) -> None:
        path.write_text(json.dumps(changed(content, data)))
        try:
            images = open_split(folder, "train")
        except UserError as error:
            assert "train.json" in str(error) and "\n" not in str(error)
            return
        for index, sample in enumerate(images):
            assert sample["masks"].shape == (len(sample["boxes"]), 20, 31) == (len(sample["labels"]), 20, 31)
            assert images.label_map(index).max() <= len(sample["masks"])
            assert np.isfinite(sample["boxes"]).all()
        with suppress(UserError):  # nothing is left to be found
            scores = average_precision(images.coco_ground_truth(), [])
            assert all(math.isfinite(score) for score in scores.values())

    with bounded_memory(400):
        fuzz()


@pytest.mark.parametrize("text", ["[" * 10**5, '{"images":' * 10**5, "1" * 10**4, "\xff"])
def test_a_json_that_is_too_deep_or_too_long_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"a\.json"):
        CocoImages(tmp_path, tmp_path / "a.json")


def test_names_may_lead_elsewhere_but_only_to_images(tmp_path: Path) -> None:
    """Lists and COCO files are read where they point to, as links are; nothing but an image comes of it."""
    (tmp_path / "tiles").mkdir()
    (tmp_path / "lists").mkdir()
    Image.fromarray(pixels()).save(tmp_path / "tiles" / "a.png")
    (tmp_path / "secret").write_text("a password")
    listing = tmp_path / "lists" / "list.txt"
    listing.write_text("../tiles/a.png\n../secret\n")
    first, second = find_images(listing)
    assert first.samefile(tmp_path / "tiles" / "a.png")
    with pytest.raises(CorruptImage, match="not an image") as error:
        read_image(second)
    assert "password" not in str(error.value)
    os.mkfifo(tmp_path / "lists" / "pipe.png")
    listing.write_text(f"pipe.png\n/dev/zero\n{'x' * 5000}\n\0\n")
    with pytest.raises(UserError, match=r"line 1: pipe\.png; line 2: /dev/zero.* and 1 more"):
        find_images(listing)
