"""Maps of several kinds, on few inputs at a time."""

from __future__ import annotations

import pytest
import torch

from densepath.core import resampling
from densepath.core.affine import from_box
from densepath.core.resampling import sample


def test_parts_of_the_inputs_may_have_no_map_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with quarter turns, which few images of a batch may get: the turned ones are sampled apart."""
    x = torch.rand(6, 3, 16, 16)
    maps = from_box(torch.full((6, 2), -0.5), torch.full((6, 2), 0.7))
    maps[4, :, :2] = torch.tensor([[0.0, 0.6], [-0.6, 0.0]])  # a quarter turn
    rows = torch.arange(6)
    expected = sample(x, maps, (8, 8), mode="bicubic", rows=rows)
    monkeypatch.setattr(resampling, "_CACHED", x[0].numel() // torch.get_num_threads() + 1)
    torch.testing.assert_close(sample(x, maps, (8, 8), mode="bicubic", rows=rows), expected)
