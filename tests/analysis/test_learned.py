"""Pictures and features of what a backbone has learned so far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import densepath
from densepath.analysis.learned import _positions, draw_learned
from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.sources.open import open_images
from densepath.training.learned_images import LearnedImages


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    for number in range(48):
        pixels = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.mark.parametrize(("name", "rows"), [("resnet10t", 2), ("vit_tiny_patch16_224(depth=1)", 3)])
def test_the_same_images_at_each_step_and_the_features_of_more(
    tiles: Path, tmp_path: Path, name: str, rows: int
) -> None:
    backbone = build_backbone(name)
    images = open_images(tiles, cache="none")
    pictures = [draw_learned(backbone.eval(), images, tmp_path, step, 3)[0] for step in (5, 10)]
    assert [path.name for path in pictures] == ["concepts_0000005.png", "concepts_0000010.png"]
    first, second = (np.asarray(Image.open(path)) for path in pictures)
    assert first.shape == (224 * rows, 224 * 6, 3) and np.array_equal(first, second)
    with np.load(tmp_path / "features.npz", allow_pickle=False) as found:
        names, features = found["names"].tolist(), found["features"]
    assert sorted(names) == [f"{number:02}.png" for number in range(48)]
    stored = torch.from_numpy(images.read(int(names[7][:2]))).float().permute(2, 0, 1).unsqueeze(0)
    with torch.no_grad():
        maps = backbone(images.spec.normalize(images.spec.apply_window(stored)))
    own = maps[max(backbone.stages)].mean((2, 3))[0]
    np.testing.assert_allclose(features[7], own, rtol=2e-3, atol=2e-3)


def test_patches_of_any_size_are_drawn_and_only_small_images_are_not(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(tiles, cache="none")  # of 128 px
    (picture,) = draw_learned(build_backbone("test_vit(patch_size=14)").eval(), images, tmp_path, 5, 3)
    assert Image.open(picture).height == 3 * 224
    assert draw_learned(build_backbone("test_vit(patch_size=36)").eval(), images, tmp_path, 6, 3) == []
    monkeypatch.setattr("densepath.analysis.learned._CONCEPTS", 0)
    with pytest.raises(UserError, match="num_concepts is 0"):
        draw_learned(build_backbone("resnet10t").eval(), images, tmp_path, 7, 3)


def test_images_of_the_map_come_from_all_positions() -> None:
    found = _positions(100_000, 3)
    assert len(set(found)) == 200 and np.histogram(found, 4, (0, 100_000))[0].min() > 25
    assert _positions(100_000, 3) == found != _positions(100_000, 4)
    assert sorted(_positions(48, 3)) == list(range(48)) and len(_positions(20, 3)) == 6


def test_drawing_does_not_change_a_run_and_its_failure_does_not_end_it(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"data": str(tiles), "backbone": "resnet10t", "max_steps": 2, "batch_size": 24, "workers": 0}
    options |= {"devices": "cpu", "view_size": 64, "precision": "32", "log_every": 1}
    drawn = densepath.pretrain("moco_v2_small", out=tmp_path / "drawn", picture_every=1.0, **options)
    plain = densepath.pretrain("moco_v2_small", out=tmp_path / "plain", picture_every=0.0, **options)
    assert (drawn / "pictures/concepts_0000002.png").is_file() and not (plain / "pictures").exists()
    assert drawn["loss"] == plain["loss"]

    class Method:
        def exported_backbone(self) -> torch.nn.Module:
            return torch.nn.Linear(1, 1)

    def broken(*given: object) -> list[Path]:
        raise OSError("the disk is full")

    draw = LearnedImages(Method(), open_images(tiles, cache="none"), broken, tmp_path, 0)  # type: ignore[arg-type]
    assert draw(1) == [] and draw(2) == []
    assert "".join(capsys.readouterr()).count("the disk is full") == 1
