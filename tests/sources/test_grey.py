"""Grey and 16-bit images stay what they are, in files and in stores."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from PIL import Image

from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header, read_image
from densepath.sources.image_files import ImageFiles
from densepath.sources.open import open_images
from densepath.sources.packed import PackedTiles
from densepath.sources.packing import open_store, pack
from densepath.sources.pixel_source import PixelSource, PixelSpec

HEIGHT, WIDTH = 9, 14


def noise(channels: int, seed: int = 0, most: int = 65535) -> npt.NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, most + 1, (HEIGHT, WIDTH, channels), dtype=np.uint16)


def write_png16(path: Path, pixels: npt.NDArray[np.uint16]) -> None:
    """Pillow writes no 16-bit color."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def write(path: Path, pixels: npt.NDArray[np.uint16], **options: object) -> None:
    if path.suffix == ".png":
        write_png16(path, pixels)
    else:
        alpha = {"extrasamples": ["unassalpha"]} if pixels.shape[2] in (2, 4) else {}
        photometric = "rgb" if pixels.shape[2] > 2 else "minisblack"
        tifffile.imwrite(path, pixels.squeeze(), photometric=photometric, **alpha, **options)  # type: ignore[arg-type]


FILES = ["a.png", "a.tif"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_kept(tmp_path: Path, name: str, channels: int) -> None:
    pixels = noise(channels)
    write(tmp_path / name, pixels)
    header = read_header(tmp_path / name)
    assert (header.height, header.width, header.grey, header.bits) == (HEIGHT, WIDTH, channels <= 2, 16)
    grey = read_image(tmp_path / name, channels=1, dtype=np.uint16)
    rgb = read_image(tmp_path / name, channels=3, dtype=np.uint16)
    assert grey.dtype == rgb.dtype == np.uint16 and grey.shape == (HEIGHT, WIDTH, 1) and rgb.shape == (HEIGHT, WIDTH, 3)
    values = pixels.astype(np.float64)
    color = values if channels in (1, 3) else values[..., :-1]
    if channels <= 2:
        assert np.array_equal(grey, pixels[..., :1])  # the alpha channel of grey is dropped
    on_white = color
    if channels in (2, 4):
        alpha = values[..., -1:] / 65535
        on_white = color * alpha + 65535 * (1 - alpha)
    assert np.abs(rgb - on_white).max() <= 0.5
    if channels >= 3:
        assert np.abs(grey[..., 0] - on_white @ [0.299, 0.587, 0.114]).max() <= 1


@pytest.mark.parametrize(
    "options",
    [{"byteorder": ">"}, {"compression": "zlib"}, {"planarconfig": "separate"}, {"photometric": "miniswhite"}],
)
def test_16_bit_tiffs_of_every_layout(tmp_path: Path, options: dict) -> None:
    options = dict(options)
    channels = 3 if "planarconfig" in options else 1
    pixels = noise(channels)
    stored = np.moveaxis(pixels, -1, 0) if "planarconfig" in options else pixels.squeeze()
    photometric = options.pop("photometric", "rgb" if channels == 3 else "minisblack")
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, **options)
    expected = 65535 - pixels if photometric == "miniswhite" else pixels
    assert np.array_equal(read_image(tmp_path / "a.tif", channels=channels, dtype=np.uint16), expected)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_large_16_bit_images_are_averaged_over_blocks(tmp_path: Path, factor: int, channels: int) -> None:
    pixels = noise(channels)
    write(tmp_path / "a.png", pixels)
    max_side = -(-WIDTH // factor)
    reduced = read_image(tmp_path / "a.png", max_side, channels, np.uint16)
    header = read_header(tmp_path / "a.png", max_side)
    assert reduced.shape == (header.height, header.width, channels)
    for row in range(reduced.shape[0]):
        for column in range(reduced.shape[1]):
            rows, columns = (slice(k * factor, (k + 1) * factor) for k in (row, column))
            mean = pixels[rows, columns].astype(float).mean(axis=(0, 1))
            assert np.abs(reduced[row, column] - mean).max() <= 0.5


def test_8_bits_become_16_by_257(tmp_path: Path) -> None:
    grey = (noise(1) >> 8).astype(np.uint8)
    Image.fromarray(grey[..., 0]).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", channels=1, dtype=np.uint16), grey * np.uint16(257))
    assert np.array_equal(read_image(tmp_path / "a.png", channels=1), grey)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.repeat(grey, 3, axis=2))


def test_alpha_of_8_bit_grey_is_dropped_and_color_becomes_luma(tmp_path: Path) -> None:
    pixels = (noise(2) >> 8).astype(np.uint8)
    Image.fromarray(pixels, "LA").save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", channels=1), pixels[..., :1])
    color = (noise(3) >> 8).astype(np.uint8)
    Image.fromarray(color).save(tmp_path / "b.png")
    luma = color @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_image(tmp_path / "b.png", channels=1)[..., 0] - luma).max() <= 0.51


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", FILES)
def test_16_bit_files_that_are_cut_off_say_so(tmp_path: Path, name: str, share: float) -> None:
    write(tmp_path / name, noise(3))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CorruptImage, match=name):
        read_image(tmp_path / name, channels=3, dtype=np.uint16)


