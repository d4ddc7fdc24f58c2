"""Classifiers as ONNX files: onnxruntime gives for images of any size what the classifier gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import densepath
from densepath.cli import main
from densepath.core.errors import UserError
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.classify.classifier import ClassifierNotes, save_classifier

LABELS = ("benign", "normal", "tumour")
DEEP = PixelSpec(2, 1, (0.0, 4095.0), (0.4,), (0.2,))  # grey, 16 bits
CT = PixelSpec(3, 1, (-1000.0, 400.0), (0.4,), (0.2,))


def trained(folder: Path, backbone: str, spec: PixelSpec, exclusive: bool, size: tuple[int, ...]) -> Path:
    torch.manual_seed(0)
    pool = "cls" if backbone == "test_vit" else "mean"
    notes = ClassifierNotes(backbone, pool, LABELS, exclusive, size, spec.record())  # type: ignore[arg-type]
    model = notes.build()
    nn.init.normal_(model.head.weight, std=1.0)
    save_classifier(folder / "exported/classifier.safetensors", model, notes)
    return folder


@pytest.mark.parametrize(
    ("backbone", "spec", "exclusive", "size", "dtype"),
    [
        ("test_resnet", PixelSpec(), True, (32, 48), "uint8"),
        ("test_vit", DEEP, False, (64, 64), "uint16"),
        ("resnet18_3d", CT, True, (16, 16, 16), "float"),
    ],
)
def test_the_file_gives_the_probabilities_of_the_classifier(
    backbone: str, spec: PixelSpec, exclusive: bool, size: tuple[int, ...], dtype: str, tmp_path: Path
) -> None:
    run = trained(tmp_path / "run", backbone, spec, exclusive, size)
    assert main(["export", str(run), "--layout", "onnx"]) == 0
    session, model = onnxruntime.InferenceSession(run / "exported/classifier.onnx"), densepath.load_classifier(run)
    rng, kind = np.random.default_rng(0), {"uint8": np.uint8, "uint16": np.uint16, "float": np.float32}[dtype]
    for sides in ((70, 41, 29), (19, 90, 33)):
        shape = (*sides[: spec.ndim], spec.channels)
        image = rng.uniform(*spec.window, shape).astype(kind)
        (found,) = session.run(None, {"image": image})
        np.testing.assert_allclose(found, list(model.predict(image).values()), atol=1e-5)
        assert found.std() > 1e-3
    (given,) = session.get_inputs()
    axes = [*("depth", "height", "width")[-spec.ndim :], spec.channels]
    assert (given.type, given.shape) == (f"tensor({dtype})", axes)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(LABELS) and json.loads(facts["several_labels"]) is not exclusive
    assert json.loads(facts["densepath_classifier"])["view_size"] == list(size)


def test_only_detectors_and_classifiers_become_onnx_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no trained detector or classifier, and only these become ONNX"):
        densepath.export(tmp_path, layout="onnx")
