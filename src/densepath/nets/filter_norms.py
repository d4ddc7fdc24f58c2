"""The lengths of filters in front of batch norms, on which features don't depend and the speed of learning does.

A batch norm takes the scale of its input away, so a layer in front of it computes the same with filters of any length;
but a step of gradient descent turns long filters less than short ones: the gradient shrinks as they grow, and is to be
set against a greater length, so that the learning rate counts by its quotient with the squared length.

Source: van Laarhoven, "L2 regularization versus batch and weight normalization", 2017, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.nets.backbones import TRIAL_SIZE, Backbone
from densepath.nets.preserve_mode import untouched_modes


def filter_lengths(backbone: Backbone) -> dict[str, float]:
    """The length of all filters together, of each convolution whose output a batch norm takes.

    Returns:
        The convolution's name in the backbone -> the Euclidean norm of its weights; empty where none stands directly in
        front of a batch norm, as in a vision transformer.
    """
    return {name: _length(conv) for name, (conv, _) in _normalized(backbone).items()}


@torch.no_grad()
def give_lengths(backbone: Backbone, lengths: Mapping[str, float]) -> dict[str, float]:
    """Give the filters in front of batch norms certain lengths, and the batch norms the statistics that belong to them.

    Features stay as they are, up to rounding and to the small number that batch norms add to variances.

    Args:
        backbone: what to change.
        lengths: as from :func:`filter_lengths` of a backbone of the same name. Filters that are all zero, there or
            here, stay as they are.

    Returns:
        Name -> the factor, of all that were rescaled.
    """
    factors = {}
    for name, (conv, norm) in _normalized(backbone).items():
        now, wanted = _length(conv), lengths[name]
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


def _length(conv: nn.Module) -> float:
    weight: Tensor = conv.weight.detach()  # type: ignore[operator]
    return float(torch.linalg.vector_norm(weight, dtype=torch.float64))


@torch.no_grad()
def _normalized(backbone: Backbone) -> dict[str, tuple[nn.Conv2d, _BatchNorm]]:
    """The convolutions whose very output is the input of a batch norm and no feature, with that, in their order."""
    names = {module: name for name, module in backbone.named_modules()}
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # by identity; holding the tensors keeps identities their own
    pairs = {}

    from timm.layers import Conv2dSame

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, _BatchNorm):
            conv, _ = made.get(id(inputs[0]), (None, None))
            if conv is not None:
                pairs[names[conv]] = (conv, module)
        else:
            made[id(output)] = (module, output)

    plain = (nn.Conv2d, Conv2dSame)  # and no subclass: some standardize their filters themselves
    watched = [m for m in backbone.modules() if type(m) in plain or isinstance(m, _BatchNorm)]
    hooks = [module.register_forward_hook(watch) for module in watched]
    parameter = next(backbone.parameters())
    side = max(backbone.patch_size, TRIAL_SIZE // backbone.patch_size * backbone.patch_size)
    try:
        with untouched_modes(backbone):
            blank = torch.zeros(1, backbone.in_channels, side, side, device=parameter.device, dtype=parameter.dtype)
            maps = backbone.eval()(blank)
    finally:
        for hook in hooks:
            hook.remove()
    for feature in maps.values():  # GhostNet's f1 is such an output itself
        if id(feature) in made:
            pairs.pop(names[made[id(feature)][0]], None)
    return pairs  # type: ignore[return-value]
