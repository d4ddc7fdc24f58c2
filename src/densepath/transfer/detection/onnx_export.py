"""``densepath export DETECTOR --layout onnx``: a trained detector for ONNX runtimes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.errors import UserError, one_line
from densepath.core.files import atomic_write
from densepath.transfer.detection.detector_file import KEY, detector_path
from densepath.transfer.detection.onnx_graph import DetectorGraph
from densepath.transfer.detection.predictor import TrainedDetector, load_detector
from densepath.transfer.onnx_file import describe, require_onnx, traced

_TRACED, _OTHER = (173, 211), (350, 260)  # pixels: height and width of the image that is traced, and of another one
_TOLERANCE, _SHARE = 1e-2, 0.9
_INPUTS = {
    "image": "(height, width, channels): the pixels of one image, as stored; any size",
    "score": "(1): the lowest score of an object, from 0 to 1",
}
_BOX_OUTPUTS = {
    "boxes": "(objects, 4): x1, y1, x2, y2 in pixels of the image; best first",
    "scores": "(objects): from 0 to 1",
    "labels": "(objects): numbers of the classes, from 1",
}
_MASK_OUTPUTS = {
    "masks": "(objects, M, M): for each box, probabilities that cover it from edge to edge",
    "label_map": "(height, width): 0 for background, k for the k-th object, where its probability is at least 0.5; "
    "the smallest one where objects overlap",
}


def export_onnx(run: str | Path, out: str | Path | None = None) -> Path:
    """Write a trained detector as an ONNX file that takes images of any size.

    The graph contains all steps of ``load_detector(run).predict(image, window=0)``: window, resizing, normalization,
    padding, non-maximum suppression, and the label map.

    Args:
        run: the folder of a run of ``detect``, or its exported/detector.safetensors.
        out: the file; by default detector.onnx next to detector.safetensors.

    Returns:
        The file.

    Raises:
        UserError: a package is missing, there is no detector, torch cannot trace its backbone, or the file's name does
            not end in .onnx.
    """
    onnx, onnxruntime = require_onnx(out)
    model = load_detector(run)
    path = detector_path(run).with_suffix(".onnx") if out is None else Path(out)
    graph = DetectorGraph(model).eval()
    try:
        written = _traced(graph, model)
        _describe(written, model)
        onnx.checker.check_model(written, full_check=True)
        session = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
        equal = _agree(session, graph, _image(model, *_OTHER))
    except Exception as error:  # torch, onnx and onnxruntime raise nearly any type on layers that they do not know
        raise UserError(f"{_unfit(model)} ({one_line(str(error))})") from error
    if not equal:
        raise UserError(f"{_unfit(model)}: in images of another size than the traced one it finds other objects")
    with atomic_write(path) as part:
        onnx.save(written, part)
    return path


def _unfit(model: TrainedDetector) -> str:
    return f"a {model.notes.detector} on {model.notes.backbone} cannot be written as ONNX; use another backbone"


def _image(model: TrainedDetector, height: int, width: int) -> Tensor:
    """Stored pixels (H, W, C) with blobs."""
    low, high = model.notes.spec.window
    grid = torch.rand(1, len(model.notes.mean), 9, 12, generator=torch.Generator().manual_seed(0))
    pixels = low + (high - low) * F.interpolate(grid, (height, width), mode="bicubic")[0].permute(1, 2, 0).clamp(0, 1)
    return pixels.to(torch.uint8 if model.dtype is np.uint8 else torch.int32)  # the exporter does not know uint16


def _agree(session: Any, graph: DetectorGraph, image: Tensor) -> bool:
    """Whether both find the same objects, apart from a few whose scores or overlaps are close to a limit."""
    score = torch.zeros(1)
    boxes, scores, *_ = graph(image, score)
    found = session.run(["boxes", "scores"], {"image": image.numpy().astype(graph.dtype), "score": score.numpy()})
    others, other_scores = map(torch.from_numpy, found)
    near = (boxes[:, None] - others).abs().amax(2) < 1  # pixel
    same = near & ((scores[:, None] - other_scores).abs() < _TOLERANCE)
    return int(same.any(1).sum()) >= _SHARE * len(boxes)


def _traced(graph: DetectorGraph, model: TrainedDetector) -> Any:
    """The graph, as torch writes it."""
    outputs = [*_BOX_OUTPUTS, *(_MASK_OUTPUTS if model.finds_masks else ())]
    axes = {name: {0: "objects"} for name in outputs} | {"image": {0: "height", 1: "width"}}
    axes["label_map"] = axes["image"]
    inputs = _image(model, *_TRACED), torch.zeros(1)
    return traced(graph, inputs, list(_INPUTS), outputs, {name: axes[name] for name in ("image", *outputs)})


def _describe(written: Any, model: TrainedDetector) -> None:
    """Add the descriptions and the detector's metadata."""
    notes = model.notes
    what = f"{notes.detector} on {notes.backbone}; finds {', '.join(notes.category_names)}"
    facts = {KEY: asdict(notes), "classes": notes.category_names}
    describe(written, model.dtype, what, _INPUTS | _BOX_OUTPUTS | _MASK_OUTPUTS, facts)
