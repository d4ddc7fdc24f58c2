"""Stochastic depth with given random numbers."""

import pytest
import torch

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.stochastic_depth import StochasticDepth


def test_branches_are_dropped_by_row_and_scaled_up_for_the_others():
    backbone, plain = build_backbone("test_vit"), build_backbone("test_vit")
    plain.load_state_dict(backbone.state_dict())
    depth = StochasticDepth(backbone.net.model, 0.4)
    blocks = plain.net.model.blocks
    assert [path.rate for path in depth.paths] == pytest.approx(
        [0.4 * n / (len(blocks) - 1) for n in range(1, len(blocks)) for _ in range(2)]
    )
    numbers = torch.rand(3, len(depth.paths))
    numbers[0], numbers[1] = 0.0, 0.99  # all dropped, none dropped
    tokens = torch.randn(3, 5, plain.net.model.embed_dim)
    depth.draw(numbers)
    found = backbone.net.model.blocks(tokens)
    expected, number = blocks[0](tokens), 0
    for block in blocks[1:]:
        for branch in (lambda x, b=block: b.attn(b.norm1(x)), lambda x, b=block: b.mlp(b.norm2(x))):
            rate = depth.paths[number].rate
            kept = (numbers[:, number] >= rate).float().view(-1, 1, 1)
            expected, number = expected + branch(expected) * kept / (1 - rate), number + 1
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found[0], blocks[0](tokens)[0])
    torch.testing.assert_close(backbone.eval().net.model.blocks(tokens), blocks(tokens))
    backbone.train()
    depth.draw(None)
    torch.testing.assert_close(backbone.net.model.blocks(tokens), blocks(tokens))


def test_a_rate_of_one_is_refused():
    with pytest.raises(UserError, match="drop path rate must be at least 0 and less than 1, not 1"):
        StochasticDepth(build_backbone("test_vit").net.model, 1)
