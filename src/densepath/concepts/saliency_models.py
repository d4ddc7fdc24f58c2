"""Saliency models as their users have them: exported by torch, TorchScript or ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from densepath.core.errors import UserError

Predict = Callable[[Tensor], Any]

_TORCHSCRIPT = (".pt", ".pth", ".ts", ".torchscript")


def load_saliency_model(path: Path) -> Predict:
    """A model that takes images (1, 3, 256, 256), normalized, and gives a saliency map, alone or first of several.

    A TorchScript file and an ONNX file hold a program that is run: load only what comes from somebody you trust.

    Args:
        path: a file of ``torch.export.save`` (.pt2), of TorchScript (.pt, .pth, .ts, .torchscript), or of ONNX (.onnx).

    Raises:
        UserError: the file cannot be read, its kind is not known, or onnxruntime is missing.
    """
    suffix = path.suffix.lower()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if suffix == ".onnx":
            return _load_onnx(path)
        if suffix == ".pt2":
            return _load_exported(path, device)
        if suffix in _TORCHSCRIPT:
            return _load_torchscript(path, device)
    except UserError:
        raise
    except Exception as error:  # each reader has its own on broken bytes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"the saliency model {path} cannot be read ({reason}); export it again") from error
    raise UserError(f"the saliency model {path} is none of .pt2, {', '.join(_TORCHSCRIPT)}, .onnx; export it as one")


def _load_exported(path: Path, device: str) -> Predict:
    program = torch.export.load(path)
    module = move_to_device_pass(program, device).module()
    return lambda images: module(images.to(device))


def _load_torchscript(path: Path, device: str) -> Predict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is deprecated, but what many people have
        module: Any = torch.jit.load(path, map_location=device).eval()
    return lambda images: module(images.to(device))


def _load_onnx(path: Path) -> Predict:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"the saliency model {path} needs onnxruntime; install it by pip install 'densepath[onnx]'"
        ) from error
    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    name = session.get_inputs()[0].name
    return lambda images: [torch.from_numpy(output) for output in session.run(None, {name: images.numpy()})]
