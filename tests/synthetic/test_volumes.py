"""Synthetic volumes: a function of seed and index, with labels that are those of their pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densepath.sources.packing import open_store, write_store
from densepath.synthetic.volumes import LABELS, SyntheticVolumes, VolumeLabels


def test_volumes_are_a_function_of_seed_and_index() -> None:
    first, again, other = (SyntheticVolumes(8, seed) for seed in (3, 3, 4))
    longer = SyntheticVolumes(20, 3)
    for position in (5, 2):  # in any order
        assert np.array_equal(first.read(position), again.read(position))
        assert np.array_equal(first.read(position), longer.read(position))
    assert first.read(5).shape != other.read(5).shape or not np.array_equal(first.read(5), other.read(5))
    index = torch.arange(8)
    assert torch.equal(first.sizes(index), longer.sizes(index))
    assert torch.equal(first.spacing(index), longer.spacing(index))


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8])
def test_sizes_spacing_and_pixels_agree(dtype: torch.dtype) -> None:
    volumes = SyntheticVolumes(12, dtype=dtype, size=(20, 32, 40))
    index = torch.arange(12)
    part = volumes.gather(index)
    assert part.pixels.dtype == volumes.dtype == dtype
    assert part.sizes.tolist() == [list(volumes.read(k).shape[:3]) for k in range(12)]
    assert len({tuple(size) for size in part.sizes.tolist()}) > 6
    for pixels, position, (d, h, w) in zip(part.pixels, range(12), part.sizes.tolist(), strict=True):
        assert np.array_equal(pixels[:d, :h, :w].numpy(), volumes.read(position))
        assert int(pixels.long().abs().sum()) == int(np.abs(volumes.read(position).astype(np.int64)).sum())
    spacing = volumes.spacing(index)
    assert spacing.dtype == torch.float32 and (spacing[:, 0] > 1.5 * spacing[:, 1]).all()  # anisotropic
    position, side = volumes.smallest()
    assert side == int(part.sizes.min()) == min(volumes.read(position).shape[:3])


def test_organs_have_the_values_of_their_tissue() -> None:
    volumes = SyntheticVolumes(10)
    found: dict[int, list[float]] = {label: [] for label in range(len(LABELS))}
    for position in range(10):
        volume = volumes.volume(position)
        for label in np.unique(volume.labels):
            found[int(label)].append(float(np.median(volume.pixels[..., 0][volume.labels == label])))
    outside, body, lung, liver, spine, nodule = (np.array(found[label]) for label in range(len(LABELS)))
    assert all(len(values) == 10 for values in (outside, body, lung, liver, spine)) and 3 < len(nodule) <= 10
    assert outside.max() < -950 < lung.min() and lung.max() < -600 < body.min()
    assert body.max() < liver.min() < liver.max() < spine.min()


def test_the_axes_point_to_superior_posterior_and_left() -> None:
    """As in MetaImage: the lungs lie above the liver, the spine is behind them, and the liver is on the right."""
    labels = SyntheticVolumes(1).volume(0).labels
    _, _, lung, liver, spine, _ = (np.argwhere(labels == label).mean(0) for label in range(len(LABELS)))
    assert lung[0] > liver[0] and spine[1] > lung[1] and lung[2] > liver[2]


def test_the_window_holds_nearly_all_values() -> None:
    volumes = SyntheticVolumes(8)
    spec = volumes.spec
    values = np.concatenate([volumes.read(k).reshape(-1) for k in range(8)])
    assert (spec.ndim, spec.channels) == (3, 1)
    low, high = np.percentile(values, (0.5, 99.5))
    assert abs(spec.window[0] - low) < 5 and abs(spec.window[1] - high) < 40


def test_label_maps_are_the_labels_at_the_grids_positions() -> None:
    volumes = SyntheticVolumes(5)
    maps = VolumeLabels(volumes, (4, 8, 8))
    assert len(maps) == 5
    got = maps.gather(torch.tensor([3, 1]))
    assert got.shape == (2, 4, 8, 8) and got.dtype == torch.int16
    for grid, position in zip(got, (3, 1), strict=True):
        labels = volumes.volume(position).labels
        for z, y, x in np.ndindex(4, 8, 8):
            place = tuple(
                int((k + 0.5) / n * size) for k, n, size in zip((z, y, x), (4, 8, 8), labels.shape, strict=True)
            )
            assert grid[z, y, x] == labels[place]


def test_packed_volumes_are_the_same_source(tmp_path) -> None:
    volumes = SyntheticVolumes(4, size=(12, 16, 16))
    index = torch.arange(4)
    path = write_store(
        tmp_path / "v.safetensors",
        (volumes.read(k) for k in range(4)),
        (volumes.names(k) for k in range(4)),
        volumes.spec,
        volumes.spacing(index).numpy(),
    )
    store = open_store(path)
    here, there = volumes.gather(index), store.gather(index)
    assert torch.equal(here.pixels, there.pixels) and torch.equal(here.sizes, there.sizes)
    assert store.spec == volumes.spec and store.dtype == torch.int16 and store.names(2) == volumes.names(2)
    assert torch.equal(store.spacing(index), volumes.spacing(index))
