"""What ONNX files of trained networks share: their packages, tracing, descriptions and metadata."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.onnx import register_custom_op_symbolic, symbolic_helper, unregister_custom_op_symbolic

from densepath.core.errors import UserError
from densepath.version import __version__

OPSET = 18
_CUBIC = -0.5  # the coefficient of torch's bicubic interpolation with antialiasing


def require_onnx(out: str | Path | None) -> tuple[Any, Any]:
    """The packages onnx and onnxruntime.

    Raises:
        UserError: one is missing, or the file to write does not end in .onnx.
    """
    if out is not None and Path(out).suffix.lower() != ".onnx":
        raise UserError(f"{out} must end in .onnx for the layout onnx")
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError("the layout onnx needs pip install 'densepath[onnx]'") from error
    return onnx, onnxruntime


def traced(
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
) -> Any:
    """A network as torch writes it; ``axes`` names the axes of any length."""
    import onnx

    with warnings.catch_warnings(), TemporaryDirectory() as folder, _antialiased_resizing():
        warnings.simplefilter("ignore")  # of tracing
        torch.onnx.export(
            graph,
            inputs,
            Path(folder, "graph.onnx"),
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_axes=dict(axes),
            opset_version=OPSET,
            dynamo=False,  # torch.export cannot follow torchvision's proposals, whose number depends on the image
        )
        return onnx.load(Path(folder, "graph.onnx"))


def describe(
    written: Any, dtype: npt.DTypeLike, what: str, descriptions: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    """Add descriptions and metadata.

    Args:
        written: the graph, whose first input becomes one of ``dtype``: the exporter does not know uint16.
        dtype: of stored pixels.
        what: the network in a line.
        descriptions: of inputs and outputs.
        facts: metadata, written as JSON.
    """
    import onnx

    graph = written.graph
    graph.input[0].type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for value in (*graph.input, *graph.output):
        value.doc_string = descriptions[value.name]
    written.producer_name, written.producer_version, written.doc_string = "densepath", __version__, what
    known = {name: json.dumps(value) for name, value in facts.items()}
    onnx.helper.set_model_props(written, known | {v.name: v.doc_string for v in (*graph.input, *graph.output)})


@contextmanager
def _antialiased_resizing() -> Iterator[None]:
    """Makes torch's exporter write interpolation with antialiasing as ONNX's Resize."""
    ops = {"aten::_upsample_bilinear2d_aa": "linear", "aten::_upsample_bicubic2d_aa": "cubic"}
    for name, mode in ops.items():
        register_custom_op_symbolic(name, _resize(mode), OPSET)
    try:
        yield
    finally:
        for name in ops:
            unregister_custom_op_symbolic(name, OPSET)


def _resize(mode: str) -> Callable:
    def write(graph: Any, pixels: Any, size: Any, *_: Any) -> Any:
        def constant(*values: int) -> Any:
            return graph.op("Constant", value_t=torch.tensor(values))

        if symbolic_helper._is_packed_list(size):
            sides = [graph.op("Reshape", side, constant(1)) for side in symbolic_helper._unpack_list(size)]
            size = graph.op("Concat", *sides, axis_i=0)
        batch = graph.op("Slice", graph.op("Shape", pixels), constant(0), constant(2))
        unused = graph.op("Constant", value_t=torch.zeros(0))
        # In torch, pixels beyond the border have no weight.
        settings = {"mode_s": mode, "antialias_i": 1, "exclude_outside_i": 1, "cubic_coeff_a_f": _CUBIC}
        sizes = graph.op("Concat", batch, size, axis_i=0)
        return graph.op(
            "Resize", pixels, unused, unused, sizes, coordinate_transformation_mode_s="half_pixel", **settings
        )

    return write
