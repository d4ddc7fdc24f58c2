"""``densepath export``: what was trained, for other code."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from densepath.training.export import export as export_run
from densepath.transfer.detection.onnx_export import export_onnx


def export(
    run: str | Path,
    out: str | Path | None = None,
    layout: Literal["timm", "torchvision", "detectron2", "onnx"] = "timm",
) -> Path:
    """Write the backbone of a run, in its newest state, for another library; or a trained detector as an ONNX file.

    Args:
        run: the folder of a pre-training run, which need not be complete; for "onnx" the folder of a run of ``detect``,
            or its exported/detector.safetensors.
        out: the file to write; by default it goes to ``exported/`` in the run folder.
        layout: "timm", "torchvision" or "detectron2" for a backbone; "onnx" for a detector with all steps from the
            stored pixels of an image to its objects.

    Returns:
        The file.

    Raises:
        UserError: there is no such run, it has no checkpoint yet, the layout does not fit its backbone, or a package is
            missing.
    """
    return export_onnx(run, out) if layout == "onnx" else export_run(run, out, layout)
