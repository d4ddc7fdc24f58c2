"""Exported weights carry a card that the hub reads; it names the data without private folders, and its code runs."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from densepath.nets.backbones import build_backbone
from densepath.nets.backbones.choose import choose_backbone
from densepath.nets.weights import save_backbone
from densepath.training.export import export
from densepath.training.load_code import loading_code
from densepath.training.model_card import bare, card_path, recorded_scores, write_card
from densepath.training.pretrain import pretrain


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private")
    (folder / "tiles").mkdir()
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "tiles" / f"{number}.png")
    options: dict[str, Any] = {"backbone": "test_resnet", "batch_size": 8, "view_size": 32, "precision": "32"}
    options |= {"method": "moco_v2", "method_options": {"queue_size": 32}, "devices": "cpu", "max_steps": 2}
    return pretrain(data=folder / "tiles", out=folder / "run", **options)


def header_and_body(card: Path) -> tuple[dict[str, Any], str]:
    _, header, body = card.read_text().split("---\n", 2)
    return yaml.safe_load(header), body


def run_code(body: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the card's code defines, run in the folder of the file."""
    monkeypatch.chdir(folder)
    defined: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, defined)
    return defined


def test_a_run_writes_a_card_with_its_data_and_recipe(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, body = header_and_body(run / "exported" / "backbone.safetensors.md")
    assert header["license"] == "unknown" and "Licence: not stated." in body
    assert header["library_name"] == "timm" and {"densepath", "moco_v2", "test_resnet"} <= set(header["tags"])
    assert "- Images: 16\n" in body and "Folder or file: `tiles`" in body
    assert re.search(r"SHA-256 of their names: `[0-9a-f]{64}`", body)
    assert str(run.parent).encode() not in (run / "exported" / "backbone.safetensors").read_bytes()
    assert str(run.parent) not in body and "queue_size: 32" in body and "2 optimizer steps" in body
    assert "Not a medical device" in body and "0.485" in body
    made = run_code(body, run / "exported", monkeypatch)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = made["backbone"].eval()(pixels)[5]
        torch.testing.assert_close(made["model"].eval().forward_features(pixels), features)
    assert made["pixels"].mean == (0.485, 0.456, 0.406)


def test_an_export_names_its_licence(run: Path, tmp_path: Path) -> None:
    for licence, header in (
        ("cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}),
        ("Our hospital's own", {"license": "other", "license_name": "Our hospital's own"}),
    ):
        path = export(run, tmp_path / "w.safetensors", licence=licence)
        found, body = header_and_body(card_path(path))
        assert header.items() <= found.items() and f"Licence: {licence}." in body and "- Images: 16\n" in body


@pytest.mark.parametrize(
    ("file", "layout"), [("w.safetensors", "torchvision"), ("w.pth", "detectron2"), ("w.pkl", "detectron2")]
)
def test_the_code_of_other_layouts_loads_the_file(
    file: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detectron2 is replaced by a recorder of the call."""
    loaded: list[str] = []
    checkpoint: Any = ModuleType("detectron2.checkpoint")
    checkpoint.DetectionCheckpointer = lambda model: SimpleNamespace(load=loaded.append)
    for name, module in (("detectron2", ModuleType("detectron2")), ("detectron2.checkpoint", checkpoint)):
        monkeypatch.setitem(sys.modules, name, module)
    backbone = build_backbone("resnet18")
    save_backbone(tmp_path / file, backbone, layout)
    card = write_card(tmp_path / file, backbone, layout, {})
    made = run_code("```python\nmodel = None\n```\n" + card.read_text(), tmp_path, monkeypatch)
    assert loaded == ([file] if layout == "detectron2" else [])
    assert torch.equal(made["backbone"].net.conv1.weight, backbone.net.conv1.weight)
    if layout == "torchvision":
        assert torch.equal(made["model"].layer4[1].conv2.weight, backbone.net.layer4[1].conv2.weight)


NAMES = [
    "vit_huge_patch14_224(img_size=56, embed_dim=32, depth=1, num_heads=2, reg_tokens=2, mlp_layer='SwiGLUPacked', "
    "act_layer='silu')",
    "vit_tiny_patch16_224(img_size=32, depth=1, norm_eps=1e-12, pos_antialias=False)",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_code_of_a_network_with_arguments_gives_its_features(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, backbone = tmp_path / "w.safetensors", build_backbone(name, 1).eval()
    save_backbone(path, backbone)
    card = write_card(path, backbone, "timm", {"origin": "elsewhere.pth"})
    made = run_code(card.read_text(), tmp_path, monkeypatch)
    side = backbone.net.model.patch_embed.img_size[0]
    pixels = torch.randn(1, 1, side, side)
    with torch.no_grad():
        tokens = made["model"].eval().forward_features(pixels)[:, made["model"].num_prefix_tokens :]
        for network in (backbone, made["backbone"].eval()):
            torch.testing.assert_close(network(pixels)[4].flatten(2).transpose(1, 2), tokens)


def test_scores_of_a_probe_and_of_a_detector_are_in_the_card(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss,probe_mean_iou\n2,0.5,70.25\n4,0.25,\n")
    assert recorded_scores(tmp_path) == {"probe_mean_iou": 70.25}
    (tmp_path / "metrics.json").write_text('{"scale": "percent", "box_ap": 12.5, "ap_a|b": 5}')
    scores = recorded_scores(tmp_path)
    assert scores == {"box_ap": 12.5, "ap_a|b": 5.0}
    card = write_card(tmp_path / "w.safetensors", build_backbone("test_resnet"), "timm", {}, scores=scores)
    assert "| box_ap | 12.50 |\n| ap_a\\|b | 5.00 |\n" in card.read_text()


def test_a_card_that_cannot_be_written_does_not_end_a_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: Any, **more: Any) -> Path:
        raise ValueError("no card")

    monkeypatch.setattr("densepath.training.export.write_card", fail)
    assert export(run, tmp_path / "w.safetensors").is_file()
    assert "warning: the model card was not written (no card)" in capsys.readouterr().err


def test_names_of_folders_in_any_encoding_are_in_the_card(tmp_path: Path) -> None:
    config = json.dumps({"method": "concl", "data": os.fsdecode(b"Gewebe\xe4")})
    card = write_card(tmp_path / "w.safetensors", None, "tensors", {"config": config, "steps": "1"})
    assert "`Gewebe\\udce4`" in card.read_text(encoding="utf-8")


def test_no_folder_of_a_path_is_in_the_card() -> None:
    """However the path is given; names of the hub, which are no paths, stay whole."""
    for given in ("/a/SMITH/tiles", "~/SMITH/tiles", "../SMITH/tiles", "SMITH/tiles", "./SMITH/tiles/", "tiles"):
        assert bare({"data": given, "more": {"list": [given]}}) == {"data": "tiles", "more": {"list": ["tiles"]}}
    assert bare("hf-hub:OWNER/NAME") == "hf-hub:OWNER/NAME"


def test_no_code_of_timm_is_given_for_a_network_unlike_that_of_its_name() -> None:
    for given, shown in (("relu", True), ("gelu", False)):
        network = choose_backbone(timm.create_model("test_resnet", features_only=True, act_layer=given))
        assert ("timm.create_model" in loading_code(Path("w.safetensors"), network, "timm", {})) == shown
