"""``densepath export``: what was trained, for other code."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import nn

from densepath.core.errors import UserError
from densepath.core.files import require_new_file
from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import take_single_values
from densepath.training.caller_state import state_of_the_caller
from densepath.training.export import export as export_weights
from densepath.transfer.classify.classifier import is_classifier
from densepath.transfer.classify.onnx_export import export_onnx as classifier_as_onnx
from densepath.transfer.detection.detector_file import detector_path
from densepath.transfer.detection.onnx_export import export_onnx as detector_as_onnx
from densepath.transfer.onnx_file import require_onnx


@take_single_values
@state_of_the_caller()
def export(
    run: AnyPath,
    out: str | Path | None = None,
    layout: Literal["timm", "torchvision", "detectron2", "models_genesis", "monai", "nnunet", "tensors", "onnx"]
    | None = None,
    *,
    backbone: str | nn.Module | None = None,
    prefix: str = "",
    licence: str | None = None,
) -> Path:
    """Write the backbone of a run or of any file of weights for another library; or a trained detector or
    classifier as an ONNX file.

    A model card with the data, the recipe, the scores and the code that loads it is written beside the weights.

    Args:
        run: the folder of a run of ``pretrain``, which need not be complete, or of ``classify``, ``segment`` or
            ``detect``, whose backbone is written once it is; or weights of another project: a file such as a checkpoint
            of ConCL, MoCo or DINO, a timm name, "hf-hub:OWNER/NAME" or the folder of such a model. For "onnx" the
            folder of a run of ``detect`` or ``classify``, or its exported/detector.safetensors or
            classifier.safetensors.
        out: a new file; by default that of a run of ``pretrain``, and one for "onnx", goes to ``exported/`` in the
            folder of the run, and replaces an older one there; before the run is complete its name has the step
            (``backbone_step_N.safetensors``). It ends in .safetensors, for detectron2 in .pth or .pkl, for networks of
            volumes in .pth, for onnx in .onnx.
        layout: "timm" (default), "torchvision" or "detectron2" for a backbone; for volumes also "models_genesis" for a
            unet_3d with its decoder, "monai" for a resnet18_3d, "nnunet" for a resenc_3d; "tensors" for the tensors of
            a file under their own names, which is the default if densepath has no such network; "onnx" for a detector
            or classifier with all steps from the stored pixels of an image to its objects or probabilities.
        backbone: the network in a file, a timm name; by default it follows from the file. In Python also a network, for
            a run or file whose network cannot be built from its name.
        prefix: the beginning of the names of a network's tensors, if a file has several networks, such as
            "module.encoder_k."; by default the trained encoder is taken, and reported.
        licence: the licence of the weights for the model card, such as "cc-by-nc-4.0".

    Returns:
        The file.

    Raises:
        UserError: there are no such weights, the run has no checkpoint yet, the file lacks tensors of the network, the
            layout does not fit it, ``out`` exists, or a package is missing.
    """
    run = as_path(run)
    if out is not None:
        require_new_file(out)
    if layout != "onnx":
        return export_weights(run, out, layout, backbone=backbone, prefix=prefix, licence=licence)
    if backbone is not None or prefix or licence:
        raise UserError("backbone, prefix and licence are for weights; leave them out for an ONNX file")
    require_onnx(out)
    if not (is_classifier(run) or detector_path(run).is_file()):
        raise UserError(f"{run} has no trained detector or classifier, and only these become ONNX files; name one")
    return (classifier_as_onnx if is_classifier(run) else detector_as_onnx)(run, out)
