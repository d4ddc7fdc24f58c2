"""Published networks: a folder as the Hugging Face hub ships it, with the weights and configuration of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.keywords import is_on_disk
from densepath.nets.attention_pool import AttentionPool, attention_pool
from densepath.nets.backbones.names import join_name, parse_name, without_tag
from densepath.nets.weights.clip_names import clip_arguments, clip_to_timm
from densepath.nets.weights.files import read_tensors
from densepath.nets.weights.hub import FETCHED, fetch, is_hub_name
from densepath.nets.weights.model_folders import read_image_processor, read_json, settings_in
from densepath.nets.weights.transformer_names import (
    HEAD_WIDTH,
    head_width,
    name_transformer,
    to_timm,
    trained_transformer,
    transformer_prefixes,
)
from densepath.sources.pixel_source import PixelSpec

WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model_vision.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_PARTS = "*.index.json"  # names the files of weights that are divided
_PICKLED = ("pytorch_model*.bin", "open_clip_pytorch_model.bin", "*.bin.index.json")
_OTHER_TOKENS = ("cls_token", "dist_token", "reg_token")  # whose positions may be among those of the patches
# Arguments of timm's constructors that neither the shapes of tensors nor the architecture give.
_KNOWN = ("num_heads", "act_layer", "no_embed_class")
# Those of the head and of training, which do not change the features.
_NOT_FEATURES = {
    *("num_classes", "global_pool", "img_size", "dynamic_img_size", "features_only", "in_chans"),
    *("weight_init", "fix_init", "drop_rate", "drop_path_rate", "dynamic_img_pad", "strict_img_size"),
    *(f"{part}_drop_rate" for part in ("pos", "patch", "proj", "attn")),
}

_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_H_OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = PixelSpec.mean, PixelSpec.std
_NONE: tuple[tuple[float, ...], tuple[float, ...]] = (), ()
_DEFAULTS = (_IMAGENET, _HALF)  # timm writes them into the folders of networks that were trained with others
# Mean and std from the model cards of networks whose folders need not contain them, by the last part of their names.
_CARDS = {
    "conch": _CLIP,
    "h-optimus-0": _H_OPTIMUS,
    "h-optimus-1": _H_OPTIMUS,
    "hibou-b": _HIBOU,
    "hibou-l": _HIBOU,
    "midnight": _HALF,
}


class Published(NamedTuple):
    """A published network.

    Args:
        backbone: the name of its backbone (see ``names.py``); None if densepath has none.
        state: its tensors, under timm's names where they are known; with prefixes, if there are several networks.
        mean, std: normalization of its training; empty if the folder does not contain it.
        size: side of the images of its training in pixels; 0 if unknown.
        pool: its attention pool, if it has one.
        assumed: what its folder does not say, in words; "" for nothing.
        sides: height and width of the images of its positions in pixels, where they are not square; empty if they are.
    """

    backbone: str | None
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    pool: AttentionPool | None = None
    assumed: str = ""
    sides: tuple[int, ...] = ()


def is_published(source: str | Path) -> bool:
    """Whether weights are a network of the hub, or a folder of one: with config.json, or only with weights."""
    if is_hub_name(source) or not is_on_disk(source):
        return is_hub_name(source)
    return (Path(source) / "config.json").is_file() or bool(weight_files(Path(source)))


def published_folder(source: str | Path, weights: bool = True) -> Path:
    """The folder of a published network, fetched from the hub if it is not one, and not in the hub's cache.

    Args:
        source: "hf-hub:OWNER/NAME" or a folder.
        weights: whether the weights are needed, too.

    Raises:
        UserError: it cannot be fetched.
    """
    name = str(source)
    if not is_hub_name(name):
        return Path(source)
    folder = fetch(name, FETCHED if weights else ("*.json",))
    if weights and not any(folder.glob("*.safetensors")):
        folder = fetch(name, (*FETCHED, *_PICKLED))
    return folder


def read_published(source: str | Path) -> Published:
    """Read a published network; no code of it is run.

    Raises:
        UserError: it cannot be fetched, or holds no weights.
    """
    folder = published_folder(source)
    config = configuration_of(folder)
    _check_architecture(config)
    read = _read_weights(folder, source)
    state = clip_to_timm(to_timm(read))
    own, prefixes = trained_transformer(state), transformer_prefixes(state)
    backbone = _backbone(config, own)
    seen = preprocessing(source, folder, config)
    assumed = [] if seen[0] and seen[1] else ["mean and std of ImageNet"]
    card_only = not config and not assumed  # networks with a known card have such heads
    if prefixes and not _gives_heads(config, backbone) and not card_only and not head_width(state):
        assumed.insert(0, f"heads of {HEAD_WIDTH} channels")
    # Of an image and a text tower only the images' is kept; of several like it all are, so that they can be reported.
    kept = state if len(prefixes) > 1 else own
    sides = _oblong_sides(config, own)
    return Published(backbone, kept, *seen, attention_pool(read), " and ".join(assumed), sides)


def _gives_heads(config: Mapping[str, Any], backbone: str | None) -> bool:
    """Whether the number of heads is that of a configuration, by itself or by an architecture of the same width."""
    given = {**config, **settings_in(config, "model_args")}
    if clip_arguments(config) is not None or any(given.get(n) for n in ("num_attention_heads", "num_heads")):
        return True
    return "architecture" in config and "embed_dim" not in parse_name(backbone or "")[1]


def configuration_of(folder: Path) -> dict[str, Any]:
    """The configuration of a folder, of timm or transformers or else of OpenCLIP; empty if there is none."""
    return read_json(folder / "config.json") or read_json(folder / "open_clip_config.json")


def backbone_of_config(config: Mapping[str, Any]) -> str | None:
    """The backbone's name by a configuration of timm only, as far as it is known without the weights."""
    if "architecture" not in config:
        return None
    arguments = {key: value for key, value in settings_in(config, "model_args").items() if key not in _NOT_FEATURES}
    return join_name(_architecture(config), arguments)


