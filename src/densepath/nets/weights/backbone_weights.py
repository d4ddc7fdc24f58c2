"""Loading weights, which never runs code from a file."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from densepath.core.errors import UserError, counted, first_few
from densepath.core.keywords import RANDOM, is_on_disk
from densepath.core.records import UNLIKE
from densepath.nets.backbones import Backbone, make_network
from densepath.nets.backbones.names import parse_name
from densepath.nets.backbones.transformers import check_grid, resize_positions
from densepath.nets.weights.channels import adapt_channels, channels_of_found
from densepath.nets.weights.checks import require_numbers
from densepath.nets.weights.files import read_tensors
from densepath.nets.weights.hub import quiet
from densepath.nets.weights.layouts import Match, feature_name, match_names, timm_state
from densepath.nets.weights.of_run import has_group_norms, recorded_backbone
from densepath.nets.weights.published import WEIGHT_FILES, is_published, read_published, refuse_missing_part
from densepath.nets.weights.report import tensor_report
from densepath.nets.weights.saving import FORMAT_VERSION
from densepath.nets.weights.transformer_names import guess_transformer, head_width, hidden_differences, to_timm
from densepath.sources.pixel_source import PixelSpec

ACCEPTED = (
    "a .safetensors, .pth, .pt, .ckpt or .pkl file, a run folder, a timm name such as resnet18.a1_in1k, "
    "hf-hub:OWNER/NAME or the folder of such a model, or random"
)
# Files of trained networks in the folders of their runs; of several trainings that with the best validation
TRAINED = tuple(f"exported/{name}.safetensors" for name in ("classifier", "segmenter", "detector"))
_GROUPED = (
    "they have group norms, which segment --norm group continues to train; in Python, pass a backbone with group norms "
    "(densepath.nets.norms.to_group_norm)"
)
_LEAST_SHARE = 0.9  # of the backbone's tensors that a file must contain


class Weights(NamedTuple):
    """The tensors of a file under their names there, and its metadata."""

    state_dict: dict[str, Tensor]
    metadata: dict[str, str]


def read_weights(source: str | Path) -> Weights:
    """Read tensors from a file of any layout, or from a run folder.

    Args:
        source: a ``.safetensors`` file, a torch file, a pickle of arrays like detectron2's, or a run folder: its
            ``exported/backbone.safetensors``, else its classifier, segmenter or detector there, else its
            ``checkpoints/last.ckpt``, else the checkpoint before.

    Raises:
        UserError: there is no such file, it is damaged, or it contains more than tensors.
    """
    path = weights_file(source)
    if not (path.is_file() and os.access(path, os.R_OK)):
        raise UserError(f"there are no weights to read at {path}; give {ACCEPTED}")
    state, metadata = read_tensors(path)
    if metadata.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise UserError(f"{path} was written by densepath {metadata.get('densepath_version')}; update densepath")
    if not state:
        raise UserError(f"{path} holds no tensors; give {ACCEPTED}")
    return Weights(state, metadata)


def require_weights(source: str | Path) -> None:
    """Check that a file, a folder or a name means weights, without reading them.

    Raises:
        UserError: a file or folder of that name does not exist, and timm has no weights of it.
    """
    import timm

    name = str(source)
    if name != RANDOM and not (is_on_disk(source) or is_published(source) or timm.models.is_model_pretrained(name)):
        raise UserError(f"there are no weights {name!r}; give {ACCEPTED}")


def weights_file(source: str | Path) -> Path:
    """The file of a source: itself, or the newest weights of a run folder.

    Raises:
        UserError: the folder contains none.
    """
    path = Path(source)
    if path.is_dir():
        run = ("exported/backbone.safetensors", *TRAINED, "checkpoints/last.ckpt", "checkpoints/previous.ckpt")
        inside = (*run, *WEIGHT_FILES)
        found = next((path / name for name in inside if (path / name).is_file()), None)
        if found is None:
            refuse_missing_part(path, source)
            raise UserError(
                f"the folder {path} holds neither weights in exported/ nor checkpoints/last.ckpt; give {ACCEPTED}"
            )
        path = found
    return path


def load_weights(
    backbone: Backbone,
    source: str | Path,
    prefix: str = "",
    complete: bool = False,
    report: list[str] | None = None,
) -> str:
    """Load weights into a backbone; if they don't fit, it is not changed.

    Args:
        backbone: the backbone.
        source: "random" (keeps the initialization), a file or a run folder as for ``read_weights``, or the name of
            timm's weights, e.g. "resnet18.a1_in1k", or of a model of timm or transformers on the Hugging Face hub,
            "hf-hub:OWNER/NAME" (downloaded if they are not in its cache), or a folder of one.
        prefix: the beginning of the names of the network's tensors in the file, if it has several networks; by default
            the one with most of the backbone's tensors, rather than its momentum copy.
        complete: whether the file must have all tensors of the backbone; the line then also names other networks.
        report: a list to which lines on each tensor are added.

    Returns:
        One line that reports what was loaded.

    Raises:
        UserError: there are no such weights, or they do not fit.
    """
    name, assumed, fetched, grouped = str(source), "", None, False
    on_disk = is_on_disk(source)
    if name == RANDOM:
        return f"{backbone.name} with random weights"
    if is_published(source):
        published = read_published(source)
        check_grid(backbone.net, published.sides, source)
        state, other, assumed = published.state, published.backbone, published.assumed
    elif on_disk:
        weights, path = read_weights(source), weights_file(source)
        name = str(path) if path.name in map(os.path.basename, TRAINED) else name
        state, other = to_timm(weights.state_dict), recorded_backbone(weights.metadata, path)
        assumed = "" if other else _assumed_heads(backbone, state)
        grouped = has_group_norms(weights.metadata)
    else:
        fetched = _fetch(backbone, name)
        state, other = fetched.state_dict(), backbone.name
    if prefix:
        state = below(state, prefix, name)
    own = backbone.net.state_dict()
    match = match_names(state, own)
    require_numbers(match.found, name, own)
    lines = tensor_report(own, match.found, state, match.unused)
    match = match._replace(found=resize_positions(backbone.net, match.found))
    match = match._replace(found=adapt_channels(match.found, own, backbone.in_channels))
    if problem := _misfit(backbone, match, complete):
        remedy = _GROUPED if grouped else _remedy(backbone, match, other)
        raise UserError(f"{name} does not fit {backbone.name}: {problem}; {remedy}")
    backbone.net.load_state_dict(match.found, strict=False)
    if report is not None:
        report += lines
    if fetched is not None:
        return f"{backbone.name} with timm's {name}{_normalization(backbone, fetched)}"
    wanted, missing = _wanted(backbone, match)
    line = f"{backbone.name} with {len(wanted) - len(missing)} of {len(wanted)} tensors from {name}"
    if prefix or match.prefix:
        line += f" under {prefix}{match.prefix}"
    if missing:
        line += f"; not in the file: {first_few(missing)}"
    if match.unused:
        line += f"; not used: {first_few(match.unused)}"
    if assumed:
        line += f"; {assumed} are assumed, which its {'folder' if is_published(source) else 'file'} does not give"
    if other and (hidden := hidden_differences(backbone.name, other)):
        said = first_few([f"{key} was {value}" for key, value in hidden.items()])
        line += f"; in training {said}: --backbone {shlex.quote(other)}"
    if complete and match.rivals:
        line += f"; other networks in the file, for --prefix: {', '.join(match.rivals)}"
    return line


def below(state: Mapping[str, Tensor], prefix: str, name: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it.

    Args:
        state: the tensors.
        prefix: the beginning of their names.
        name: where they come from, for the message.

    Raises:
        UserError: there are none.
    """
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        first = dict.fromkeys(key.rpartition(".")[0].split(".")[0] + "." for key in state if "." in key)
        raise UserError(f"{name} has no tensors under {prefix!r}; its names begin with {first_few(list(first))}")
    return found


