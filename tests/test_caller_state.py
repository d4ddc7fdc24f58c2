"""Public functions leave the settings and the random generators of their caller as they were."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import densepath
from densepath.annotations.coco_writing import write_coco
from densepath.core import system
from densepath.core.errors import UserError
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.classify.classifier import CLASSIFIER_FILE, ClassifierNotes, save_classifier
from densepath.transfer.detection.detector_file import DetectorNotes, save_detector
from densepath.transfer.segment.legend import legend_of
from densepath.transfer.segment.segmenter import SEGMENTER_FILE, SegmenterNotes, save_segmenter

for library in ("lightning.fabric", "sklearn"):  # they set loggers and the environment on their first import
    importlib.import_module(library)

CPU: dict[str, Any] = {"devices": "cpu", "workers": 0}
FAST: dict[str, Any] = {**CPU, "backbone": "test_resnet", "batch_size": 2}
VIEWS: dict[str, Any] = {"count": 2, "view_size": 64}

# Those that compute with torch or NumPy: what is called is given the folder of the inputs, and a new one.
CALLS: dict[str, Callable[[Path, Path], object]] = {
    "pretrain": lambda d, out: densepath.pretrain(
        "simclr_small", data=d / "tiles", out=out, max_steps=2, view_size=64, deterministic=True, **FAST
    ),
    "classify": lambda d, out: densepath.classify(data=d / "classes", out=out, view_size=64, epochs=1, **FAST),
    "detect": lambda d, out: densepath.detect(
        "glas_small",
        data=d / "data",
        out=out,
        max_steps=1,
        train_size=(64, 64),
        test_size=64,
        precise_bn_batches=0,
        **FAST,
    ),
    "export": lambda d, out: densepath.export(d / "run", out / "w.safetensors"),
    "embed": lambda d, out: densepath.embed(
        data=d / "tiles", weights=d / "run", out=out / "f.h5", size=64, devices="cpu"
    ),
    "probe": lambda d, out: densepath.probe(data=d / "data", weights=d / "run", size=64, devices="cpu"),
    "predict": lambda d, out: densepath.predict(d / "detector", data=d / "tiles", out=out, devices="cpu"),
    "score": lambda d, out: densepath.score(data=d / "data", predictions=_predicted(d, out)),
    "load_classifier": lambda d, out: densepath.load_classifier(d / "classifier"),
    "load_detector": lambda d, out: densepath.load_detector(d / "detector"),
    "load_segmenter": lambda d, out: densepath.load_segmenter(d / "segmenter"),
    "check_data": lambda d, out: densepath.check_data(d / "data", out=out / "x.png"),
    "pack": lambda d, out: densepath.pack(d / "tiles", out / "x.safetensors"),
    "show_attention": lambda d, out: densepath.show_attention(
        data=d / "tiles", weights="random", backbone="test_vit", out=out, devices="cpu", **VIEWS
    ),
    "show_concepts": lambda d, out: densepath.show_concepts(
        data=d / "tiles", out=out / "x.png", weights=d / "run", count=2
    ),
    "show_curves": lambda d, out: densepath.show_curves(runs=d / "run", out=out / "x.png"),
    "show_detections": lambda d, out: densepath.show_detections(
        data=d / "data", runs=d / "detector", out=out / "x.png", devices="cpu"
    ),
    "show_reconstruction": lambda d, out: densepath.show_reconstruction(
        data=d / "tiles", run=d / "run", out=out / "x.png", count=2
    ),
    "show_similarity": lambda d, out: densepath.show_similarity(
        data=d / "tiles", weights=d / "run", out=out / "x.png", devices="cpu", **VIEWS
    ),
    "show_views": lambda d, out: densepath.show_views(data=d / "tiles", out=out / "x.png", **VIEWS),
    "write_report": lambda d, out: densepath.write_report(d / "run", out=out / "x.html"),
    "write_tissue": lambda d, out: densepath.write_tissue(out / "new", train=1, test=1, size=64),
}
# Those that convert files, compute with none of the settings, or need what takes long to make.
OTHERS = {
    *(name for name in densepath.__all__ if name.startswith("convert_")),
    *("benchmark_table", "cells", "demo", "list_slides", "mil", "open_slide", "read_features", "read_slide_features"),
    *("sam", "segment", "show_cells", "show_tokens", "tile", "write_arranged", "write_heat_map", "write_regions"),
}


def _predicted(inputs: Path, out: Path) -> densepath.Result:
    return densepath.predict(inputs / "detector", data=inputs / "data" / "test", out=out / "p", devices="cpu")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for _ in range(12)]
    for number, image in enumerate(pixels):
        for part in ("tiles", f"classes/{'ab'[number % 2]}"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / part / f"{number}.png")
    labels = np.zeros((128, 128), np.int32)
    labels[10:90, 20:90] = 1
    splits = {"train": pixels[:4], "test": pixels[4:6]}
    write_coco(folder / "data", {s: [(f"{s}{k}", p, labels) for k, p in enumerate(each)] for s, each in splits.items()})
    densepath.pretrain(
        "conv_mim_small",
        data=folder / "tiles",
        out=folder / "run",
        max_steps=1,
        view_size=64,
        method_options={"width": 16, "heads": 2},
        **FAST,
    )
    gray = ((0.5,) * 3, (0.2,) * 3)
    found = DetectorNotes("mask_rcnn_fpn_small", "test_resnet", (1,), ("gland",), 64, *gray, (8, 16, 32, 48, 64), 6)
    save_detector(folder / "detector" / "exported" / "detector.safetensors", found.build(), found)
    spec = PixelSpec().record()
    classes = ClassifierNotes("test_resnet", "mean", ("a", "b"), False, (64, 64), spec)
    save_classifier(folder / "classifier" / CLASSIFIER_FILE, classes.build(), classes)
    masks = SegmenterNotes("test_resnet", "unet", "group", legend_of(("0:no", "1:red")), (32, 32), 0.5, spec)
    save_segmenter(folder / "segmenter" / SEGMENTER_FILE, masks.build(), masks)
    return folder


def _state() -> dict[str, Any]:
    loggers = {n: each for n, each in logging.root.manager.loggerDict.items() if n.startswith(("lightning", "torch"))}
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [str(each) for each in np.random.get_state()],
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "autocast": (torch.is_autocast_enabled("cpu"), _autocast_depth()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "levels": {name: each.level for name, each in loggers.items() if isinstance(each, logging.Logger)},
        "root": logging.root.level,
        "environment": dict(os.environ),
    }


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


@contextmanager
def _unusual_settings() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.backends.cudnn.benchmark = True
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.backends.cudnn.benchmark = False


@pytest.fixture
def unusual() -> Iterator[None]:
    """Settings that are not those that the functions compute with."""
    with _unusual_settings():
        yield


@pytest.mark.parametrize("name", CALLS)
def test_a_public_function_leaves_the_state_of_its_caller(
    name: str, inputs: Path, tmp_path: Path, unusual: None
) -> None:
    before = _state()
    CALLS[name](inputs, tmp_path)
    after = _state()
    assert {key for key in before if before[key] != after[key]} == set()


def test_all_public_functions_are_called_or_left_out_on_purpose() -> None:
    functions = {name for name in densepath.__all__ if inspect.isfunction(getattr(densepath, name))}
    assert functions == {*CALLS, *OTHERS}


def test_the_state_is_restored_after_an_error(inputs: Path, tmp_path: Path, unusual: None) -> None:
    before = _state()
    with pytest.raises(UserError):
        densepath.pretrain("simclr_small", data=inputs / "none", out=tmp_path / "run")
    assert _state() == before


def test_a_resumed_run_computes_with_its_own_threads_and_leaves_those_of_its_caller(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(system, "is_command", False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        CALLS["pretrain"](inputs, tmp_path / "run")
        torch.set_num_threads(3)
        densepath.pretrain(tmp_path / "run" / "config.yaml", resume=True)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def _predictions(folder: Path) -> list[Any]:
    image = folder / "tiles" / "0.png"
    objects = densepath.load_detector(folder / "detector").predict(image, score=0.0)
    return [
        densepath.load_classifier(folder / "classifier").predict(image),
        objects.scores.tolist(),
        densepath.load_segmenter(folder / "segmenter").predict(image).tolist(),
    ]


def test_predictions_do_not_depend_on_the_settings_of_the_caller(inputs: Path) -> None:
    expected = _predictions(inputs)
    assert all(expected)
    with _unusual_settings():
        before = _state()
        assert _predictions(inputs) == expected
        assert _state() == before


def test_threads_predict_at_the_same_time_whatever_the_default_type(inputs: Path) -> None:
    model, images = densepath.load_classifier(inputs / "classifier"), sorted((inputs / "tiles").iterdir())
    expected = [model.predict(image) for image in images]
    before = _state()
    torch.set_default_dtype(torch.float64)
    try:
        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(model.predict, images)) == expected
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert _state() == before


def test_a_run_within_an_autocast_of_the_caller_is_the_same(inputs: Path, tmp_path: Path) -> None:
    """Also in bfloat16: its steps do not compute with the weights of the first one."""

    def weights(name: str) -> dict[str, torch.Tensor]:
        densepath.pretrain(
            "simclr_small",
            data=inputs / "tiles",
            out=tmp_path / name,
            max_steps=3,
            view_size=64,
            precision="bf16-mixed",
            **FAST,
        )
        return load_file(tmp_path / name / "exported" / "backbone.safetensors")

    expected = weights("plain")
    with torch.autocast("cpu", torch.bfloat16):
        made = weights("within")
    assert all(torch.equal(made[name], value) for name, value in expected.items())


def test_threads_take_turns(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each run has the weights that it has alone: threads share the random generators."""
    both = threading.Barrier(2, timeout=60)

    def weights(name: str, together: bool) -> dict[str, torch.Tensor]:
        if together:
            both.wait()
        densepath.pretrain(
            "simclr_small",
            data=inputs / "tiles",
            out=tmp_path / name,
            backbone="test_resnet",
            max_steps=2,
            batch_size=8,
            view_size=32,
            devices="cpu",
            workers=0,
        )
        return load_file(tmp_path / name / "exported" / "backbone.safetensors")

    alone = weights("alone", together=False)
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(weights, name, together=True) for name in ("one", "other")]
    for run in runs:
        made = run.result()
        assert all(torch.equal(made[name], value) for name, value in alone.items())
    assert "waiting for another call of densepath in this process" in capsys.readouterr().err
