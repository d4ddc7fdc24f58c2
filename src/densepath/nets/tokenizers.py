"""Visual tokenizers: networks that assign a code to each patch of a view."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.codebook import Codebook
from densepath.core.errors import UserError
from densepath.core.losses import full_precision
from densepath.nets.backbones import Backbone, build_backbone
from densepath.nets.new_blocks import initialize
from densepath.nets.weights import read_weights
from densepath.nets.weights.checks import require_numbers
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.sources.pixel_source import PixelSpec

TOKENIZER = "tokenizer"  # its name among the exports of a run
_LEAST_PERPLEXITY = 1.5  # of a tokenizer that distinguishes patches


class Tokenizer(nn.Module):
    """An encoder whose patch features are projected to few dimensions and unit length, and quantized by a codebook.

    The projection is Linear, tanh, Linear.

    Args:
        backbone: a vision transformer; the encoder.
        num_codes: K.
        code_dim: D, dimensions of a code.
        momentum: momentum of the codes.
        restart_below: as for :class:`Codebook`.

    Source: BEiT-v2 (arXiv 2208.06366) and its released code.
    """

    def __init__(
        self, backbone: Backbone, num_codes: int, code_dim: int, momentum: float = 0.99, restart_below: float = 0.0
    ) -> None:
        super().__init__()
        width = backbone.channels[backbone.deepest]
        codebook = Codebook(num_codes, code_dim, momentum, restart_below)  # checks the arguments
        self.backbone = backbone
        self.projection = tanh_head(width, width, code_dim)
        self.codebook = codebook
        self.pixels: PixelSpec | None = None

    def show(self, spec: PixelSpec) -> None:
        """Check the specification of the views' pixels.

        Raises:
            UserError: it differs from that of the tokenizer's training.
        """
        if self.pixels is not None and self.pixels != spec:
            alike = (self.pixels.ndim, self.pixels.channels) == (spec.ndim, spec.channels)
            remedy = "give the --mean, --std and --window of its run" if alike else "train one on such images"
            raise UserError(
                f"the tokenizer was trained on pixels of {self.pixels.record()}, and these images have "
                f"{spec.record()}; {remedy}"
            )

    def embed(self, pixels: Tensor) -> Tensor:
        """Unit vectors (B, N, D) of the patches of views (B, C, S, S), row by row."""
        features = self.backbone(pixels)[self.backbone.deepest].flatten(2).transpose(1, 2)
        with torch.autocast(pixels.device.type, enabled=False):  # as released: nearby codes differ little
            return F.normalize(self.projection(full_precision(features)), dim=-1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Codes (B, N) int64 of the patches of views (B, C, S, S), row by row."""
        codes: Tensor = self.codebook(self.embed(pixels))
        return codes

    @property
    def width(self) -> int:
        """K."""
        return len(self.codebook.codes)

    def describe(self) -> str:
        """A line for the user."""
        perplexity = self.codebook.perplexity()
        known = f" (perplexity {perplexity:.0f})" if perplexity else ""
        return f"a tokenizer with {self.width} codes{known} on {self.backbone.name}"


def tanh_head(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """Linear, tanh, Linear; weights from a truncated normal distribution with standard deviation 0.02, biases zero."""
    head = nn.Sequential(nn.Linear(in_features, hidden_features), nn.Tanh(), nn.Linear(hidden_features, out_features))
    return head.apply(initialize)


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer that a run of ``vq_kd`` exported.

    Args:
        source: the run folder, or its ``exported/tokenizer.safetensors``.

    Raises:
        UserError: it is missing, the run is not complete, the file is not a tokenizer, or almost all codes are equal.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "exported" / f"{TOKENIZER}.safetensors"
        if not path.is_file():
            raise UserError(f"the run in {source} has no exported/{path.name}; name a complete run of vq_kd")
    weights = read_weights(path)
    codes, name = weights.state_dict.get("codebook.codes"), weights.metadata.get("backbone")
    if codes is None or codes.ndim != 2 or name is None:
        raise UserError(f"{path} contains no tokenizer; give the folder of a run of vq_kd")
    pixels = pixels_of_weights(path)
    tokenizer = Tokenizer(build_backbone(name, pixels.channels), *codes.shape)
    tokenizer.pixels = pixels
    own = tokenizer.state_dict()
    missing = [key for key in own if key not in weights.state_dict or own[key].shape != weights.state_dict[key].shape]
    unexpected = [key for key in weights.state_dict if key not in own]
    if missing or unexpected:
        raise UserError(
            f"{path} is not a tokenizer on {name}: {(missing + unexpected)[0]} does not fit; export it again"
        )
    require_numbers(weights.state_dict, path, own)
    tokenizer.load_state_dict(weights.state_dict)
    if 0 < tokenizer.codebook.perplexity() < _LEAST_PERPLEXITY:
        raise UserError(
            f"the tokenizer in {source} gives almost all patches the same code, so nothing can be learned from it; see "
            "used_codes in its run's metrics.csv, and train it again with --method.restart_below 0.1"
        )
    return tokenizer