def _misfit(backbone: Backbone, match: Match, complete: bool) -> str:
    """Why a checkpoint does not fit this backbone; empty if it fits."""
    wanted, missing = _wanted(backbone, match)
    absent = [key for key in wanted if key not in match.found]
    blocks = {_block(key) for key in wanted} - {_block(key) for key in wanted if key in match.found}
    least = len(wanted) if complete else _LEAST_SHARE * len(wanted)
    if not blocks and len(wanted) - len(absent) >= least:
        own = backbone.net.state_dict()
        if other := [key for key, value in match.found.items() if value.shape != own[key].shape]:
            return f"the shapes of {first_few(other)} differ"
        return _other_layers(backbone, match.others)
    there = f"; instead {first_few(match.unused)}" if match.unused else ""
    return f"it has {len(wanted) - len(missing)} of the {len(wanted)} tensors (not {first_few(missing)}{there})"


def _wanted(backbone: Backbone, match: Match) -> tuple[list[str], list[str]]:
    """The tensors that a checkpoint should contain, and those that it lacks or has in another shape.

    Some layouts don't count batches; a batch norm with a momentum does not need the count.
    """
    own, found = backbone.net.state_dict(), match.found
    wanted = [key for key in own if not key.endswith("num_batches_tracked")]
    return wanted, [key for key in wanted if key not in found or found[key].shape != own[key].shape]


