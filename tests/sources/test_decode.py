"""Image files of all kinds, whole and broken."""

from __future__ import annotations

import errno
import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_image, read_size
from densepath.sources.image_reader import open_file

HEIGHT, WIDTH = 24, 34
CHANNELS = {"grey": 1, "grey+alpha": 2, "rgb": 3, "rgba": 4}
PILLOW_MODES = {"grey": "L", "grey+alpha": "LA", "rgb": "RGB", "rgba": "RGBA"}


def smooth(channels: int) -> npt.NDArray[np.uint16]:
    """A 16-bit image without edges, which lossy formats keep nearly as it is."""
    y, x, c = np.mgrid[:HEIGHT, :WIDTH, :channels]
    waves = np.sin(x / 11 + c) + np.cos(y / 9 - 2 * c)
    return ((waves + 2) / 4 * 65535).astype(np.uint16)


def as_rgb(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float64]:
    """What a 16-bit image of 1 to 4 channels should look like in 8 bits, by the definition."""
    values = (pixels // 256).astype(np.float64)
    color, alpha = (values, None) if values.shape[2] in (1, 3) else (values[..., :-1], values[..., -1:] / 255)
    rgb = np.broadcast_to(color, (*color.shape[:2], 3))
    return rgb if alpha is None else alpha * rgb + (1 - alpha) * 255


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


def write(path: Path, kind: str, pixels: npt.NDArray[np.uint16], bits: int) -> None:
    if kind == "png" and bits == 16:
        write_png16(path, pixels)
    elif kind == "tiff":
        alpha = {"extrasamples": ["unassalpha"]} if pixels.shape[2] in (2, 4) else {}
        photometric = "rgb" if pixels.shape[2] > 2 else "minisblack"
        data = pixels if bits == 16 else (pixels // 256).astype(np.uint8)
        tifffile.imwrite(path, data.squeeze(), photometric=photometric, compression="zlib", **alpha)
    else:
        mode = next(mode for name, mode in PILLOW_MODES.items() if CHANNELS[name] == pixels.shape[2])
        image = Image.frombytes(mode, (WIDTH, HEIGHT), (pixels // 256).astype(np.uint8).tobytes())
        image.save(path, format=kind, quality=98)


CASES = [
    *(("png", color, bits, 1) for color in CHANNELS for bits in (8, 16)),
    *(("tiff", color, bits, 1) for color in CHANNELS for bits in (8, 16)),
    *(("webp", color, 8, 12) for color in ("rgb", "rgba")),
    *(("jpeg", color, 8, 8) for color in ("grey", "rgb")),
    *(("bmp", color, 8, 0) for color in ("grey", "rgb")),
]


@pytest.mark.parametrize(("kind", "color", "bits", "tolerance"), CASES)
def test_every_kind_becomes_8_bit_rgb(tmp_path: Path, kind: str, color: str, bits: int, tolerance: int) -> None:
    pixels = smooth(CHANNELS[color])
    path = tmp_path / "image"  # no suffix: the content decides
    write(path, kind, pixels, bits)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert read_size(path) == (HEIGHT, WIDTH)
    assert np.abs(image - as_rgb(pixels)).max() <= tolerance


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_tiff_of_either_byte_order_keeps_the_upper_bits(tmp_path: Path, byteorder: str, channels: int) -> None:
    pixels = smooth(channels)
    photometric = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", pixels.squeeze(), photometric=photometric, byteorder=byteorder)
    assert (read_image(tmp_path / "a.tif") == as_rgb(pixels)).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_planes_of_a_tiff_become_channels(tmp_path: Path, bits: int, compression: str | None) -> None:
    pixels = smooth(3)
    planes = np.moveaxis(pixels if bits == 16 else (pixels // 256).astype(np.uint8), -1, 0)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", compression=compression)
    assert (read_image(tmp_path / "a.tif") == as_rgb(pixels)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_inverted_tiff_is_turned_right(tmp_path: Path, dtype: type[np.unsignedinteger]) -> None:
    pixels = np.linspace(0, np.iinfo(dtype).max, HEIGHT * WIDTH).astype(dtype).reshape(HEIGHT, WIDTH)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    expected = 255 - (pixels >> (8 * pixels.itemsize - 8))
    assert (read_image(tmp_path / "a.tif")[..., 0] == expected).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("channels", "turned"), [(2, False), (4, False), (2, True)])
def test_channels_that_are_not_transparency_are_refused(
    tmp_path: Path, channels: int, turned: bool, dtype: type[np.unsignedinteger]
) -> None:
    pixels = (smooth(channels) >> (16 - 8 * np.dtype(dtype).itemsize)).astype(dtype)
    photometric = "rgb" if channels == 4 else "minisblack"
    tags = [(274, 3, 1, 3, True)] if turned else []
    options = {"photometric": photometric, "planarconfig": "contig", "extratags": tags}
    tifffile.imwrite(tmp_path / "a.tif", pixels, extrasamples=["unspecified"], **options)
    for read in (read_image, read_size):
        with pytest.raises(CorruptImage, match=f"of its {channels} channels the last is not marked as transparency"):
            read(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", pixels, extrasamples=["unassalpha"], **options)
    assert read_image(tmp_path / "b.tif").shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_png_with_a_large_profile_or_text_is_read(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 600)
    image = image if mode == "I;16" else Image.fromarray(np.asarray(image).astype(np.uint8)).convert(mode)
    image.save(tmp_path / "plain.png")
    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "x" * 2_000_000, zip=True)
    for name, options in {"profile": {"icc_profile": bytes(2_000_000)}, "text": {"pnginfo": notes}}.items():
        image.save(tmp_path / f"{name}.png", **options)
        for channels in (1, 3):
            expected = read_image(tmp_path / "plain.png", channels=channels)
            np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png", channels=channels), expected)


def test_palette_with_a_transparent_color_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "a.png", transparency=1)
    assert read_image(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]


def test_one_bit_and_cmyk_images_become_rgb(tmp_path: Path) -> None:
    bits = np.eye(8, dtype=bool)
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == bits[..., None] * 255).all()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "b.jpg")
    assert np.abs(read_image(tmp_path / "b.jpg").astype(int) - [255, 0, 0]).max() < 5


@pytest.mark.parametrize("kind", ["jpeg", "tiff", "png"])
def test_orientation_is_ignored_in_every_format(tmp_path: Path, kind: str) -> None:
    pixels = (smooth(3) // 256).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.fromarray(pixels).save(tmp_path / "turned", format=kind, exif=exif, quality=98)
    Image.fromarray(pixels).save(tmp_path / "plain", format=kind, quality=98)
    assert read_size(tmp_path / "turned") == (HEIGHT, WIDTH)
    assert (read_image(tmp_path / "turned") == read_image(tmp_path / "plain")).all()


@pytest.mark.parametrize("orientation", [1, 6], ids=["Pillow", "tifffile"])
def test_of_a_pyramid_the_first_page_is_read(tmp_path: Path, orientation: int) -> None:
    pixels = (smooth(3) // 256).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tags = [(274, 3, 1, orientation, True)]
        tiff.write(pixels, photometric="rgb", subifds=1, extratags=tags)
        tiff.write(pixels[::2, ::2], photometric="rgb", subfiletype=1)
        tiff.write(pixels[::2, ::2], photometric="rgb", subfiletype=1)
        tiff.write(pixels[:, :, 0], photometric="minisblack", subfiletype=1)  # reduced in its colors
        tiff.write(pixels[:5], photometric="rgb")  # a label
    assert (read_image(tmp_path / "a.tif") == pixels).all()


@pytest.mark.parametrize("next_page", [9, 10**9])
def test_a_damaged_pointer_to_a_second_page_does_not_matter(tmp_path: Path, next_page: int) -> None:
    pixels = (smooth(3) // 256).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    first = int.from_bytes(content[4:8], "little")
    place = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    content[place : place + 4] = next_page.to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(content)
    assert (read_image(tmp_path / "a.tif") == pixels).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["pages", "turned", "imagej", "imagej with one header"])
def test_stacks_are_refused(tmp_path: Path, kind: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densepath.sources.image_reader._IN_PARTS", 0)
    stack = np.zeros((3, 8, 9, channels), np.uint8).squeeze()
    path, photometric = tmp_path / "a.tif", "rgb" if channels == 3 else "minisblack"
    if kind.endswith("header"):
        tifffile.imwrite(path, stack[0], photometric=photometric, metadata=None, description="ImageJ=1.54\nimages=3\n")
    else:
        turned = [(274, 3, 1, 6, True)] if kind == "turned" else []
        tifffile.imwrite(path, stack, photometric=photometric, imagej=kind == "imagej", extratags=turned)
    for read in (read_image, read_size, open_file):
        with pytest.raises(CorruptImage, match=r"it has several pages of 9 x 8 px \(channels or slices\?\)"):
            read(path)


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr"])
@pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate"])
def test_colors_of_a_tiff_are_converted_or_refused(
    tmp_path: Path, mode: str, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, color = Image.new("RGB", (64, 48), (204, 51, 51)).convert(mode), [204, 51, 51]
    monkeypatch.setattr("densepath.sources.image_reader._IN_PARTS", 0)
    image.save(tmp_path / "a.tif", compression=compression)
    for pixels in (read_image(tmp_path / "a.tif"), open_file(tmp_path / "a.tif").read(0, 0, 48, 64)):
        assert np.abs(pixels.astype(int) - color).max() <= 2
    image.save(tmp_path / "turned.tif", compression=compression, tiffinfo={274: 3})  # tifffile reads it
    for read in (read_image, read_size):
        with pytest.raises(CorruptImage, match=r"its colors are stored as .* and cannot be converted; save it as RGB"):
            read(tmp_path / "turned.tif")


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
@pytest.mark.parametrize("max_side", [33, 17, 16, 9, 8, 5])
def test_large_images_are_averaged_over_blocks(tmp_path: Path, kind: str, max_side: int) -> None:
    pixels = (smooth(3) // 256).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a", format=kind, quality=100)
    image = read_image(tmp_path / "a", max_side)
    factor = -(-WIDTH // max_side)
    assert image.shape[:2] == read_size(tmp_path / "a", max_side) == (-(-HEIGHT // factor), -(-WIDTH // factor))
    assert max(image.shape) <= max_side
    high, wide = HEIGHT // factor, WIDTH // factor  # blocks that are whole
    blocks = pixels[: high * factor, : wide * factor].reshape(high, factor, wide, factor, 3).mean(axis=(1, 3))
    assert np.abs(image[:high, :wide] - blocks).max() <= (1 if kind != "jpeg" else 8)


def test_narrow_jpeg_is_reduced_by_the_whole_factor(tmp_path: Path) -> None:
    Image.new("RGB", (64, 3)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg", 8).shape == (1, 8, 3)
    assert read_size(tmp_path / "a.jpg", 8) == (1, 8)


@pytest.mark.parametrize("max_side", [None, WIDTH, 1024])
def test_images_that_fit_are_not_reduced(tmp_path: Path, max_side: int | None) -> None:
    pixels = (smooth(3) // 256).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", max_side) == pixels).all()


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, on broken tags
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp", "bmp"])
def test_files_cut_off_anywhere_say_so(tmp_path: Path, kind: str, share: float) -> None:
    data = encoded(kind)
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CorruptImage) as error:
        read_image(path)
    assert error.value.path == str(path)
    assert str(error.value) == f"{path}: {error.value.why}"
    assert len(error.value.why) > 5
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [read_image, read_size])
def test_what_is_not_an_image_says_why(tmp_path: Path, read) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_text("<html>not found</html>")
    (tmp_path / "folder.png").mkdir()
    cases = {"empty.png": "empty", "page.png": "not an image", "folder.png": "Is a directory", "gone.png": "missing"}
    for name, why in cases.items():
        with pytest.raises(CorruptImage, match=why):
            read(tmp_path / name)


@pytest.mark.parametrize("read", [read_image, read_size])
def test_a_file_without_permission_says_so(tmp_path: Path, read, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a.png"))

    monkeypatch.setattr("densepath.sources.decode._open", refuse)
    with pytest.raises(CorruptImage, match=r"a\.png.*cannot be read \(Permission denied\); check its permissions"):
        read(tmp_path / "a.png")


def test_formats_that_were_not_asked_for_are_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format="ICO")
    with pytest.raises(CorruptImage, match="not an image"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int8, np.int16])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_without_an_agreed_range_are_refused(tmp_path: Path, dtype: type, channels: int) -> None:
    photometric = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8, channels), dtype).squeeze(), photometric=photometric)
    with pytest.raises(CorruptImage, match="bit"):
        read_image(tmp_path / "a.tif")


def png_that_claims(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 100) + b"IDAT" + zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + data


def tiff_that_claims(width: int, height: int, bits: int, channels: int) -> bytes:
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, channels), (278, height)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, 100)])
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 1) + entries + b"\0" * 4


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [
        png_that_claims(10_000, 10_000),
        png_that_claims(2**31 - 1, 2**31 - 1),
        tiff_that_claims(2**32 - 1, 2**32 - 1, 8, 1),
        tiff_that_claims(100_000, 100_000, 16, 2),  # a kind that Pillow leaves to tifffile
    ],
    ids=["png", "huge png", "huge tiff", "tiff with tifffile"],
)
def test_bombs_are_refused_before_memory_is_taken(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bomb").write_bytes(data)
    tracemalloc.start()
    try:
        for read in (read_image, read_size):
            with pytest.raises(CorruptImage, match=r"more than 89,478,485; cut it into smaller images"):
                read(tmp_path / "bomb")
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
