"""Saliency models in three file formats, and masks, give two concepts."""

import json
import re
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from densepath.annotations.label_cache import label_images
from densepath.concepts.saliency import Saliency
from densepath.core.errors import UserError
from densepath.sources.open import open_images

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Model(nn.Module):
    """Several outputs, as BASNet has; the first one measures how red a neighbourhood is."""

    def __init__(self, final: str = "") -> None:
        super().__init__()
        self.blur = nn.AvgPool2d(5, 1, 2, count_include_pad=False)
        self.final = final

    def forward(self, x):
        y = 3 * self.blur(x[:, :1] - x[:, 1:2]) - 1
        if self.final == "sigmoid":
            y = y.sigmoid()
        return y, -y


def save(path, model=None, size=256):
    example = torch.rand(1, 3, size, size)
    model = (model or Model()).eval()
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(model, (example,)), path)
    else:
        with pytest.warns((FutureWarning, DeprecationWarning)):  # TorchScript is deprecated
            torch.jit.save(torch.jit.trace(model, example), path)
    return path


@pytest.fixture
def image():
    """Noise with a red rectangle."""
    pixels = np.random.default_rng(0).integers(90, 160, (120, 200, 3), dtype=np.uint8)
    pixels[30:80, 50:150, 0] += 90
    return pixels


def by_hand(image, final=""):
    pixels = F.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None] / 255, (256, 256), mode="bilinear", antialias=True
    )
    y = Model(final)((pixels - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1))[0][0, 0]
    y = y if final else 1 / (1 + (-y).exp())
    return ((y - y.min()) / (y.max() - y.min()) > 0.5).numpy()


@pytest.mark.parametrize("final", ["", "sigmoid"])
@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
def test_the_first_output_is_scaled_and_thresholded(tmp_path, image, suffix, final):
    labels = Saliency(save(tmp_path / f"model{suffix}", Model(final))).label(image, "")
    assert labels.shape == (256, 256)
    assert np.array_equal(labels, by_hand(image, final))
    assert labels[106, 128] == 1 and labels[10, 10] == 0


def test_onnx_models_run_in_onnxruntime(tmp_path, image, monkeypatch):
    """A fake runtime, as onnxruntime need not be installed: its API is called correctly."""
    model = Model().eval()

    class Session:
        def __init__(self, path, providers):
            assert path == tmp_path / "model.onnx" and providers == ["CPU"]

        def get_inputs(self):
            return [types.SimpleNamespace(name="pixels")]

        def run(self, outputs, inputs):
            return [output.numpy() for output in model(torch.from_numpy(inputs["pixels"]))]

    runtime = types.SimpleNamespace(InferenceSession=Session, get_available_providers=lambda: ["CPU"])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    assert np.array_equal(Saliency(tmp_path / "model.onnx").label(image, ""), by_hand(image))


def test_onnx_models_run_in_the_installed_onnxruntime(tmp_path, image):
    """The same model, written with ONNX's own operators."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    constants = {"weight": np.array([[3, -3, 0]], np.float32).reshape(1, 3, 1, 1), "bias": -np.ones(1, np.float32)}
    graph = onnx.helper.make_graph(
        [
            node("Conv", ["pixels", "weight", "bias"], ["difference"]),
            node("AveragePool", ["difference"], ["red"], kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
            node("Neg", ["red"], ["rest"]),
        ],
        "saliency",
        [tensor("pixels", onnx.TensorProto.FLOAT, [1, 3, 256, 256])],
        [tensor(name, onnx.TensorProto.FLOAT, [1, 1, 256, 256]) for name in ("red", "rest")],
        [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    labels, expected = Saliency(tmp_path / "model.onnx").label(image, ""), by_hand(image)
    assert (labels == expected).mean() > 0.999  # another order of summation
    assert labels[106, 128] == 1 and labels[10, 10] == 0


def test_a_missing_runtime_is_named(tmp_path, image, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(UserError, match=r"model\.onnx needs onnxruntime; run pip install 'densepath\[onnx\]'"):
        Saliency(tmp_path / "model.onnx").label(image, "")


def test_masks_are_thresholded_at_the_middle_of_their_range(tmp_path):
    (tmp_path / "tiles").mkdir()
    (tmp_path / "masks").mkdir()
    for name, values in {"a": (0, 255), "b": (40, 60), "c": (0, 0)}.items():
        Image.new("RGB", (80, 80)).save(tmp_path / "tiles" / f"{name}.png")
        mask = np.full((80, 80), values[0], np.uint8)
        mask[:, 40:] = values[1]
        mask[0, 0] = sum(values) // 2  # half is not above half
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    maps = label_images(open_images(tmp_path / "tiles"), Saliency(tmp_path / "masks"), tmp_path / "cache").maps
    expected = np.zeros((80, 80))
    expected[:, 40:] = 1
    assert np.array_equal(maps[0], expected) and np.array_equal(maps[1], expected) and not maps[2].any()


def test_a_mask_with_another_aspect_ratio_than_its_image_is_named(tmp_path):
    for folder, size in (("tiles", (80, 60)), ("masks", (60, 80))):
        (tmp_path / folder).mkdir()
        Image.new("RGB", size).save(tmp_path / folder / "a.png")
    with pytest.raises(UserError, match=r"a\.png has 60 x 80 px and its image 80 x 60; a mask must have its image's"):
        label_images(open_images(tmp_path / "tiles"), Saliency(tmp_path / "masks"), tmp_path / "cache")


def segformer(folder, labels):
    """A tiny model of transformers with random weights, saved by save_pretrained."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], decoder_hidden_size=8, num_labels=labels
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("labels", [1, 2])
def test_a_model_of_transformers_is_preprocessed_as_its_folder_configures(tmp_path, image, labels):
    model = segformer(tmp_path / "model", labels)
    config = {"size": {"height": 64, "width": 96}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(config))
    source = Saliency(tmp_path / "model")
    source.begin(["image.png"])
    assert not source.parallel
    found = source.label(image, "image.png")
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    pixels = F.interpolate(pixels, (64, 96), mode="bilinear", antialias=True)
    with torch.no_grad():
        logits = model((pixels - 0.5) / 0.25).logits.double()
    y = (logits[0, 0] if labels == 1 else logits[0, 1] - logits[0, 0]).sigmoid()
    assert np.array_equal(found, ((y - y.min()) / (y.max() - y.min()) > 0.5).numpy())
    assert 0.05 < found.mean() < 0.95
    before = source.identity()
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    assert source.identity() != before


