"""The tensor names of a backbone in timm, torchvision and detectron2, and conversions between them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.names import create_network
from densepath.nets.weights.volume_layouts import VOLUME_LAYOUTS, arrange_volumes, from_monai

LAYOUTS = ("timm", "torchvision", "detectron2", *VOLUME_LAYOUTS)

# The momentum copy of a trained network: encoder_k, momentum_encoder, backbone_momentum, teacher, target_net and so on.
_SLOW = re.compile(r"(?:^|[._])(?:k|m|xi|key|ema|mom|momentum|slow|target|teacher|offline|swa|avg|averaged)(?=[._])")
_DEEPEST = 16  # parts of a name that may be a prefix
_RIVAL = 0.9  # of the tensors of a network that another one must have
_HEADS = ("fc.", "classifier.")  # torchvision's classifiers
_NORM_EPS = 1e-5  # detectron2's and torch's
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}  # of a ResNet

_TIMM_RESNET = re.compile(r"(?:layer([1-4])\.(\d+)\.)?(?:(conv|bn)([1-3])|downsample\.([01]))\.(\w+)")
_DETECTRON2 = re.compile(r"(?:stem|res([2-5])\.(\d+))\.(?:conv([1-3])|(shortcut))(\.norm)?\.(\w+)")


def arrange(
    backbone: Backbone, layout: str, decoder: Mapping[str, Tensor] = MappingProxyType({})
) -> tuple[dict[str, Tensor], list[str]]:
    """Give the tensors of a backbone the names of another library.

    densepath's own networks keep their names in the layout "timm"; for others see
    :func:`~densepath.nets.weights.volume_layouts.arrange_volumes`, which also takes a ``decoder``. A network that
    differs from that of its name has only the layout "timm", with all its tensors and no others; those that timm's
    network lacks keep their names.

    Returns:
        name -> tensor (on the CPU, contiguous), and the names of the tensors after the deepest stage. These are not
        trained: they have timm's initialization, so that timm loads the file strictly.

    Raises:
        UserError: the layout is unknown, or its library has no such network.
    """
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    trained = backbone.net.state_dict()
    is_other = backbone.name != backbone.architecture
    if is_other and layout != "timm":
        raise UserError(f"{backbone.name} has no counterpart in {layout}; export it in the default layout")
    if layout in VOLUME_LAYOUTS:
        state, untrained = arrange_volumes(backbone, layout, decoder)
        return {key: _plain(value) for key, value in state.items()}, untrained
    if backbone.library == "densepath":
        if layout != "timm":
            raise UserError(f"{backbone.name} has no counterpart in {layout}; export it in the default layout")
        return {key: _plain(value) for key, value in trained.items()}, []
    full = timm_state(backbone.architecture)
    source = {key: feature_name(key, trained) for key in full}
    if is_other:
        names = {own: key for key, own in source.items()}
        return {names.get(own, own): _plain(value) for own, value in trained.items()}, []
    state = {key: _plain(trained[own] if own else full[key]) for key, own in source.items()}
    if layout != "timm":
        _check_same_network(backbone.name, state, layout)
    untrained = [key for key, own in source.items() if own is None]
    return to_detectron2(state) if layout == "detectron2" else state, untrained


def timm_state(name: str) -> dict[str, Tensor]:
    """The state of the whole timm network without classifier; does not change the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would change the GPUs' generators, too
        state: dict[str, Tensor] = create_network(name, num_classes=0).state_dict()
        return state


def feature_name(key: str, names: Container[str]) -> str | None:
    """The name in a features_only network, with the names ``names``, of the tensor ``key`` of timm's whole network.

    timm joins the first two parts of a name with "_" if it unrolls a sequence of stages, and prepends "model." to the
    names of networks that it wraps.
    """
    for candidate in (key, key.replace(".", "_", 1), f"model.{key}"):
        if candidate in names:
            return candidate
    return None


class Match(NamedTuple):
    """The tensors of a network in a checkpoint.

    Args:
        found: the network's tensors, under its own names.
        prefix: the prefix of their names in the checkpoint.
        others: timm's names of the other tensors under that prefix, without it.
        unused: the checkpoint's names of all other tensors, those under the prefix first.
        rivals: the prefixes under which there are about as many of the network's tensors, e.g. a momentum copy.
    """

    found: dict[str, Tensor]
    prefix: str
    others: list[str]
    unused: list[str]
    rivals: list[str]


def trained_first(prefix: str) -> bool:
    """A sorting key that puts a trained encoder before its momentum copy."""
    return bool(_SLOW.search(prefix))


