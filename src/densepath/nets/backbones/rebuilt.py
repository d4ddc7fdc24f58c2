"""Whether the name of a network, with which its weights are saved, builds one that computes the same with them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from densepath.core.errors import shortage
from densepath.nets.backbones.backbone import Backbone
from densepath.nets.backbones.dilation import OF_ANY_MODULE
from densepath.nets.backbones.timm_backbone import TimmBackbone, build_backbone, make_network
from densepath.nets.backbones.trial import same_maps, trial_maps

# Attributes of modules that the maps do not depend on; those of any module are compared in other ways.
_NO_SETTINGS = {"_model_args", "pretrained_cfg", "default_cfg", "num_classes", *OF_ANY_MODULE}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def is_rebuilt(network: Backbone) -> bool:
    """Whether the name of a network builds one that computes the same with its weights.

    The modules of most networks of timm show it; only for others, the maps of a small image are compared. The global
    random generators are not changed.
    """
    with torch.random.fork_rng(devices=[]):
        found = _shown_by_modules(network) if type(network) is TimmBackbone else None
        return _shown_by_maps(network) if found is None else found


def _shown_by_modules(network: TimmBackbone) -> bool | None:
    """What tensors, classes and settings show, without memory for another network; None if they do not."""
    try:
        with torch.device("meta"):
            net = make_network(network.name, channels=network.in_channels)
            named = TimmBackbone(net, network.name, network.in_channels)
    except Exception as error:  # a network that reads its tensors when it is made
        if shortage(error):
            raise
        return None
    if _shapes(network) != _shapes(named):
        return False
    own, others = dict(network.named_modules()), dict(named.named_modules())
    alike = own.keys() == others.keys() and all(_alike(module, others[name]) for name, module in own.items())
    return alike or None


def _shown_by_maps(network: Backbone) -> bool:
    try:
        named = build_backbone(network.name, network.in_channels)
        weights = _any_weights(network)
        named.to(next(iter(weights.values()))).load_state_dict(weights)
        return same_maps(trial_maps(network, weights), trial_maps(named))
    except Exception as error:  # names and shapes that differ, or a network of the user that fails for a small image
        if shortage(error):
            raise
        return False


def _any_weights(network: nn.Module) -> dict[str, Tensor]:
    """Its weights, but random scales and biases: a residual branch with a scale of zero would not show."""
    generator = torch.Generator().manual_seed(0)
    state = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    scales = [name for name, parameter in network.named_parameters() if parameter.ndim == 1]
    noise = {name: torch.randn(state[name].shape, generator=generator).to(state[name]) for name in scales}
    return state | {name: state[name] + 0.1 * noise[name] for name in scales}


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _alike(module: nn.Module, other: nn.Module) -> bool:
    """Whether two modules are of one class, without hooks, and with the same settings."""
    return (
        type(module) is type(other)
        and not any(getattr(module, hooks) for hooks in _HOOKS)
        and not module._non_persistent_buffers_set  # tensors that are not saved with the weights
        and _equal(_settings(module), _settings(other))
    )


def _settings(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _NO_SETTINGS}


def _equal(one: Any, other: Any) -> bool:
    """Whether two settings are surely equal: what cannot be compared is not."""
    if one is other:
        return True
    if type(one) is not type(other) or isinstance(one, Tensor | nn.Module):
        return False
    if isinstance(one, partial):
        return _equal((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if not callable(one) and hasattr(one, "__dict__"):
        return _equal(vars(one), vars(other))
    return bool(one == other)