def images_of(source: PixelSource, index: list[int]) -> list[npt.NDArray]:
    part = source.gather(torch.tensor(index))
    return [pixels[:h, :w].numpy() for pixels, (h, w) in zip(part.pixels, part.sizes.tolist(), strict=True)]


KINDS = {
    "grey 8": ([(1, 8), (1, 8)], 1, torch.uint8, (0, 255)),
    "grey 16": ([(1, 16), (1, 16)], 1, torch.uint16, (0, 65535)),
    "grey 8 and 16": ([(1, 8), (1, 16)], 1, torch.uint16, (0, 65535)),
    "rgb 8": ([(3, 8), (3, 8)], 3, torch.uint8, (0, 255)),
    "grey and rgb": ([(1, 8), (3, 8)], 3, torch.uint8, (0, 255)),
    "all": ([(1, 8), (3, 16)], 3, torch.uint16, (0, 65535)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_has_one_kind_of_pixels_however_it_is_read(tmp_path: Path, kind: str) -> None:
    files, channels, dtype, window = KINDS[kind]
    folder = tmp_path / "tiles"
    folder.mkdir()
    expected = []
    for position, (stored, bits) in enumerate(files):
        pixels = noise(stored, position)
        if bits == 8:
            pixels = (pixels >> 8).astype(np.uint8)
            Image.fromarray(pixels.squeeze()).save(folder / f"{position}.png")
            pixels = pixels.astype(np.uint16) * 257 if dtype == torch.uint16 else pixels
        else:
            write(folder / f"{position}.png", pixels)
        expected.append(np.repeat(pixels, channels // stored, axis=2))
    stored_file = pack(folder, tmp_path / "s.safetensors")
    statistics = (PixelSpec().mean, PixelSpec().std) if channels == 3 else ((0.449,), (0.226,))
    sources = [open_images(folder, cache=cache) for cache in ("none", "ram")]  # type: ignore[arg-type]
    for source in (*sources, open_images(stored_file)):
        assert source.spec == PixelSpec(2, channels, tuple(map(float, window)), *statistics)
        assert source.dtype == dtype
        for image, pixels in zip(images_of(source, [0, 1]), expected, strict=True):
            assert np.array_equal(image, pixels)
        assert all(np.array_equal(source.read(k), expected[k]) for k in (0, 1))


@pytest.mark.parametrize(("most", "window"), [(200, 511), (1000, 1023), (4095, 4095), (4096, 8191), (65535, 65535)])
def test_the_window_of_16_bit_images_reaches_to_the_highest_bit(tmp_path: Path, most: int, window: int) -> None:
    pixels = noise(1, most=most)
    pixels[0, 0] = most
    write(tmp_path / "a.png", pixels)
    assert ImageFiles([tmp_path / "a.png"]).spec.window == (0, window)


def test_a_file_outside_the_sample_is_turned_into_the_sources_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densepath.sources.image_files.SAMPLE", 2)
    for position in range(4):
        Image.fromarray((noise(1, position)[..., 0] >> 8).astype(np.uint8)).save(tmp_path / f"{position}.png")
    color = noise(3)
    write(tmp_path / "3.png", color)
    source = ImageFiles(sorted(tmp_path.iterdir()))
    assert (source.channels, source.dtype) == (1, torch.uint8)
    image = source.read(3)
    luma = (color >> 8) @ np.array([0.299, 0.587, 0.114])
    assert image.shape == (HEIGHT, WIDTH, 1) and np.abs(image[..., 0] - luma).max() <= 0.51


def test_a_spec_that_was_set_stays_with_the_images(tmp_path: Path) -> None:
    write(tmp_path / "a.png", noise(1))
    source = open_images(tmp_path, cache="none")
    source.spec = source.spec.override(window=(100, 2000), mean=(0.3,), std=(0.1,))
    assert (source.spec.window, source.spec.mean, source.spec.std) == ((100.0, 2000.0), (0.3,), (0.1,))


def test_stores_hold_the_bytes_of_16_bit_tiles_and_their_spec(tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    folder.mkdir()
    tiles = [noise(1, position, most=4095) for position in range(3)]
    for position, tile in enumerate(tiles):
        write(folder / f"{position}.png", tile)
    store = open_store(pack(folder, tmp_path / "s.safetensors"))
    assert isinstance(store, PackedTiles) and store.pixels.dtype == torch.uint16 and store.uniform
    assert store.spec == PixelSpec.default(1, (0.0, 4095.0))
    assert np.array_equal(store.pixels.numpy(), np.concatenate([tile.reshape(-1) for tile in tiles]))
