"""Loads saliency models: files of torch.export, TorchScript or ONNX, or models of transformers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.errors import UserError, errors_as
from densepath.nets.weights.checks import require_numbers_in
from densepath.nets.weights.hub import fetch, quiet
from densepath.nets.weights.model_folders import read_image_processor
from densepath.sources.pixel_source import PixelSpec

Predict = Callable[[Tensor], Any]

_RGB = PixelSpec()
_INPUT = 256  # input size of BASNet in pixels
_TORCHSCRIPT = (".pt", ".pth", ".ts", ".torchscript")


def load_saliency_model(path: Path) -> Predict:
    """Load a function from images (1, 3, H, W) in [0, 1] to a saliency map, or to several outputs with the map first.

    The image is resized to 256 x 256 and normalized as for ImageNet, or as configured in the folder of a transformers
    model. TorchScript and ONNX files contain programs that are executed: load only files from sources you trust.

    Args:
        path: a file of ``torch.export.save`` (.pt2), of TorchScript (.pt, .pth, .ts, .torchscript), or of ONNX (.onnx);
            or a folder as for :func:`is_model_folder`, from which no code is executed.

    Raises:
        UserError: the file cannot be read, its format is unknown, or onnxruntime or transformers is missing.
    """
    suffix = path.suffix.lower()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def refusal(error: Exception) -> UserError:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return UserError(f"the saliency model {path} cannot be read ({reason}); export it again")

    with errors_as(refusal):
        if path.is_dir():
            return _load_transformers(path, device)
        if suffix == ".onnx":
            return _prepared(_load_onnx(path), path)
        if suffix == ".pt2":
            return _prepared(_load_exported(path, device), path)
        if suffix in _TORCHSCRIPT:
            return _prepared(_load_torchscript(path, device), path)
    raise UserError(f"the format of the saliency model {path} is unknown; use .pt2, {', '.join(_TORCHSCRIPT)} or .onnx")


def is_model_folder(path: Path) -> bool:
    """Whether a folder was written by ``save_pretrained`` of transformers, with weights in safetensors."""
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def fetched(name: str) -> Path | None:
    """The folder of a model on the Hugging Face hub, from its cache or over the network; None if there is none."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return None
    try:
        return fetch(name)
    except UserError:
        return None


def _prepared(
    predict: Predict,
    path: Path,
    size: tuple[int, int] = (_INPUT, _INPUT),
    mean: Sequence[float] = _RGB.mean,
    std: Sequence[float] = _RGB.std,
) -> Predict:
    """The model with the preprocessing of its images."""
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def predict_colors(pixels: Tensor) -> Any:
        resized = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        try:
            return predict((resized - shift) / scale)
        except UserError:
            raise
        except Exception as error:  # the program may raise anything
            reason = (str(error) or type(error).__name__).strip().splitlines()[-1]
            raise UserError(
                f"the saliency model {path} fails on an image of {size[1]} x {size[0]} px ({reason}); export it again"
            ) from error

    return predict_colors


def _load_transformers(path: Path, device: str) -> Predict:
    """A semantic segmentation model with one label, or with two, of which the second is the foreground."""
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"the saliency model {path} needs transformers; run pip install 'densepath[transformers]'"
        ) from error
    options = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    with quiet(transformers):
        model, loading = transformers.AutoModelForSemanticSegmentation.from_pretrained(path, **options)
    lacking = [*loading["missing_keys"], *loading.get("mismatched_keys", ())]
    if lacking:
        raise UserError(f"the saliency model {path} lacks weights ({lacking[0]}); save the complete model")
    if model.config.num_labels > 2:
        raise UserError(f"the model {path} has {model.config.num_labels} labels; use a model with one or two labels")
    require_numbers_in(model, path)
    model.to(device).eval()

    def predict(images: Tensor) -> Tensor:
        logits = model(pixel_values=images.to(device)).logits.float()
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[:, 1:]

    return _prepared(predict, path, *_preparation(path))


def _preparation(path: Path) -> tuple[tuple[int, int], Sequence[float], Sequence[float]]:
    """Image size, mean and std that a transformers model was trained with, if its folder gives them."""
    config = read_image_processor(path)
    size: Any = config.get("size", {})
    size = size if isinstance(size, dict) else {"shortest_edge": size}
    side = size.get("shortest_edge", _INPUT)
    mean, std = config.get("image_mean", _RGB.mean), config.get("image_std", _RGB.std)
    return (int(size.get("height", side)), int(size.get("width", side))), mean, std


def _load_exported(path: Path, device: str) -> Predict:
    from torch.export.passes import move_to_device_pass

    program = torch.export.load(path)
    module = move_to_device_pass(program, device).module()
    return lambda images: module(images.to(device))


def _load_torchscript(path: Path, device: str) -> Predict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but still common
        module: Any = torch.jit.load(path, map_location=device).eval()
    return lambda images: module(images.to(device))


def _load_onnx(path: Path) -> Predict:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"the saliency model {path} needs onnxruntime; run pip install 'densepath[onnx]'") from error
    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    name = session.get_inputs()[0].name
    return lambda images: [torch.from_numpy(output) for output in session.run(None, {name: images.numpy()})]
