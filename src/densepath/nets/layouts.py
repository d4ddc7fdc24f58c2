"""Names of a backbone's tensors in timm, torchvision and detectron2, and the ways between them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Mapping

import timm
import torch
import torchvision
from torch import Tensor

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone

LAYOUTS = ("timm", "torchvision", "detectron2")

_TRAINED = ("method.backbone.", "backbone.", "module.encoder_q.")  # densepath, OpenSelfSup, MoCo

_TIMM_RESNET = re.compile(r"(?:layer([1-4])\.(\d+)\.)?(?:(conv|bn)([1-3])|downsample\.([01]))\.(\w+)")
_DETECTRON2 = re.compile(r"(?:stem|res([2-5])\.(\d+))\.(?:conv([1-3])|(shortcut))(\.norm)?\.(\w+)")


def arrange(backbone: Backbone, layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """Give the tensors of a backbone the names of another library.

    Returns:
        name -> tensor (on the CPU, contiguous), and the names that the library's network has behind the deepest stage.
        These were not trained: they hold timm's own initialisation, so that timm loads the file strictly.

    Raises:
        UserError: the layout is unknown, or its library has no such network.
    """
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    full = timm_state(backbone.name)
    trained = backbone.net.state_dict()
    source = {key: feature_name(key, trained) for key in full}
    state = {key: _plain(trained[own] if own else full[key]) for key, own in source.items()}
    if layout != "timm":
        _check_plain_resnet(backbone.name, state, layout)
    untrained = [key for key, own in source.items() if own is None]
    return to_detectron2(state) if layout == "detectron2" else state, untrained


def timm_state(name: str) -> dict[str, Tensor]:
    """The state of the whole timm network without classifier; leaves the global random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reach the GPUs' generators, too
        return timm.create_model(name, num_classes=0).state_dict()


def feature_name(key: str, names: Container[str]) -> str | None:
    """The name in a features_only network, whose names are ``names``, of what timm's whole network calls ``key``.

    timm joins the first two parts of a name with "_" where it unrolls a sequence of stages, and puts "model." before
    the names of networks that it wraps whole.
    """
    for candidate in (key, key.replace(".", "_", 1), f"model.{key}"):
        if candidate in names:
            return candidate
    return None


def match_names(state: Mapping[str, Tensor], names: Container[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Find the prefix under which most keys of a checkpoint are names of a features_only network.

    Where two parts of a checkpoint fit alike (an encoder and its slow copy), the one under a trained encoder's usual
    name is taken, else the one that stands first in the file.

    Returns:
        The tensors found there, under the network's own names; and the other keys there, without the prefix.
    """
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for i in range(len(parts)):
            if feature_name(".".join(parts[i:]), names):
                counts["".join(f"{part}." for part in parts[:i])] += 1
    if not counts:
        return {}, list(state)
    prefix = max(counts, key=lambda prefix: (counts[prefix], prefix.startswith(_TRAINED)))
    found, others = {}, []
    for key, value in state.items():
        if key.startswith(prefix):
            short = key.removeprefix(prefix)
            name = feature_name(short, names)
            if name:
                found[name] = value
            else:
                others.append(short)
    return found, others


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a plain timm ResNet for detectron2's ``build_resnet_backbone``.

    detectron2's files carry no ``num_batches_tracked``, and neither does the result.

    Raises:
        UserError: a tensor belongs to no plain ResNet.

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


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the ResNet of a detectron2 file, wherever in a detector it stands, its timm names; drop the rest.

    A file of another layout comes back as it is.
    """
    anchor = "stem.conv1.weight"
    prefixes = (key.removesuffix(anchor) for key in state if key.endswith(anchor))
    prefix = next((prefix for prefix in prefixes if f"{prefix}res2.0.conv1.weight" in state), None)
    if prefix is None:
        return dict(state)
    renamed = {}
    for key, value in state.items():
        match = _DETECTRON2.fullmatch(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if match is None:
            continue
        stage, block, number, shortcut, norm, leaf = match.groups()
        home = f"layer{int(stage) - 1}.{block}." if stage else ""
        layer = f"downsample.{1 if norm else 0}" if shortcut else f"{'bn' if norm else 'conv'}{number}"
        renamed[f"{home}{layer}.{leaf}"] = value
    return renamed


def _plain(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU, out of any shared storage, in the usual memory order."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _check_plain_resnet(name: str, state: Mapping[str, Tensor], layout: str) -> None:
    """Check that torchvision has the same ResNet: detectron2 builds the same depths, and neither the variants of timm.

    Names and shapes don't tell all (timm's "aa" ResNets pool otherwise with the same tensors), so the name counts too.
    """
    shapes = {}
    if name in torchvision.models.list_models(torchvision.models):
        with torch.device("meta"):
            network = torchvision.models.get_model(name)
        shapes = {key: value.shape for key, value in network.state_dict().items() if not key.startswith("fc.")}
    if shapes != {key: value.shape for key, value in state.items()}:
        raise UserError(f"{layout} has no network that equals timm's {name}; use the layout timm")
