"""Images in memory have the pixels of their files, or are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densepath.core.errors import UserError
from densepath.sources.decode import read_image
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.stored_pixels import pixels_in_memory, stored_pixels

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY, DEEP = RGB[..., 0], RGB[..., 0].astype(np.uint16) * 256 + 1
SPECS = {
    "RGB": PixelSpec(),
    "grey": PixelSpec.default(1),
    "RGB of 16 bits": PixelSpec.default(3, (0, 65535)),
    "grey of 16 bits": PixelSpec.default(1, (0, 65535)),
    "dim grey of 16 bits": PixelSpec.default(1).override(window=(0, 200), bits=16),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_an_image_of_pillow_has_the_pixels_of_its_file(tmp_path: Path, mode: str, spec: PixelSpec) -> None:
    image = Image.fromarray(DEEP) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    image.save(tmp_path / "a.tif")
    file = read_image(tmp_path / "a.tif", None, spec.channels, spec.image_dtype)
    assert np.array_equal(pixels_in_memory(image, spec), file)
    assert np.array_equal(stored_pixels(tmp_path / "a.tif", spec, 100, False), file)


@pytest.mark.parametrize(
    "same",
    [
        RGB.astype(np.uint16) * 257,
        (RGB.astype(np.uint16) * 257).astype(">u2"),
        np.dstack((RGB, np.full((5, 7), 255, np.uint8))),
        torch.from_numpy(RGB).permute(2, 0, 1),
        Image.fromarray(RGB),
    ],
)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_same_picture_in_another_form_has_the_same_pixels(same: Any, spec: PixelSpec) -> None:
    ours, plain = pixels_in_memory(same, spec), pixels_in_memory(RGB, spec)
    assert ours.dtype == plain.dtype == spec.image_dtype
    grey_of_16_bits = spec.channels == 1 and spec.image_dtype is np.uint16  # rounded before or after the conversion
    np.testing.assert_allclose(ours.astype(int), plain, atol=257 if grey_of_16_bits else 0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB.astype(float), r"float64 \[5, 7, 3\]; give uint8 of height x width x 3"),
        (Image.fromarray(GREY).convert("F"), r"float32 \[5, 7, 1\]; give uint8"),
        (RGB > 100, "bool"),
        (RGB.astype(np.int64), "int64"),
        (RGB[None], r"uint8 \[1, 5, 7, 3\]"),
        (RGB[:0], r"no pixels: \[0, 7, 3\]"),
        ([RGB], "an image is list; give an array, an image of Pillow, or a file"),
    ],
)
def test_pixels_that_no_file_has_are_refused(image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pixels_in_memory(image, PixelSpec())


def test_networks_of_files_of_12_bits_take_no_floats() -> None:
    with pytest.raises(UserError, match="float64"):
        pixels_in_memory(RGB / 255, PixelSpec.default(3, (0, 4095)))


def test_values_of_a_packed_store_are_those_of_its_window() -> None:
    unit, volumes = PixelSpec.default(1, (0.0, 1.0)), PixelSpec.default(1, (-1000, 1000), 3)
    floats = RGB.astype(np.float32) / 255
    np.testing.assert_allclose(pixels_in_memory(floats, unit)[..., 0], floats @ [0.299, 0.587, 0.114], atol=1e-6)
    counts = np.full((4, 5, 1), 150, np.uint16)
    assert np.array_equal(pixels_in_memory(counts, PixelSpec.default(1, (0, 200))), counts)
    scan = np.full((2, 3, 4), -200, np.int16)
    assert np.array_equal(pixels_in_memory(scan, volumes), scan[..., None])
    for wrong, message in ((floats * np.nan, "NaN or Inf"), (floats > 0, "give numbers of height x width x 1")):
        with pytest.raises(UserError, match=message):
            pixels_in_memory(wrong, unit)
    with pytest.raises(UserError, match="files of volumes are read by densepath predict"):
        stored_pixels("scan.png", volumes, 100, False)


def test_a_volume_with_its_own_window_is_seen_as_that_of_a_file() -> None:
    spec = PixelSpec.default(1, (0.0, 1.0), 3)
    raw = np.random.default_rng(0).normal(500, 100, (12, 13, 14)).round()
    low, high = np.percentile(raw, (0.5, 99.5))
    for values in (raw, raw.astype(np.int16), torch.from_numpy(raw)[None], raw.astype(np.float32)[..., None]):
        shares = pixels_in_memory(values, spec, own_window=True)
        np.testing.assert_allclose(shares[..., 0], (raw - low) / (high - low), atol=1e-5)
    np.testing.assert_array_equal(pixels_in_memory(shares[3:6], spec, True), shares[3:6])  # a crop of a store's
    np.testing.assert_array_equal(pixels_in_memory(raw, spec)[..., 0], raw)  # of a window for all volumes
    for same in (np.full((2, 3, 4), 2**60, np.uint64), np.full((2, 3, 4), 1e20)):
        assert not pixels_in_memory(same, spec, own_window=True).any()
    with pytest.raises(UserError, match="an image of Pillow is not a volume"):
        pixels_in_memory(Image.fromarray(RGB), spec)
