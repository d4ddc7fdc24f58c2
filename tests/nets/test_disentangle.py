"""The disentangle block against its equations, in float64."""

import pytest
import torch

from densepath.nets.disentangle import Disentangle, attention_masks

N, TOKENS, DIM, HEADS = 3, 7, 12, 3


def softmax_attention(attention, x, opened):
    """Equation 5 with a loop over images, heads and queries."""
    q, k, v = attention.qkv(x).reshape(N, TOKENS, 3, HEADS, DIM // HEADS).unbind(2)
    out, rows = torch.zeros(N, TOKENS, HEADS, DIM // HEADS, dtype=torch.float64), []
    for image in range(N):
        for head in range(HEADS):
            for i in range(TOKENS):
                scores = [
                    (q[image, i, head] @ k[image, j, head]) / (DIM // HEADS) ** 0.5
                    if opened(image, i, j)
                    else torch.tensor(-torch.inf, dtype=torch.float64)
                    for j in range(TOKENS)
                ]
                weights = torch.stack(scores).softmax(0)
                rows.append(weights.sum())
                out[image, i, head] = sum(weights[j] * v[image, j, head] for j in range(TOKENS))
    torch.testing.assert_close(torch.stack(rows), torch.ones(len(rows), dtype=torch.float64))
    return attention.proj(out.flatten(2))


@pytest.mark.parametrize("shared", [True, False])
def test_both_passes_equal_the_equations(shared):
    module = Disentangle(DIM, HEADS, shared).double()
    tokens = torch.randn(N, TOKENS, DIM, dtype=torch.float64)
    labels = torch.randint(-1, 2, (N, TOKENS))
    labels[2] = 1  # one region only

    def same(image, i, j):
        return labels[image, i] == labels[image, j]

    def other(image, i, j):
        return i == j or labels[image, i] != labels[image, j]

    for number, (found, opened) in enumerate(zip(module(tokens, labels), (same, other), strict=True)):
        part = 0 if shared else number
        block, norm = module.blocks[part], module.norms[part]
        within = tokens + softmax_attention(block.attn, block.norm1(tokens), opened)
        torch.testing.assert_close(found, norm(within + block.mlp(block.norm2(within))))
    assert len(list(module.parameters())) == (1 if shared else 2) * 14


def test_one_region_gives_the_plain_block_and_attention_to_itself():
    module, tokens = Disentangle(DIM, HEADS), torch.randn(N, TOKENS, DIM)
    within, between = module(tokens, torch.zeros(N, TOKENS, dtype=torch.int64))
    torch.testing.assert_close(within, module.norms[0](module.blocks[0](tokens)))
    alone = module.blocks[0](tokens.view(-1, 1, DIM)).view_as(tokens)  # each token is a sequence of its own
    torch.testing.assert_close(between, module.norms[0](alone))


def test_no_row_is_closed():
    labels = torch.randint(0, 3, (20, 9))
    within, between = (mask == 0 for mask in attention_masks(labels))
    assert within.any(2).all() and between.any(2).all()
    assert (within & between == torch.eye(9, dtype=torch.bool)).all() and (within | between).all()


def test_half_precision_on_a_cpu_has_plain_attention():
    """Its fused backward pass is slow there. Both add the masks, as all versions of timm that the package allows."""
    module, tokens, labels = Disentangle(DIM, HEADS), torch.randn(20, 9, DIM), torch.randint(0, 3, (20, 9))
    expected = module(tokens, labels)
    assert module.blocks[0].attn.fused_attn
    with torch.autocast("cpu", torch.bfloat16):
        found = module(tokens, labels)
    assert not module.blocks[0].attn.fused_attn
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.05)
    assert all(mask.dtype == torch.float64 for mask in attention_masks(labels, torch.float64))