def match_names(state: Mapping[str, Tensor], names: Container[str]) -> Match:
    """Find the prefix and the spelling under which most keys of a checkpoint are names of a features_only network.

    If two parts of a checkpoint match equally well, the trained encoder is preferred to a momentum copy (momentum
    encoder, teacher); else the first in the file is used.
    """
    counts: Counter[tuple[str, Spelling]] = Counter()
    for key in state:
        parts = key.split(".", _DEEPEST)
        for i in range(len(parts)):
            tail = ".".join(parts[i:])
            prefix = key.removesuffix(tail)
            counts.update((prefix, spelling) for spelling in _SPELLINGS if spelling(tail, names) in names)
    if not counts:
        return Match({}, "", list(state), list(state), [])
    prefix, spelling = max(counts, key=lambda match: (counts[match], not trained_first(match[0])))
    found: dict[str, Tensor] = {}
    others, inside, outside = [], [], []
    for key, value in state.items():
        tail = key.removeprefix(prefix)
        name = spelling(tail, names) if key.startswith(prefix) else None
        if name is not None and name in names and name not in found:
            found[name] = value
        elif key.startswith(prefix):
            others.append(name or tail)
            inside.append(key)
        else:
            outside.append(key)
    unused, least = inside + outside, _RIVAL * counts[prefix, spelling]
    many = (match for match, count in counts.items() if match[0] != prefix and count >= least)
    rivals = _rivals(many, unused, names)
    if spelling is _from_detectron2:
        found = _complete_norms(found)
    return Match(found, prefix, others, unused, rivals)


def _rivals(matches: Iterable[tuple[str, Spelling]], unused: Sequence[str], names: Container[str]) -> list[str]:
    """The prefixes under which unused tensors are those of a network; the shortest one of several for the same."""
    left, rivals = set(unused), set()
    for prefix, spelling in sorted(matches, key=lambda match: len(match[0])):
        own = {key for key in left if key.startswith(prefix) and spelling(key.removeprefix(prefix), names) in names}
        left -= own
        rivals |= {prefix} if own else set()
    return sorted(rivals)


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a plain timm ResNet for detectron2's ``build_resnet_backbone``.

    detectron2's files have no ``num_batches_tracked``, and neither does the result.

    Raises:
        UserError: a tensor is not one of a plain ResNet.

    Source: ConCL (ECCV 2022), released code, ``convert-pretrain-to-detectron2.py``.
    """
    renamed = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        match = _TIMM_RESNET.fullmatch(key)
        if match is None:
            raise UserError(f"detectron2's ResNets have no tensor like {key}; use the layout timm")
        stage, block, kind, number, branch, leaf = match.groups()
        home = f"res{int(stage) + 1}.{block}" if stage else "stem"
        layer = f"conv{number}" if number else "shortcut"
        norm = ".norm" if kind == "bn" or branch == "1" else ""
        renamed[f"{home}.{layer}{norm}.{leaf}"] = value
    return renamed


Spelling = Callable[[str, Container[str]], str | None]  # a name in a file, the network's names -> timm's name


def _from_timm(key: str, names: Container[str]) -> str | None:
    """timm's and torchvision's own names."""
    return feature_name(key, names)


def _from_detectron2(key: str, names: Container[str]) -> str | None:
    """The inverse of :func:`to_detectron2`."""
    match = _DETECTRON2.fullmatch(key)
    if match is None:
        return None
    stage, block, number, shortcut, norm, leaf = match.groups()
    home = f"layer{int(stage) - 1}.{block}." if stage else ""
    layer = f"downsample.{1 if norm else 0}" if shortcut else f"{'bn' if norm else 'conv'}{number}"
    return f"{home}{layer}.{leaf}"


def _from_sequence(key: str, names: Container[str]) -> str | None:
    """A ResNet whose children are in an ``nn.Sequential``, as in lightly's examples: 4.0.conv1.weight."""
    child, _, rest = key.partition(".")
    return f"{_CHILDREN[child]}.{rest}" if child in _CHILDREN else None


_SPELLINGS: tuple[Spelling, ...] = (_from_timm, _from_detectron2, _from_sequence, from_monai)


def _complete_norms(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add neutral statistics to frozen batch norms: old detectron2 files have only scale and bias."""
    if any(name.endswith("running_var") for name in found):
        return found
    for name in [name for name in found if re.search(r"(?:bn\d|downsample\.1)\.weight$", name)]:
        norm, scale = name.removesuffix("weight"), found[name]
        found |= {f"{norm}running_mean": torch.zeros_like(scale)}
        found |= {f"{norm}running_var": torch.full_like(scale, 1 - _NORM_EPS)}
    return found


def _plain(tensor: Tensor) -> Tensor:
    """A contiguous copy of a tensor on the CPU, without shared storage."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _check_same_network(name: str, state: Mapping[str, Tensor], layout: str) -> None:
    """Check that torchvision has the same network; detectron2 has ResNets of the same depths, and neither has timm's
    variants.

    Tensor names and shapes are not sufficient (timm's "aa" ResNets pool differently with the same tensors), so the
    network's name is checked, too.
    """
    shapes = {}
    import torchvision

    if name in torchvision.models.list_models(torchvision.models):
        with torch.device("meta"):
            network = torchvision.models.get_model(name)
        shapes = {key: value.shape for key, value in network.state_dict().items() if not key.startswith(_HEADS)}
    own = {key: value.shape for key, value in state.items()}
    differ = [key for key in own if shapes.get(key) != own[key]]
    if len(differ) == 1 and shapes.keys() == own.keys():  # of the first convolution
        channels = [side[differ[0]][1] for side in (shapes, own)]
        raise UserError(
            f"{layout}'s {name} takes images of {channels[0]} channels, and the weights {channels[1]}; use the layout "
            "timm"
        )
    if shapes != own:
        raise UserError(f"{layout} has no network that equals timm's {name}; use the layout timm")
