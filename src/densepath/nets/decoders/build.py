"""The U-Net decoder that belongs to a backbone, and its weights from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from densepath.core.errors import UserError, counted, first_few
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.unet3d import UNet3D
from densepath.nets.decoders.unet import UNetDecoder, pixel_head
from densepath.nets.decoders.unet3d import UNet3DDecoder, voxel_head
from densepath.nets.weights.checks import require_numbers
from densepath.nets.weights.files import read_tensors

Decoder = UNetDecoder | UNet3DDecoder
_HOLDERS = ("decoder_state_dict", "state_dict")  # keys of released checkpoints of PCRL and Models Genesis


def build_decoder(backbone: Backbone) -> tuple[Decoder, nn.Module]:
    """The decoder of a U-Net with any backbone as its encoder, and the head from its result to values of pixels.

    For ``unet_3d`` these are Models Genesis', for all others those of the released 2D PCRL.
    """
    if isinstance(backbone, UNet3D):
        return UNet3DDecoder(backbone), voxel_head(backbone.channels[1], backbone.in_channels)
    decoder = UNetDecoder(backbone)
    return decoder, pixel_head(decoder.channels, backbone.in_channels, backbone.ndim)


def decoder_state(decoder: nn.Module, head: nn.Module) -> dict[str, Tensor]:
    """Their tensors, with the names of Models Genesis or of segmentation_models_pytorch."""
    own, last = ("", "out_tr.") if isinstance(decoder, UNet3DDecoder) else ("decoder.", "segmentation_head.")
    state = {f"{own}{name}": value for name, value in decoder.state_dict().items()}
    return state | {f"{last}{name}": value for name, value in head.state_dict().items()}


def load_decoder(decoder: Decoder, source: str | Path) -> str:
    """Load the weights of a decoder: an exported ``decoder.safetensors``, or a checkpoint released with PCRL or Models
    Genesis. The head is not loaded.

    Returns:
        One line that reports what was loaded.

    Raises:
        UserError: the file has no decoder, or one of another network.
    """
    path = Path(source)
    if not path.is_file():
        raise UserError(f"there are no weights {path}; give a file of a U-Net decoder")
    state, _ = read_tensors(path, _HOLDERS)
    own = decoder.state_dict()
    found = _below_prefix(state, own)
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    other = [key for key, value in found.items() if own[key].shape != value.shape]
    if missing or other:
        what = f"lacks {first_few(missing)}" if missing else f"has other shapes of {first_few(other)}"
        raise UserError(
            f"{path} does not fit the U-Net decoder of this backbone: it {what}; choose the backbone it is of"
        )
    require_numbers(found, str(path), own)
    decoder.load_state_dict({key: found.get(key, value) for key, value in own.items()})
    return f"{counted(len(own), 'tensor')} of the decoder from {path}"


def _below_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's tensors in a file, under the prefix of the first that has its name, such as "module."."""
    first = next(iter(own))
    prefix = next((key.removesuffix(first) for key in state if key == first or key.endswith(f".{first}")), "")
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in found.items() if key in own}
