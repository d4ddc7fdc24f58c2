"""What pixels mean: windows, statistics and records."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from densepath.core.errors import UserError
from densepath.sources.pixel_source import PixelSpec

DIM = PixelSpec.default(1).override(window=(0.0, 200.0), bits=16)  # 16-bit images of low values
CT = PixelSpec(3, 1, (-1000.0, 1000.0), (0.4,), (0.25,))


@pytest.mark.parametrize("spec", [PixelSpec(), CT, PixelSpec.default(1, (0.0, 4095.0)), PixelSpec.default(4), DIM])
def test_records_come_back_from_yaml_and_json(spec: PixelSpec) -> None:
    for read in (yaml.safe_load(yaml.safe_dump(spec.record())), json.loads(json.dumps(spec.record()))):
        assert PixelSpec.from_record(read) == spec


@pytest.mark.parametrize(
    "record", [{"channels": 2}, {"ndim": "2"}, {"what": 1}, {"window": [1]}, {"mean": 3}, [1], "x", {"bits": 12}]
)
def test_other_records_are_refused(record: Any) -> None:
    with pytest.raises(UserError):
        PixelSpec.from_record(record)


def test_files_are_read_with_the_bits_of_the_window_unless_others_are_recorded() -> None:
    assert DIM.image_dtype is np.uint16 and DIM.record()["bits"] == 16
    assert DIM.override(mean=[0.5]).bits == 16 and DIM.override(window=(0.0, 255.0)).image_dtype is np.uint8
    old = PixelSpec.from_record({name: value for name, value in DIM.record().items() if name != "bits"})
    assert old.image_dtype is np.uint8
    implied = PixelSpec.default(1, (0.0, 4095.0)).override(window=(0.0, 4095.0), bits=16)
    assert implied == PixelSpec.default(1, (0.0, 4095.0)) and "bits" not in implied.record()


def test_a_network_sees_the_window_normalized() -> None:
    stored = torch.tensor([-2000, -1000, -500, 0, 250, 1000, 3000], dtype=torch.int16)
    seen = CT.normalize(CT.apply_window(stored.float().view(1, 1, 1, 1, -1)))
    shares = np.clip((stored.numpy().astype(np.float64) + 1000) / 2000, 0, 1)
    np.testing.assert_allclose(seen.flatten(), (shares - 0.4) / 0.25, atol=1e-6)
    np.testing.assert_allclose(CT.restore(seen).flatten(), shares, atol=1e-6)


def test_8_bit_rgb_is_normalized_as_before() -> None:
    pixels = torch.arange(256, dtype=torch.float32).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = pixels.clone().div_(255).clamp_(0, 1).sub_(mean).div_(std)
    spec = PixelSpec()
    assert torch.equal(spec.normalize(spec.apply_window(pixels.clone())), expected)


def test_pictures_show_the_window_in_256_steps() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    assert PixelSpec().to_rgb(rgb) is rgb
    grey = np.array([[[0], [1000], [4095], [9000]]], np.uint16)
    shown = PixelSpec.default(1, (0.0, 4095.0)).to_rgb(grey)
    assert shown.dtype == np.uint8 and shown.tolist() == [[[0] * 3, [62] * 3, [255] * 3, [255] * 3]]
    with pytest.raises(UserError, match="3 dimensions"):
        CT.to_rgb(np.zeros((2, 2, 2, 1), np.int16))


def test_single_values_can_be_overridden() -> None:
    spec = PixelSpec.default(1).override(window=[-100, 300], std=[0.5])
    assert spec == PixelSpec(2, 1, (-100.0, 300.0), (0.449,), (0.5,))
    for wrong in ({"window": [3, 1]}, {"window": [1]}, {"mean": [0.1, 0.2, 0.3]}, {"std": [0.0]}):
        with pytest.raises(UserError):
            PixelSpec.default(1).override(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (2, 3, 4, 5, 1)])
def test_what_a_network_sees_is_windowed_and_normalized(shape: tuple[int, ...]) -> None:
    for dtype, window in ((np.uint8, (0.0, 255.0)), (np.uint8, (30.0, 200.0)), (np.uint16, (100.0, 40000.0))):
        spec = PixelSpec.default(shape[-1], window, len(shape) - 2)
        stored = torch.from_numpy(np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype))
        before = stored.clone()
        seen = spec.network_input(stored)
        low, high = window
        expected = ((stored.numpy().astype(float) - low) / (high - low)).clip(0, 1)
        expected = np.moveaxis((expected - spec.mean) / spec.std, -1, 1)
        assert seen.dtype == torch.float32
        np.testing.assert_allclose(seen.numpy(), expected, atol=2e-6)
        assert torch.equal(stored, before)
