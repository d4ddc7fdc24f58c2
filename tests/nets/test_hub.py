"""Download errors are reported once, by densepath."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from densepath.concepts.saliency import Saliency
from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.backbones.choose import choose_backbone
from densepath.nets.teachers import build_teacher
from densepath.nets.weights import load_weights
from densepath.nets.weights.hub import fetch
from densepath.transfer.sam.segment_anything import SegmentAnything

_TRANSFORMERS = importlib.util.find_spec("transformers")

PLACES: dict[str, Callable[[], Any]] = {
    "weights of timm": lambda: load_weights(build_backbone("resnet18"), "resnet18.a1_in1k"),
    "weights of the hub": lambda: load_weights(build_backbone("resnet18"), "hf-hub:somebody/model"),
    "a backbone of the hub": lambda: choose_backbone("hf-hub:somebody/model"),
    "a teacher of timm": lambda: build_teacher("vit_tiny_patch16_224"),
    "a teacher's folder": lambda: build_teacher("hf-hub:somebody/model"),
    "a saliency model": lambda: Saliency("somebody/model").begin([]),
    "Segment Anything": lambda: SegmentAnything("somebody/model", torch.device("cpu")),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_cannot_be_fetched_is_reported_once(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if place == "Segment Anything" and not _TRANSFORMERS:
        pytest.skip("transformers is not installed")
    make, log, tries = timm.create_model, logging.getLogger("huggingface_hub.utils._http"), []

    def fail(*_: Any, pretrained: bool = True, **__: Any) -> None:
        tries.append(pretrained)
        log.warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no network")

    def create(*names: str, pretrained: bool = False, **options: Any) -> Any:
        return fail() if pretrained else make(*names, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(UserError, match=r"could not be fetched|can be downloaded"):
        PLACES[place]()
    assert len(tries) == 1 and not caplog.records
    log.warning("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]


def test_models_are_loaded_without_a_bar_that_others_may_have(
    tiny_sam: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.enable_progress_bar()
    try:
        capfd.readouterr()
        SegmentAnything(tiny_sam, torch.device("cpu"))
        assert capfd.readouterr().err == ""
        assert transformers.logging.is_progress_bar_enabled()
    finally:
        if not bars:
            transformers.logging.disable_progress_bar()


def test_a_model_of_the_hub_is_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, allow_patterns: asked.append(name) or str(tmp_path)
    )
    assert fetch("hf-hub:somebody/model") == fetch("somebody/model") == tmp_path
    assert asked == ["somebody/model"] * 2