def _block(key: str) -> str:
    """The layer of the stem or the block that a tensor belongs to; none may be missing completely."""
    return re.match(r"(?:model\.)?[^.]*(?:\.\d+)?", key)[0]  # type: ignore[index]


def _remedy(backbone: Backbone, match: Match, other: str | None) -> str:
    """What to do about weights that do not fit; ``other`` is the name of their backbone, if it is known."""
    channels = channels_of_found(match.found, backbone)
    if channels != backbone.in_channels:
        return f"their images have {counted(channels, 'channel')}, not {backbone.in_channels}; use others"
    if other is not None and other.removesuffix(UNLIKE) == backbone.architecture:
        return "they are of another network with this name: pass it, in Python, as backbone"
    volumes = backbone.ndim == 3 or any(value.ndim == 5 for value in match.found.values())
    examples = ("resnet18_3d", "resnet34_3d") if volumes else ("resnet50", "resnet18")
    named = shlex.quote(other) if other else examples[backbone.name == examples[0]] + ", say"
    return f"name the backbone that they belong to (--backbone {named})"


def _assumed_heads(backbone: Backbone, state: Mapping[str, Tensor]) -> str:
    """What neither the tensors of a vision transformer nor its user gave, in words; "" for other networks."""
    named = "num_heads" in parse_name(backbone.architecture)[1] and backbone.name != guess_transformer(state)
    if named or head_width(state):
        return ""
    blocks = getattr(getattr(backbone.net, "model", None), "blocks", None)
    width = getattr(getattr(blocks[0], "attn", None), "head_dim", None) if blocks is not None else None
    return "" if width is None else f"heads of {width} channels"


def _fetch(backbone: Backbone, name: str) -> Any:
    """timm's network with the weights of a name."""
    import timm

    if not timm.models.is_model_pretrained(name):
        raise UserError(f"there are no weights {name!r}; give {ACCEPTED}")
    architecture = name.split(".")[0]
    if architecture != backbone.architecture:
        raise UserError(
            f"{name} does not fit {backbone.name}; name the backbone it belongs to (--backbone {architecture})"
        )
    try:
        with quiet():
            return make_network(name, pretrained=True)
    except Exception as error:  # each kind of network failure raises another exception
        raise UserError(
            f"{name} could not be fetched ({type(error).__name__}); check the network, or run 'hf download timm/{name} "
            "--local-dir FOLDER' on a machine with one and give FOLDER"
        ) from error


def _normalization(backbone: Backbone, network: Any) -> str:
    """The normalization of timm's weights for the line, if it is not ImageNet's."""
    mean, std = tuple(network.pretrained_cfg["mean"]), tuple(network.pretrained_cfg["std"])
    usual = backbone.in_channels != 3 or (mean, std) == (PixelSpec.mean, PixelSpec.std)
    return "" if usual else f"; its normalization: mean {mean}, std {std}"


def _other_layers(backbone: Backbone, others: Sequence[str]) -> str:
    """Tensors of blocks that the backbone lacks, as for a ResNet-34 and a ResNet-18; empty if there are none."""
    tops = {key.removeprefix("model.").split(".")[0] for key in backbone.net.state_dict()}
    suspects = [key for key in others if {key.split(".")[0], key.replace(".", "_", 1).split(".")[0]} & tops]
    if suspects and backbone.library == "timm":
        known = timm_state(backbone.architecture)
        suspects = [key for key in suspects if not feature_name(key, known)]
    return f"it has layers that the backbone lacks ({first_few(suspects)})" if suspects else ""
