"""VQ-KD: trains a tokenizer whose codes of patches predict a teacher's features."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.codebook import CREDIT
from densepath.core.distributed import world_size
from densepath.core.errors import UserError, counted
from densepath.core.losses import full_precision
from densepath.core.masking import square_grid
from densepath.methods.base import Losses
from densepath.methods.frozen_target import FrozenTarget
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.transformer_parts import require_transformer, sincos_positions
from densepath.nets.new_blocks import new_blocks
from densepath.nets.teachers import Teacher
from densepath.nets.tokenizers import TOKENIZER, Tokenizer, tanh_head
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch


class VQKD(FrozenTarget[Teacher]):
    """Vector-quantized knowledge distillation: BEiT-v2's tokenizer, which :class:`BEiTv2` learns from.

    An encoder computes a unit vector h_i for patch i, a codebook gives the nearest code v_i, and a small decoder
    predicts the features of a frozen teacher from the codes of all patches. With t_i the teacher's feature and o_i the
    decoder's output,

    L = mean over patches of  1 - cos(o_i, t_i) + b |h_i - sg(v_i)|^2.

    The decoder's gradient is passed to h_i unchanged (straight-through). The codes are moving averages, not trained by
    gradients: :class:`Codebook`.

    The released code averages the last term over the D components of a code, which is b = 1 / D; the paper, and this,
    sums them, with b = 1. Its decoder has learned position embeddings and a class token; this one has sines and
    cosines, for views of any size. Its input is scaled to [-1, 1]; ours is normalized for ImageNet, which it offers as
    an option.

    Args:
        backbone: a vision transformer, the encoder.
        num_codes: number of codes of the codebook.
        code_dim: dimension D of a code.
        momentum: momentum of the codes' moving averages.
        restart_below: codes that are used less than this share of the mean are restarted (:class:`Codebook`); 0 for
            none, as released. In short runs with a high learning rate all patches may get the same code without it.
        commitment: weight b of the commitment loss.
        decoder_depth: number of blocks of the decoder, as wide as those of the encoder.

    Source: Peng et al., arXiv 2208.06366, and its released code.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_codes: int = 8192,
        code_dim: int = 32,
        momentum: float = 0.99,
        restart_below: float = 0.0,
        commitment: float = 1.0,
        decoder_depth: int = 3,
    ) -> None:
        super().__init__("teacher")
        model = require_transformer(backbone, "vq_kd")
        if not commitment >= 0:
            raise UserError(f"the commitment must be at least 0, not {commitment}")
        if not 0 < decoder_depth <= len(model.blocks):
            raise UserError(f"the decoder has 1 to {len(model.blocks)} blocks on {backbone.name}, not {decoder_depth}")
        self.commitment = commitment
        self.width: int = model.num_features
        self.tokenizer = Tokenizer(backbone, num_codes, code_dim, momentum, restart_below)
        self.from_codes = nn.Linear(code_dim, self.width)
        self.decoder = new_blocks(model, decoder_depth)
        self.norm = nn.LayerNorm(self.width, eps=1e-6)

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        """Crops and flips; the colors stay."""
        plain = Augment(scale=(0.08, 1.0), jitter=0.0, grayscale=0.0, blur=0.0, interpolation="bicubic")
        return {"image": (augment or plain).random_view()}

    def make_head(self, width: int) -> nn.Module:
        return tanh_head(self.width, self.width, width)

    def forward(self, batch: Batch) -> Losses:
        pixels = batch["image"].pixels
        grid = square_grid(pixels.shape[2:], self.tokenizer.backbone.patch_size)
        codebook = self.tokenizer.codebook
        vectors = self.tokenizer.embed(pixels)  # (B, N, D)
        flat = vectors.detach().flatten(0, 1)
        if not codebook.begun:
            codebook.begin(flat, batch.common_uniform(len(flat) * world_size()))
        codes = codebook(vectors)
        found = codebook.look_up(codes)
        output = self.decode(vectors + (found - vectors).detach(), grid)
        reconstruction = 1 - F.cosine_similarity(full_precision(output), self.target(pixels, grid), dim=-1).mean()
        commitment = (vectors - found).square().sum(-1).mean()
        terms = {"reconstruction_loss": reconstruction.detach(), "commitment_loss": commitment.detach()}
        used = codes.new_zeros(())
        if self.training:
            draws = batch.common_uniform(len(codebook.codes) if codebook.restart_below else 0)
            used = codebook.follow(flat, codes.flatten(), draws)
        return Losses(reconstruction + self.commitment * commitment, terms, {"used_codes": used})

    def decode(self, codes: Tensor, grid: int) -> Tensor:
        """The teacher's features (B, N, width), predicted from codes (B, N, D) of ``grid`` rows."""
        positions = sincos_positions(grid, grid, self.width, codes.device).to(codes.dtype)
        features: Tensor = self.head(self.norm(self.decoder(self.from_codes(codes) + positions)))
        return features

    def exported_backbone(self) -> Backbone:
        return self.tokenizer.backbone

    def exported_parts(self) -> dict[str, dict[str, Tensor]]:
        state = self.tokenizer.state_dict()
        state.pop(f"codebook.{CREDIT}", None)
        return {TOKENIZER: state}

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        backbone = self.tokenizer.backbone
        backbone.check_size(*sizes["image"])
        patches = batch_size * square_grid(sizes["image"], backbone.patch_size) ** 2
        if patches < self.tokenizer.width:
            raise UserError(
                f"a batch of {counted(batch_size, 'image')} has {counted(patches, 'patch', 'patches')}, too few to "
                f"initialize {self.tokenizer.width} codes; use fewer codes by --method.num_codes, or larger batches"
            )
