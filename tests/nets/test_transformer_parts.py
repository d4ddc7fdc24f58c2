"""A vision transformer taken apart, against timm's whole one."""

from __future__ import annotations

import pytest
import torch
from lightly.models.utils import get_2d_sine_cosine_positional_embedding

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.backbones.transformer_parts import (
    add_positions,
    choose_attention,
    embed_patches,
    encode,
    fix_positions,
    require_transformer,
    run_blocks,
    select_tokens,
    sincos_positions,
)

PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["test_vit", "test_vit3", "deit3_small_patch16_224"])
@torch.no_grad()
def test_the_parts_make_the_whole(name: str) -> None:
    backbone = build_backbone(name).eval()
    model = require_transformer(backbone, "it")
    tokens = add_positions(model, embed_patches(model, PIXELS))
    prefix = model.num_prefix_tokens
    assert tokens.shape == (2, prefix + 24, model.embed_dim)
    encoded = encode(model, tokens)
    torch.testing.assert_close(encoded, model.forward_features(PIXELS))
    torch.testing.assert_close(encoded[:, prefix:].transpose(1, 2).unflatten(2, (4, 6)), backbone(PIXELS)[4])
    halves = run_blocks(model, run_blocks(model, tokens, stop=2), start=2)
    torch.testing.assert_close(model.norm(halves), encoded)


@torch.no_grad()
def test_tokens_are_selected_with_the_prefix_before_them() -> None:
    model = require_transformer(build_backbone("test_vit"), "it")
    tokens = torch.randn(2, 1 + 6, 8)
    kept = select_tokens(model, tokens, torch.tensor([[4, 0], [5, 3]]))
    assert torch.equal(kept, torch.stack((tokens[0, [0, 5, 1]], tokens[1, [0, 6, 4]])))


@torch.no_grad()
def test_tokens_that_are_left_out_are_not_looked_at() -> None:
    model = require_transformer(build_backbone("test_vit").eval(), "it")
    patches = embed_patches(model, PIXELS)
    other = patches.clone()
    other[:, 2] = 9.0  # the third row: patches 12 to 17
    kept = torch.arange(12).expand(2, -1)
    one, two = (encode(model, select_tokens(model, add_positions(model, x), kept)) for x in (patches, other))
    assert torch.equal(one, two)


def test_sincos_positions_are_those_of_mae_in_another_order_of_channels() -> None:
    theirs = torch.from_numpy(get_2d_sine_cosine_positional_embedding(32, 5, cls_token=False)).float()
    ours = sincos_positions(5, 5, 32)
    order = [int((theirs.T - column).abs().amax(1).argmin()) for column in ours.T]
    assert sorted(order) == list(range(32))
    torch.testing.assert_close(ours, theirs.reshape(25, 32)[:, order], rtol=1e-5, atol=1e-5)


def test_fixed_positions_are_of_the_networks_own_grid_and_are_not_trained() -> None:
    backbone = build_backbone("test_vit")  # of 160 px
    model = require_transformer(backbone, "it")
    fix_positions(model)
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed[0, 1:], sincos_positions(10, 10, 64)) and not model.pos_embed[0, 0].any()


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch16_dinov3", "efficientnet_b0"])
def test_other_networks_are_refused(name: str) -> None:
    message = f"MAE needs a vision transformer with position embeddings, which {name} is not"
    with pytest.raises(UserError, match=message):
        require_transformer(build_backbone(name), "MAE")


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_on_a_cpu_trains_without_fused_attention(autocast: bool) -> None:
    """Its backward pass is slow there; the results are the same."""
    model = build_backbone("test_vit").net.model
    tokens = torch.randn(2, 5, model.embed_dim)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = model.blocks(tokens)
        choose_attention(model.blocks, tokens.device)
        torch.testing.assert_close(model.blocks(tokens), expected, rtol=0.05, atol=0.05 if autocast else 1e-6)
    assert all(block.attn.fused_attn != autocast for block in model.blocks)
