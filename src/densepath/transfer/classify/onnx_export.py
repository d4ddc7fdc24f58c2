"""``densepath export CLASSIFIER --layout onnx``: a trained classifier for ONNX runtimes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from densepath.core.errors import UserError, one_line
from densepath.core.files import atomic_write
from densepath.transfer.classify.classifier import KEY, Classifier, ClassifierNotes, classifier_path, read_classifier
from densepath.transfer.classify.trained import load_classifier
from densepath.transfer.onnx_file import describe, require_onnx, traced

_AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}
_TRACED, _OTHERS = (40, 57, 49), ((83, 40, 61), (29, 211, 97))  # sides of images in pixels
_TOLERANCE = 1e-3


class ClassifierGraph(nn.Module):
    """A classifier with the steps before and after it, for tracing: sizes are tensors.

    Args:
        model: the classifier.
        notes: of it.
    """

    def __init__(self, model: Classifier, notes: ClassifierNotes) -> None:
        super().__init__()
        self.model, self.notes = model, notes

    def forward(self, image: Tensor) -> Tensor:
        """(*size, C) stored pixels -> (T,) probabilities of the largest central box with the sides' ratio of inputs."""
        size: tuple[Any, ...] = torch._shape_as_tensor(image)[:-1].double().unbind()
        sides = list(zip(size, self.notes.view_size, strict=True))
        step = torch.stack([side / count for side, count in sides]).min()  # pixels of the image for one of the input
        last = len(sides)
        pixels = image.float().permute(last, *range(last))
        for axis, (side, count) in enumerate(sides, 1):
            weights = _weights(side, count, step).t()
            pixels = torch.matmul(pixels.transpose(axis, last), weights).transpose(axis, last)
        spec = self.notes.spec
        logits = self.model(spec.normalize(spec.apply_window(pixels)[None]))[0]
        return logits.softmax(0) if self.notes.exclusive else logits.sigmoid()


def _weights(side: Tensor, count: int, step: Tensor) -> Tensor:
    """The weights (count, side) of the pixels of an axis: triangles as in :func:`~densepath.core.filters.axis_taps`."""
    center = side / 2 + (torch.arange(count).double() + 0.5 - count / 2) * step
    pixel = torch.arange(side.long()).double() + 0.5  # type: ignore[call-overload]
    weights = (1 - (pixel - center[:, None]).abs() / step.clamp(min=1)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float()


def export_onnx(run: str | Path, out: str | Path | None = None) -> Path:
    """Write a trained classifier as an ONNX file that takes images of any size.

    The graph contains all steps of ``load_classifier(run).predict(image)`` from the pixels as stored: box, resizing,
    window, normalization, and probabilities. The file is compared with it.

    Args:
        run: the folder of a run of ``classify``, or its exported/classifier.safetensors.
        out: the file; by default classifier.onnx next to classifier.safetensors.

    Returns:
        The file.

    Raises:
        UserError: a package is missing, torch cannot trace the backbone, or the file's name does not end in .onnx.
    """
    onnx, onnxruntime = require_onnx(out)
    path = classifier_path(run)
    model, notes = read_classifier(path)
    axes = dict(enumerate(_AXES[notes.spec.ndim]))
    try:
        image = torch.from_numpy(_image(notes, _TRACED).astype(_traced_dtype(notes)))
        graph = ClassifierGraph(model, notes).eval()
        written = traced(graph, (image,), ["image"], ["probabilities"], {"image": axes})
        _describe(written, notes)
        onnx.checker.check_model(written, full_check=True)
        session = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
        equal = all(_agree(session, path, _image(notes, sides)) for sides in _OTHERS)
    except Exception as error:  # torch, onnx and onnxruntime raise nearly any type on layers that they do not know
        why = one_line(str(error).partition("\n")[0])
        raise UserError(f"{_unfit(notes)} ({why})") from error
    if not equal:
        raise UserError(f"{_unfit(notes)}: its probabilities are others than those of the classifier")
    target = path.with_suffix(".onnx") if out is None else Path(out)
    with atomic_write(target) as part:
        onnx.save(written, part)
    return target


def _unfit(notes: ClassifierNotes) -> str:
    return f"a classifier on {notes.backbone} cannot be written as ONNX; use another backbone"


def _dtype(notes: ClassifierNotes) -> type[Any]:
    """Of stored pixels: that of image files, or float32 of volumes and of other channels."""
    spec = notes.spec
    return spec.image_dtype if spec.ndim == 2 and spec.channels in (1, 3) else np.float32


def _traced_dtype(notes: ClassifierNotes) -> type[Any]:
    """As :func:`_dtype`, as the exporter knows it."""
    return np.int32 if _dtype(notes) is np.uint16 else _dtype(notes)


def _image(notes: ClassifierNotes, sides: tuple[int, ...]) -> npt.NDArray[Any]:
    """Stored pixels (*size, C), smooth ones with noise."""
    spec = notes.spec
    shape, (low, high) = (*sides[: spec.ndim], spec.channels), spec.window
    rng = np.random.default_rng(sides)
    ramps = [np.linspace(rng.random(), rng.random(), side) for side in shape]
    smooth = sum(np.ix_(*ramps)) / len(shape)
    values = 0.8 * smooth + 0.2 * rng.random(shape)
    return (low + (high - low) * values).astype(_dtype(notes))


def _agree(session: Any, path: Path, image: npt.NDArray[Any]) -> bool:
    """Whether the file gives the probabilities of the classifier."""
    expected = list(load_classifier(path).predict(image).values())
    (found,) = session.run(["probabilities"], {"image": image})
    return bool(np.allclose(found, expected, rtol=0, atol=_TOLERANCE))


def _describe(written: Any, notes: ClassifierNotes) -> None:
    """Add the descriptions and the classifier's metadata."""
    axes = ", ".join((*_AXES[notes.spec.ndim], "channels"))
    kind = "that of the class" if notes.exclusive else "that of each label"
    descriptions = {
        "image": f"({axes}): the pixels of one image, as stored; any size",
        "probabilities": f"({'classes' if notes.exclusive else 'labels'}): from 0 to 1, {kind}",
    }
    what = f"classifier on {notes.backbone}: {', '.join(notes.labels)}"
    facts = {KEY: asdict(notes), "classes": notes.labels, "several_labels": not notes.exclusive}
    describe(written, _dtype(notes), what, descriptions, facts)
