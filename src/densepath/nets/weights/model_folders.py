"""Networks in the format of the Hugging Face hub: a folder with config.json and weights; its code is never run."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError, errors_as
from densepath.nets.weights.checks import require_numbers_in
from densepath.nets.weights.hub import quiet

_STRIDES = (32, 16, 8)  # pixels, tried if the configuration gives none
_SIDE = 5  # patches along a side of the trial image
_MOST_OTHERS = 16  # class and register tokens
_COLORS, _WHITE = 3, 255  # channels and largest value of the images of a processor
_ROUNDING = 1e-4  # of 1 / 255 in a file


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder.

    Raises:
        UserError: it is missing, or names no model of timm ("architecture") or transformers ("model_type").
    """
    config = read_json(folder / "config.json")
    if not ("architecture" in config or "model_type" in config):
        raise UserError(
            f"the folder {folder} has no config.json that names a model of timm or transformers; give the folder of one"
        )
    return config


def read_image_processor(folder: Path) -> dict[str, Any]:
    """The image processor's settings in the folder of a transformers model, as far as they have an effect.

    Returns:
        Its settings; empty if there are none. ``image_mean`` and ``image_std`` are those of pixels from 0 to 1: 0 and 1
        if it does not normalize, and scaled and shifted if it rescales pixels to another range; as they are if it does
        not rescale. There is no ``crop_size`` if it does not crop.

    Raises:
        UserError: a file of them is damaged.
    """
    notes = read_json(folder / "preprocessor_config.json") or read_json(folder / "processor_config.json")
    made = dict(settings_in(notes, "image_processor") or notes)
    if made.get("do_center_crop") is False:
        made.pop("crop_size", None)
    if made.get("do_normalize") is False:
        made |= {"image_mean": [0.0] * _COLORS, "image_std": [1.0] * _COLORS}
    if made.get("do_rescale", True):
        made |= _of_range(made, folder)
    return made


def _of_range(made: Mapping[str, Any], folder: Path) -> dict[str, list[float]]:
    """Mean and std of pixels from 0 to 1 where a processor rescales them to another range; empty where it does not."""
    shift = 1.0 if made.get("rescale_offset") else 0.0  # subtracted after the product
    try:
        white = (made.get("rescale_factor") or 1 / _WHITE) * _WHITE
        if abs(white - 1) <= _ROUNDING and not shift:
            return {}
        shifts = {"image_mean": shift, "image_std": 0.0}
        return {n: [(each + more) / white for each in made[n]] for n, more in shifts.items() if made.get(n)}
    except TypeError:
        raise UserError(
            f"the image processor in {folder} has no valid rescale_factor, image_mean or image_std; fetch it again"
        ) from None


def settings_in(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object of settings that a configuration has under a name; empty if it has none there.

    Raises:
        UserError: what it has there is not an object.
    """
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise UserError(f"{name} in the configuration of a model is not an object with settings; fetch it again")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file does not exist.

    Raises:
        UserError: the file is damaged. Without it a network with other heads or colors would be built.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold an object with the settings of a model; fetch it again")
    return content


class TransformersModel(nn.Module):
    """The deepest map of a vision model of transformers; for CLIP, in the space of its image embeddings.

    CLIP's last norm and, if there is one, its projection are applied to the patch tokens of its image tower, as in the
    teacher of BEiT-v2 and EVA; ``transformers`` applies them only to the class token.

    Args:
        model: the model.
        folder: its folder, for messages.

    Attributes:
        stride: stride of the map in pixels.
        channels: channels of the map.

    Raises:
        UserError: it does not take images, or does not return a map of patches.
    """

    def __init__(self, model: Any, folder: Path) -> None:
        super().__init__()
        tower = getattr(model, "vision_model", model)
        known = inspect.signature(tower.forward).parameters
        if "pixel_values" not in known:
            raise UserError(f"{folder} holds a {type(model).__name__}, which does not take images; give a vision model")
        self.tower = tower
        clip = str(tower.config.model_type).startswith("clip")
        self.norm: nn.Module = tower.post_layernorm if clip else nn.Identity()
        self.projection: nn.Module = getattr(model, "visual_projection", nn.Identity()) if clip else nn.Identity()
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}
        self.stride, self.channels = self._find_stride(folder)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) images -> (B, channels, H / stride, W / stride)."""
        features: Tensor = self.tower(x, **self._options).last_hidden_state
        if features.ndim == 3:
            height, width = (side // self.stride for side in x.shape[2:])
            patches = features[:, features.shape[1] - height * width :]  # other tokens come first
            features = self.projection(self.norm(patches)).transpose(1, 2).unflatten(2, (height, width))
        return features

    @torch.no_grad()
    def _find_stride(self, folder: Path) -> tuple[int, int]:
        size = getattr(self.tower.config, "patch_size", None)
        for stride in (size, *_STRIDES) if isinstance(size, int) else _STRIDES:
            try:
                out = self.tower(torch.zeros(1, 3, stride * _SIDE, stride * _SIDE), **self._options).last_hidden_state
            except Exception:  # not a size that it takes: each model raises another exception
                continue
            others = out.shape[1] - _SIDE**2 if out.ndim == 3 else 0
            if tuple(out.shape[2:]) == (_SIDE, _SIDE) or (out.ndim == 3 and 0 <= others <= _MOST_OTHERS):
                self.stride = stride
                return stride, self(torch.zeros(1, 3, stride, stride)).shape[1]
        raise UserError(
            f"the model in {folder} does not return a map of patches for images of any size; choose another one"
        )


def load_transformers_model(folder: Path, config: dict[str, Any]) -> TransformersModel:
    """A vision model of transformers, only from safetensors.

    Args:
        folder: contains config.json and model.safetensors (or parts of it with their index).
        config: its config.json.

    Raises:
        UserError: transformers is not installed, or the folder does not contain such a model with all of its weights.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"{folder} holds a model of transformers; install it with pip install 'densepath[transformers]'"
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no .safetensors file; save the model as one (save_pretrained does)")
    # Missing tensors are reported below
    with errors_as(lambda error: _refusal(folder, config, error)), quiet(transformers):
        model, found = transformers.AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    missing = [key for key in found["missing_keys"] if "pooler" not in key]  # the pooler is not used
    if missing:
        raise UserError(f"the weights in {folder} lack {sorted(missing)[0]}; fetch the model again")
    require_numbers_in(model, folder)
    return TransformersModel(model.eval(), folder)


def _refusal(folder: Path, config: dict[str, Any], error: Exception) -> UserError:
    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    return UserError(f"the model in {folder} ({config['model_type']}) cannot be loaded: {reason}")
