"""Saving weights, in the layouts of other libraries."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.nets.backbones import Backbone
from densepath.nets.weights.layouts import arrange
from densepath.nets.weights.volume_layouts import HOLDER, VOLUME_LAYOUTS
from densepath.sources.pixel_source import PixelSpec
from densepath.version import __version__

FORMAT_VERSION = "1"
# detectron2 is often used with numpy before 1.26, which does not know the first name. Protocol 3 writes such lines.
_NUMPY_2_AND_1 = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"


def save_backbone(
    path: str | Path,
    backbone: Backbone,
    layout: str = "timm",
    metadata: Mapping[str, str] | None = None,
    decoder: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write a backbone for timm, torchvision, detectron2, Models Genesis, MONAI or nnU-Net, atomically.

    How to load the file:

    - timm: ``timm.create_model(name, num_classes=0, checkpoint_path=path)``. Layers of a network after its
      deepest stage (e.g. ``conv_head`` of an EfficientNet) have timm's initialization; the metadata's ``untrained``
      names them. Of a network that differs from that of its name the file has exactly its own tensors.
    - networks for volumes are densepath's own: :func:`build_backbone` and :func:`load_weights` read the file.
    - torchvision: ``torchvision.models.resnet18().load_state_dict(load_file(path), strict=False)``; the file lacks
      only ``fc.*``.
    - detectron2: ``DetectionCheckpointer(model).load(path)`` for a ``.pth`` or ``.pkl`` file; for ``.safetensors``,
      ``model.backbone.bottom_up.load_state_dict(load_file(path), strict=False)``. The configuration must have RGB, mean
      and std as in the metadata times 255, and ``STRIDE_IN_1X1 = False``.
    - models_genesis: as the released ``Genesis_Chest_CT.pt``, with "module." before each name.
    - monai: ``network.load_state_dict(torch.load(path)["state_dict"], strict=False)``; the file lacks only ``fc.*``.
    - nnunet: ``nnUNetv2_train ... -pretrained_weights path``, for plans with the strides of ``resenc_3d``.

    Args:
        path: a ``.safetensors`` file; in the detectron2 layout also a ``.pth`` file, or a ``.pkl`` file of numpy
            arrays; in the last three a ``.pt`` or ``.pth`` file.
        backbone: what to write.
        layout: one of the libraries above.
        metadata: provenance (method, recipe, steps, ...), all strings, and the pixel specification (see
            :func:`pixel_notes`), by default that of images with these channels. densepath's own entries override it.
        decoder: the tensors of a trained decoder, for models_genesis.

    Raises:
        UserError: the layout is unknown or does not fit the backbone, or the path has the wrong suffix.
    """
    path = Path(path)
    suffixes: tuple[str, ...] = (".safetensors", ".pth", ".pkl") if layout == "detectron2" else (".safetensors",)
    suffixes = (".pt", ".pth") if layout in VOLUME_LAYOUTS else suffixes
    if path.suffix not in suffixes:
        raise UserError(f"{path} must end in {' or '.join(suffixes)} for weights in the layout {layout}")
    state, untrained = arrange(backbone, layout, decoder)
    notes = {
        **pixel_notes(PixelSpec.default(backbone.in_channels, ndim=backbone.ndim)),
        **(metadata or {}),
        "format": "pt",  # marks torch's tensors for readers of safetensors
        "format_version": FORMAT_VERSION,
        "densepath_version": __version__,
        "backbone": backbone.name,
        "layout": backbone.library if layout == "timm" else layout,
        "untrained": ", ".join(untrained),
    }
    with atomic_write(path) as temporary:
        content: dict[str, Any] = {"model": state, "matching_heuristics": True, "metadata": notes}
        if layout in VOLUME_LAYOUTS:
            torch.save({HOLDER[layout]: state, "metadata": notes}, temporary)
        elif path.suffix == ".pth":
            torch.save(content, temporary)
        elif path.suffix == ".pkl":
            arrays = {key: value.float().numpy() for key, value in state.items()}
            text = pickle.dumps({**content, "model": arrays, "__author__": "densepath"}, protocol=3)
            temporary.write_bytes(text.replace(*_NUMPY_2_AND_1))
        else:
            write_tensors(state, temporary, notes)


def pixel_notes(spec: PixelSpec) -> dict[str, str]:
    """The metadata for a pixel specification: ndim, channels, window, mean, std as JSON; bits if it has some."""
    return {name: json.dumps(value) for name, value in spec.record().items()}


def write_tensors(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    try:
        save_file(state, path, metadata=metadata)
    except SafetensorError as error:
        if (code := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), os.fspath(path)) from error
