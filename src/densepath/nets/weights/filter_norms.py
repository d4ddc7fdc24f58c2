"""The norms of filters before batch norms: features do not depend on them, but the effective learning rate does.

A batch norm removes the scale of its input, so the filters of the layer before it can have any norm. But a step of
gradient descent rotates large filters less than small ones: the gradient decreases with the norm, and is added to a
larger vector, so the effective learning rate is the learning rate divided by the squared norm.

Source: van Laarhoven, "L2 regularization versus batch and weight normalization", 2017, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.nets.backbones import TRIAL_SIZE, Backbone
from densepath.nets.preserve_mode import preserve_mode


def filter_norms(backbone: Backbone) -> dict[str, float]:
    """The norm of all filters together, for each convolution directly before a batch norm.

    Returns:
        The convolution's name in the backbone -> the Euclidean norm of its weights; empty if there is none, as in a
        vision transformer.
    """
    return {name: _norm(conv) for name, (conv, _) in _normalized(backbone).items()}


@torch.no_grad()
def set_filter_norms(backbone: Backbone, norms: Mapping[str, float]) -> dict[str, float]:
    """Rescale the filters before batch norms to given norms, and the statistics of the batch norms accordingly.

    Features do not change, up to rounding and the epsilon of the batch norms.

    Args:
        backbone: the backbone to change.
        norms: the result of :func:`filter_norms` for a backbone of the same name. Filters that are all zero in either
            backbone are not changed.

    Returns:
        Name -> factor, of all rescaled convolutions.
    """
    factors = {}
    for name, (conv, norm) in _normalized(backbone).items():
        now, wanted = _norm(conv), norms[name]
        if not now or not wanted or now == wanted:
            continue
        factors[name] = factor = wanted / now
        conv.weight.mul_(factor)
        if conv.bias is not None:
            conv.bias.mul_(factor)
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.mul_(factor)
            norm.running_var.mul_(factor**2)
    return factors


def _norm(conv: nn.Module) -> float:
    weight: Tensor = conv.weight.detach()  # type: ignore[operator]
    return float(torch.linalg.vector_norm(weight, dtype=torch.float64))


@torch.no_grad()
def _normalized(backbone: Backbone) -> dict[str, tuple[nn.Conv2d, _BatchNorm]]:
    """The convolutions whose output is only the input of a batch norm, not a feature, with that norm, in order."""
    names = {module: name for name, module in backbone.named_modules()}
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # by identity; holding the tensors keeps the identities unique
    pairs = {}

    from timm.layers import Conv2dSame

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, _BatchNorm):
            conv, _ = made.get(id(inputs[0]), (None, None))
            if conv is not None:
                pairs[names[conv]] = (conv, module)
        else:
            made[id(output)] = (module, output)

    plain = (nn.Conv2d, Conv2dSame)  # not subclasses: some standardize their filters
    watched = [m for m in backbone.modules() if type(m) in plain or isinstance(m, _BatchNorm)]
    hooks = [module.register_forward_hook(watch) for module in watched]
    parameter = next(backbone.parameters())
    side = max(backbone.patch_size, TRIAL_SIZE // backbone.patch_size * backbone.patch_size)
    try:
        with preserve_mode(backbone):
            blank = torch.zeros(1, backbone.in_channels, side, side, device=parameter.device, dtype=parameter.dtype)
            maps = backbone.eval()(blank)
    finally:
        for hook in hooks:
            hook.remove()
    for feature in maps.values():  # GhostNet's f1 is such an output itself
        if id(feature) in made:
            pairs.pop(names[made[id(feature)][0]], None)
    return pairs  # type: ignore[return-value]
