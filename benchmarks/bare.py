"""The bare cost of a step: the forward and backward passes that a method's definition asks for, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from densepath.concepts.kmeans import KMeansConcepts
from densepath.methods import ConCL, Method, MoCoV2
from densepath.views.view import Batch


def bare_step(method: Method, views: Batch) -> Callable[[], None]:
    """The passes of one step over views that lie ready."""
    for kind, passes in _PASSES.items():
        if type(method) is kind:
            return lambda: passes(method, views)
    raise ValueError(f"the bare passes of {type(method).__name__} are not written down here")


def _moco_v2(method: Any, views: Batch) -> None:
    """Query forward and backward, key forward."""
    query = method.head(method.backbone(views["query"].pixels)[5].mean((2, 3)))
    with torch.no_grad():
        method.key_head(method.key_backbone(views["key"].pixels)[5].mean((2, 3)))
    _backward(method, query)


def _concl(method: Any, views: Batch) -> None:
    """As MoCo-v2; and, for clustered concepts, the reference forward up to the clustered stage."""
    if isinstance(method.source, KMeansConcepts):
        with torch.no_grad():
            method.key_backbone(views["reference"].pixels, last=method.source.stage)
    _moco_v2(method, views)


_PASSES: dict[type, Callable[[Any, Batch], None]] = {MoCoV2: _moco_v2, ConCL: _concl}


def _backward(method: nn.Module, output: Tensor) -> None:
    output.float().square().mean().backward()
    for parameter in method.parameters():
        parameter.grad = None
