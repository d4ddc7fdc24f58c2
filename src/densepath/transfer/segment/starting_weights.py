"""The initial weights: the norms of the backbone's; the decoder's, of its pre-training run or of a file."""

from __future__ import annotations

from pathlib import Path

from densepath.core.errors import UserError
from densepath.core.keywords import is_on_disk
from densepath.nets.decoders.build import load_decoder
from densepath.nets.weights import read_weights
from densepath.nets.weights.of_run import has_group_norms
from densepath.nets.weights.published import is_published
from densepath.transfer.segment.config import BESIDE, SegmentConfig
from densepath.transfer.segment.network import FCNHead, SegmentationNet

_EXPORTED = Path("exported") / "decoder.safetensors"


def are_group_normed(weights: str | Path) -> bool:
    """Whether weights are those of a segmenter with group norms."""
    return is_on_disk(weights) and not is_published(weights) and has_group_norms(read_weights(weights).metadata)


def load_decoder_weights(model: SegmentationNet, config: SegmentConfig) -> str:
    """Load them.

    Returns:
        One line that reports what was loaded; "" for random weights.

    Raises:
        UserError: there is no such file, or it does not fit.
    """
    source = str(config.decoder)
    if source == BESIDE:
        beside = Path(config.weights) / _EXPORTED
        there = is_on_disk(config.weights) and beside.is_file()
        if model.pyramid is not None or isinstance(model.decoder, FCNHead) or not there:
            return ""
        source = str(beside)
    elif source == "random":
        return ""
    if isinstance(model.decoder, FCNHead):
        raise UserError("--decoder is for the head unet; leave it out")
    if Path(source).is_dir():
        source = str(Path(source) / _EXPORTED)
    return load_decoder(model.decoder, source)