def preprocessing(
    source: str | Path, folder: Path, config: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean, std and the side of the images in pixels, from a configuration, an image processor, or the model card.

    A mean without a std, or a std without a mean, counts as none: those of two sources do not belong together.
    """
    # older ones of timm are flat
    made: Any = settings_in(config, "pretrained_cfg") or settings_in(config, "preprocess_cfg") or config
    processor = read_image_processor(folder)
    pairs = [(made.get("mean"), made.get("std")), (processor.get("image_mean"), processor.get("image_std"))]
    real = folder.resolve()  # the link to a folder may have any name
    cached = [part for part in real.parts if part.startswith("models--")]  # in the hub's cache
    names = [folder.name, real.name, str(source).rpartition("/")[2], *(part.rpartition("--")[2] for part in cached)]
    given = [tuple(map(tuple, pair)) for pair in pairs if all(isinstance(each, list | tuple) and each for each in pair)]
    mean, std = given[0] if given else _NONE
    if (mean, std) in (_NONE, *_DEFAULTS):
        mean, std = next((_CARDS[name.lower()] for name in names if name.lower() in _CARDS), (mean, std))
    tower = settings_in(config, "vision_config") or settings_in(settings_in(config, "model_cfg"), "vision_cfg")
    sizes = (
        made.get("input_size"),
        processor.get("crop_size"),
        processor.get("size"),
        (tower or config).get("image_size"),
    )
    size: Any = next(filter(None, sizes), 0)
    while isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    size = size[-1] if isinstance(size, list) and size else size
    return mean, std, size if isinstance(size, int) else 0


def _architecture(config: Mapping[str, Any]) -> str:
    """The architecture of timm that a configuration names, without the tag of its weights; "" for none."""
    return without_tag(str(config.get("architecture", "")))


def _check_architecture(config: Mapping[str, Any]) -> None:
    import timm

    if "architecture" in config and not timm.is_model(_architecture(config)):
        raise UserError(f"timm has no network {config['architecture']!r}, which config.json names; update timm")


def _oblong_sides(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Height and width of the images of positions of patches that are not a square; empty for others.

    By their number they may look like a square, such as 2 x 8.
    """
    if not {"patch_embed.proj.weight", "pos_embed"} <= state.keys():
        return ()
    sides = _image_sides(config)
    if len({*sides}) < 2:
        return ()
    patch = state["patch_embed.proj.weight"].shape[2:]
    patches = (sides[0] // patch[0]) * (sides[1] // patch[1])
    others = sum(state[name].shape[1] for name in _OTHER_TOKENS if name in state)
    return sides if state["pos_embed"].shape[1] in (patches, patches + others) else ()


def _image_sides(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Height and width of a network's images in its configuration; empty if it has a single number, or none."""
    made: Any = settings_in(config, "pretrained_cfg") or config
    given = settings_in(config, "model_args").get("img_size"), made.get("input_size"), config.get("image_size")
    size: Any = next(filter(None, given), ())
    size = [size.get("height"), size.get("width")] if isinstance(size, dict) else size
    sides = size[-2:] if isinstance(size, list) else ()
    return tuple(sides) if len(sides) == 2 and all(isinstance(side, int) for side in sides) else ()


def _backbone(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> str | None:
    """The name of the backbone of a folder."""
    if (clip := clip_arguments(config)) is not None:
        return name_transformer(state, None, clip)
    if "num_attention_heads" in config and "architecture" not in config:  # of transformers: vit, vit_mae, dinov2, ...
        known = {"num_heads": config.get("num_attention_heads"), "norm_eps": config.get("layer_norm_eps")}
        known["pos_antialias"] = "reg_token" in state  # its DINOv2 with registers interpolates positions as timm
        if config.get("hidden_act", "gelu") != "gelu":
            return None
        return name_transformer(state, None, {key: value for key, value in known.items() if value is not None})
    architecture = _architecture(config)
    given = settings_in(config, "model_args")
    known = {key: config[key] for key in _KNOWN if config.get(key) is not None}
    # Those that the network does not have are refused by their names when it is built.
    known |= {key: value for key, value in given.items() if value is not None and key not in _NOT_FEATURES}
    return name_transformer(state, architecture or None, known) or backbone_of_config(config)


def _read_weights(folder: Path, source: str | Path) -> dict[str, Tensor]:
    if not (files := weight_files(folder)):
        refuse_missing_part(folder, source)
        raise UserError(f"{source} holds none of {', '.join(WEIGHT_FILES)}; fetch it again, or give another model")
    return {key: value for file in files for key, value in read_tensors(file)[0].items()}


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a folder: one, or the parts of divided weights; empty if one of them is missing."""
    whole = [folder / file for file in WEIGHT_FILES if (folder / file).is_file()][:1]
    return whole or next((files for files in _divided(folder) if files and all(map(Path.is_file, files))), [])


def refuse_missing_part(folder: Path, source: str | Path) -> None:
    """Refuse a folder that lacks a part of divided weights, by the name of the part."""
    for file in chain.from_iterable(_divided(folder)):
        if not file.is_file():
            raise UserError(f"{source} lacks {file.name}, a part of its weights; fetch it again, or give another model")


def _divided(folder: Path) -> Iterator[list[Path]]:
    """The files that each index of divided weights names, safetensors first."""
    for index in sorted(folder.glob(_PARTS), key=lambda index: (".safetensors." not in index.name, index.name)):
        named = settings_in(read_json(index), "weight_map").values()
        yield [folder / Path(file).name for file in sorted({*map(str, named)})]