def test_an_unusable_model_of_transformers_is_named(tmp_path, image, monkeypatch):
    segformer(tmp_path / "many", 3)
    with pytest.raises(UserError, match="many has 3 labels; use a model with one or two"):
        Saliency(tmp_path / "many").label(image, "")
    segformer(tmp_path / "half", 1)
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    gone = sorted(tensors)[0]
    save_file({name: value for name, value in tensors.items() if name != gone}, tmp_path / "half" / "model.safetensors")
    with pytest.raises(UserError, match=f"half lacks weights \\({re.escape(gone)}\\)"):
        Saliency(tmp_path / "half").label(image, "")
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForSemanticSegmentation": "evil.Model"}, "model_type": "evil"}
    (tmp_path / "half" / "config.json").write_text(json.dumps(config))
    (tmp_path / "half" / "evil.py").write_text("raise SystemExit")
    with pytest.raises(UserError, match="half cannot be read"):
        Saliency(tmp_path / "half").label(image, "")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers; run pip install 'densepath\[transformers\]'"):
        Saliency(tmp_path / "half").label(image, "")


def test_a_name_is_searched_on_the_hub(tmp_path, image, monkeypatch):
    segformer(tmp_path / "fetched", 1)
    asked = []

    def download(name, allow_patterns):
        asked.append(name)
        if name != "somebody/saliency":
            raise OSError("no network")
        assert allow_patterns == ["*.json", "*.safetensors"]
        return str(tmp_path / "fetched")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = Saliency("somebody/saliency")
    source.begin(["image.png"])
    assert source.label(image, "").shape == (64, 64)  # a quarter of its input
    for name in ("somebody/else", "nowhere", "/a/b"):
        with pytest.raises(UserError, match=f"{name} is not a saliency model, a folder of masks, or a model"):
            Saliency(name).begin(["image.png"])
    assert asked == ["somebody/saliency", "somebody/else"]


def test_each_model_has_its_own_cache(tmp_path, image):
    Image.fromarray(image).save(tmp_path / "image.png")
    images, found = open_images(tmp_path / "image.png"), []
    for bias in (0.0, 1.0):
        model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Sigmoid())
        nn.init.constant_(model[0].weight, 0.5 - bias)
        source = Saliency(save(tmp_path / "model.pt2", model))
        found.append(label_images(images, source, tmp_path / "cache").maps.copy())
    assert not np.array_equal(*found)
    source._predict = None
    (tmp_path / "model.pt2").rename(tmp_path / "other.pt2")
    unread = Saliency(tmp_path / "other.pt2")
    assert np.array_equal(label_images(images, unread, tmp_path / "cache").maps, found[1])
    assert unread._predict is None  # found in the cache, so never loaded


class Named(nn.Module):
    def forward(self, x):
        return {"out": Model()(x)[0], "aux": x}


class Nested(nn.Module):
    def forward(self, x):
        return [[x]]


def test_the_first_of_named_outputs_is_used(tmp_path, image):
    assert np.array_equal(Saliency(save(tmp_path / "model.pt2", Named())).label(image, ""), by_hand(image))


@pytest.mark.parametrize(("outputs", "what"), [((), "a NoneType"), (None, "a NoneType"), ("map", "a str")])
def test_a_model_without_a_map_is_named(tmp_path, image, outputs, what):
    source = Saliency(tmp_path)
    source.parallel, source._predict = False, lambda pixels: outputs
    with pytest.raises(UserError, match=f"returns {what} instead of one finite map"):
        source._saliency(image)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (nn.Conv2d(3, 2, 1), 256, r"returns \(1, 2, 256, 256\) instead of one finite map"),
        (nn.Flatten(), 256, r"returns \(1, 196608\) instead of one"),
        (Nested(), 256, "returns a list instead of one"),
        (nn.Sequential(nn.Conv2d(3, 1, 1), nn.Threshold(1e9, float("nan"))), 256, "instead of one finite map"),
        (nn.Conv2d(3, 1, 1), 128, "fails on an image of 256 x 256 px"),
    ],
)
def test_a_model_that_returns_no_map_is_named(tmp_path, image, model, size, message):
    with pytest.raises(UserError, match=message):
        Saliency(save(tmp_path / "model.pt2", model, size)).label(image, "")


@pytest.mark.parametrize("name", ["model.pt", "model.pt2", "model.onnx", "model.h5"])
def test_a_file_that_is_not_a_model_is_named(tmp_path, image, name, monkeypatch):
    runtime = types.SimpleNamespace(InferenceSession=lambda *_, **__: 1 / 0, get_available_providers=list)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    (tmp_path / name).write_bytes(b"nothing")
    message = "the format of the saliency model" if name.endswith("h5") else "cannot be read"
    with pytest.raises(UserError, match=message):
        Saliency(tmp_path / name).label(image, "")
