"""Pretext tasks: the rotations and patches are what their classes say, and frozen features solve an easy case."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densepath.core.errors import UserError
from densepath.transfer.probe.probe import probe
from densepath.transfer.probe.tasks import GRID, NEIGHBORS, PatchPairs, Rotations


class Flat:
    """Gives the pixels themselves."""

    def __init__(self, dim: int) -> None:
        self.dim, self.backbone = dim, SimpleNamespace(check_size=lambda *size: None)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1).float()


def test_rotations_are_those_of_numpy() -> None:
    pixels = torch.arange(2 * 5 * 5).view(2, 5, 5, 1)
    encoder: Any = Flat(25)
    made = Rotations(encoder)(pixels).view(2, 4, 5, 5)
    for image, rotated in zip(pixels, made, strict=True):
        for turns, own in enumerate(rotated):
            assert (own.numpy() == np.rot90(image[..., 0].numpy(), turns)).all()


def test_patches_of_a_pair_lie_as_their_class_says() -> None:
    side, count = 4, 30
    cell = torch.arange(GRID).repeat_interleave(side)
    pixels = torch.stack(torch.meshgrid(cell, cell, indexing="ij"), dim=-1).expand(count, -1, -1, -1)
    pixels = torch.cat((pixels, torch.arange(count).view(-1, 1, 1, 1).expand(-1, *pixels.shape[1:3], 1)), dim=-1)
    encoder: Any = Flat(3 * 32 * 32)
    pairs = PatchPairs(encoder, seed=0)
    patches = pairs.patches(pixels, torch.arange(count), side)
    assert patches.shape == (count, 8, 2, side, side, 3)
    assert (patches == patches[:, :, :, :1, :1]).all()  # each is one patch of the grid
    first, second = patches[:, :, :, 0, 0].unbind(2)
    assert (first[..., 2] == torch.arange(count).unsqueeze(1)).all() and (second[..., 2] == first[..., 2]).all()
    steps = torch.tensor(tuple(NEIGHBORS.values()))
    assert ((second - first)[..., :2] == steps).all()
    assert first[..., :2].min() == 1 and first[..., :2].max() == GRID - 2
    whole = pairs(pixels)
    assert whole.shape == (count, pairs.dim) and pairs.seen == count
    again = PatchPairs(encoder, seed=0)
    assert torch.equal(torch.cat([again(part) for part in pixels.split(11)]), whole), "batches do not matter"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Images that are bright at the top, of two each of eight patients."""
    rng, lines = np.random.default_rng(0), ["file,split,patient"]
    for number in range(16):
        ramp = np.linspace(220, 20, 64)[:, None] + rng.normal(0, 8, (64, 64))
        Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{tmp_path / f'{number}.png'},{'test' if number > 9 else 'train'},P{number // 2}")
    (tmp_path / "images.csv").write_text("\n".join(lines))
    return tmp_path / "images.csv"


def test_rotations_of_ramps_are_found(table: Path, tmp_path: Path) -> None:
    found = probe(task="rotation", data=table, size=64, devices="cpu", neighbors=3, out=tmp_path / "r.json")
    assert found.scores["logistic"]["accuracy"].value == 100
    assert len(found.tested) == 6 * 4 and found.images.classes.names == ("0", "90", "180", "270")
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["task"] == "rotation" and "16" not in record["protocol"] and "3 patients" in record["protocol"]


def test_positions_of_patches_are_found(tmp_path: Path) -> None:
    """Red repeats every three patches down, green every three to the right: equal pairs have equal positions."""
    rng, lines = np.random.default_rng(0), ["file,split,patient"]
    cell = np.arange(112) // 8 % 3 * 100
    for number in range(26):
        pixels = np.stack(np.broadcast_arrays(cell[:, None], cell, 30), axis=-1) + rng.integers(0, 20, (112, 112, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{tmp_path / f'{number}.png'},{'test' if number > 19 else 'train'},P{number // 2}")
    (tmp_path / "images.csv").write_text("\n".join(lines))
    given = {"task": "patch_position", "size": 112, "devices": "cpu", "neighbors": 1}
    found = probe(data=tmp_path / "images.csv", out=tmp_path / "r.json", **given)  # type: ignore[arg-type]
    assert len(found.tested) == 6 * 8 and found.images.classes.names == tuple(NEIGHBORS)
    assert found.scores["knn"]["accuracy"].value > 60, "chance is 12.5"
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["task"] == "patch_position" and "3 patients" in record["protocol"]


def test_options_of_other_probes_are_refused(table: Path) -> None:
    with pytest.raises(UserError, match="--labels has no effect with --task"):
        probe(task="rotation", data=table, labels=table)
    with pytest.raises(UserError, match=r"images\.csv is read, and the result would replace it"):
        probe(task="rotation", data=table, out=table.with_suffix(".json"))
    with pytest.raises(UserError, match="task is 'jigsaw'; give rotation or patch_position"):
        probe(task="jigsaw", data=table)  # type: ignore[arg-type]
