"""What a run records of its weights, and files that no run wrote beside such records."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from densepath.core.records import record_text
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights
from densepath.nets.weights.of_run import run_of
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.nets.weights.pretrained import backbone_of_weights
from densepath.nets.weights.trained_on import slides_of_weights
from densepath.sources.pixel_source import PixelSpec

PIXELS = PixelSpec(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
HEADS = "vit_tiny_patch16_224(img_size=32, depth=1, num_heads=12)"


def written(root: Path, folder: str, backbone: str, table: str, foreign: bool = False) -> Path:
    """Weights in a folder below a configuration and a table."""
    options = {"method": "moco_v2", "backbone": backbone, "pixels": PIXELS.record()}
    (root / "config.yaml").write_text(yaml.safe_dump(options) if foreign else record_text(options))
    (root / "slides.csv").write_text(table)
    (root / folder).mkdir()
    name = HEADS.replace("12", "3") if backbone == HEADS else "test_resnet"
    torch.save(build_backbone(name).net.state_dict(), root / folder / "w.pth")
    return root / folder / "w.pth"


@pytest.mark.parametrize(("folder", "foreign"), [("weights", False), ("weights", True), ("checkpoints", True)])
@pytest.mark.parametrize("table", ["slide,mpp\nA1,0.5\n", "name;mpp\n", "slide,path,tiles\nA1,A1.svs,3\n"])
def test_a_file_that_no_run_wrote_has_no_record(tmp_path: Path, folder: str, foreign: bool, table: str) -> None:
    path = written(tmp_path, folder, "my_swin", table, foreign)
    torch.save(build_backbone("resnet18").net.state_dict(), path)
    assert slides_of_weights(path) is None
    assert backbone_of_weights(path) == "resnet18"
    assert pixels_of_weights(path) == PixelSpec()


def test_a_checkpoint_has_the_record_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "checkpoints", HEADS, "slide,path,tiles\nA1,A1.svs,3\n")
    monkeypatch.chdir(path.parent)
    for given in (path, Path("w.pth")):
        assert slides_of_weights(given) == ("A1",)
        assert backbone_of_weights(given) == HEADS
        assert pixels_of_weights(given) == PIXELS
    line = load_weights(build_backbone(HEADS.replace("12", "3")), path)
    assert "in training num_heads was 12" in line and "assumed" not in line


def test_a_run_has_its_record_beside_a_config_json(tmp_path: Path) -> None:
    path = written(tmp_path, "checkpoints", HEADS, "slide,path,tiles\nA1,A1.svs,3\n")
    path.rename(path.with_name("last.ckpt"))
    (tmp_path / "config.json").write_text("{}")
    assert slides_of_weights(tmp_path) == ("A1",)


def test_a_link_to_itself_is_of_no_run(tmp_path: Path) -> None:
    (tmp_path / "w.pth").symlink_to(tmp_path / "w.pth")
    assert run_of(tmp_path / "w.pth") is None


def test_a_link_to_a_checkpoint_has_the_record_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = written(tmp_path / "run", "checkpoints", HEADS, "slide,path,tiles\nA1,A1.svs,3\n")
    link = tmp_path / "weights.pth"
    link.symlink_to(path)
    assert slides_of_weights(link) == ("A1",)
    assert backbone_of_weights(link) == HEADS
    assert pixels_of_weights(link) == PIXELS


def test_a_link_in_a_run_belongs_to_that_run(tmp_path: Path) -> None:
    path = written(tmp_path, "checkpoints", HEADS, "slide,path,tiles\nA1,A1.svs,3\n")
    path.rename(tmp_path / "blob")
    path.symlink_to(tmp_path / "blob")
    assert (slides_of_weights(path), pixels_of_weights(path)) == (("A1",), PIXELS)
