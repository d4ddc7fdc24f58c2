"""The attention pool of a published image tower: a learned query that looks at all tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_HEADS = 8  # CONCH's; shapes do not show it
_POOL, _NORM = "attn_pool_contrast.", "ln_contrast."


class AttentionPool(nn.Module):
    """Tokens -> one vector: multi-head attention of learned queries to the normalized tokens, the first query's answer
    with a last norm. CONCH's features before its projection to the space of texts.

    Args:
        width: channels of the tokens.
        dim: channels of the vector.
        queries: number of learned queries.
        heads: of the attention.

    Source: Yu et al., CoCa, TMLR 2022, section 3.2 (task-specific attentional pooling); Lu et al., CONCH, Nature
    Medicine 2024, whose names of tensors it has.
    """

    def __init__(self, width: int, dim: int, queries: int = 1, heads: int = _HEADS) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(queries, dim))
        self.attn = nn.MultiheadAttention(dim, heads, kdim=width, vdim=width, batch_first=True)
        self.ln_q, self.ln_k, self.norm = nn.LayerNorm(dim), nn.LayerNorm(width), nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, width) -> (B, dim)."""
        seen = self.ln_k(tokens)
        queries = self.ln_q(self.query).expand(len(tokens), -1, -1)
        return self.norm(self.attn(queries, seen, seen, need_weights=False)[0][:, 0])


def attention_pool(state: Mapping[str, Tensor]) -> AttentionPool | None:
    """The attention pool among the tensors of an image tower; None if it has none.

    Args:
        state: tensors under CONCH's names, with any prefix.
    """
    query = next((key for key in state if key.endswith(f"{_POOL}query")), None)
    if query is None:
        return None
    prefix = query.removesuffix(f"{_POOL}query")
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    own = {key.removeprefix(_POOL): value for key, value in found.items() if key.startswith(_POOL)}
    own |= {f"norm.{key.removeprefix(_NORM)}": value for key, value in found.items() if key.startswith(_NORM)}
    pool = AttentionPool(own["ln_k.weight"].numel(), own["query"].shape[1], len(own["query"]))
    pool.load_state_dict(own)
    return pool
