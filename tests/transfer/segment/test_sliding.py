"""Sliding windows: equal to the whole image where it fits, and else to a plain average."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.segment.sliding import SlidingWindow


def whole(sliding: SlidingWindow, pixels: np.ndarray) -> np.ndarray:
    parts = list(sliding.slabs(pixels))
    assert [start for start, _ in parts] == np.cumsum([0, *(part.shape[1] for _, part in parts)])[:-1].tolist()
    return torch.cat([part for _, part in parts], dim=1).numpy()


@pytest.mark.parametrize("size", [(40, 30), (12, 14, 10)])
def test_equals_the_whole_image_where_it_fits(size: tuple[int, ...]) -> None:
    d, rng = len(size), np.random.default_rng(0)
    net: nn.Module = (nn.Conv2d, nn.Conv3d)[d - 2](1, 3, 5, padding=2)
    spec, pixels = PixelSpec.default(1, (0.0, 255.0), ndim=d), rng.integers(0, 256, (*size, 1)).astype(np.uint8)
    x = spec.normalize(spec.apply_window(torch.from_numpy(pixels).movedim(-1, 0)[None].float()))
    sliding = SlidingWindow(net, spec, (64,) * d)
    with torch.no_grad():
        np.testing.assert_allclose(whole(sliding, pixels), net(x)[0].numpy(), atol=1e-5)
        np.testing.assert_array_equal(sliding.classes(pixels), net(x)[0].argmax(0).numpy())


@pytest.mark.parametrize(("size", "window", "overlap"), [((23, 31), (8, 9), 0.5), ((9, 11, 13), (4, 5, 13), 0.25)])
def test_equals_a_plain_average_weighed_by_gaussians(
    size: tuple[int, ...], window: tuple[int, ...], overlap: float
) -> None:
    def net(x: Tensor) -> Tensor:  # depends on the place in the window
        return torch.stack((x[:, 0], x[:, 0] + torch.arange(x[0, 0].numel()).view(x.shape[2:])), 1)

    d, rng = len(size), np.random.default_rng(0)
    spec, pixels = PixelSpec(d, 1, (0.0, 1.0), (0.0,), (1.0,)), rng.random((*size, 1)).astype(np.float32)
    sums, total = np.zeros((2, *size)), np.zeros(size)
    starts = []
    for n, side in zip(size, window, strict=True):
        step = max(1, int(side * (1 - overlap)))
        count = -(-(n - side) // step) + 1
        starts.append([round(k * (n - side) / max(1, count - 1)) for k in range(count)])
        assert starts[-1][0] == 0 and starts[-1][-1] == n - side and max(np.diff([0, *starts[-1]])) <= step
    bells = [np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / 8)) ** 2) for side in window]
    weight = bells[0]
    for bell in bells[1:]:
        weight = weight[..., None] * bell
    for corner in itertools.product(*starts):
        box = tuple(slice(a, a + side) for a, side in zip(corner, window, strict=True))
        logits = net(torch.from_numpy(pixels[box][..., 0])[None, None])[0].numpy()
        sums[(slice(None), *box)] += logits * weight
        total[box] += weight
    np.testing.assert_allclose(whole(SlidingWindow(net, spec, window, overlap), pixels), sums / total, rtol=1e-4)


def test_inputs_are_padded_for_networks_of_patches() -> None:
    seen = []

    def net(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[2:]))
        return x

    pixels = np.arange(20 * 37).reshape(20, 37, 1).astype(np.float32)
    spec = PixelSpec(2, 1, (0.0, 1e3), (0.0,), (1.0,))
    out = whole(SlidingWindow(net, spec, (32, 32), 0.0, multiple=16), pixels)
    assert set(seen) == {(32, 32)}
    np.testing.assert_allclose(out[0], pixels[..., 0] / 1e3, atol=1e-5)
