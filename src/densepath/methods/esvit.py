"""EsViT: DINO on whole views and on the regions of each view."""

from __future__ import annotations

from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.distillation import view_pairs
from densepath.core.losses import full_precision
from densepath.core.regions import global_pool
from densepath.methods.dino import DINO
from densepath.methods.dino_options import DINOOptions
from densepath.methods.region_vectors import Vectors, flat
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.transformer_parts import add_positions, embed_patches, encode
from densepath.views.view import Batch, View


class EsViT(DINO):
    """Self-distillation of views and of regions.

    A region is a position of the last features z. With r*(i) the position of the teacher's view whose feature has the
    largest cosine with that of position i of the student's, and DINO's loss L_V of whole views,

    L = 1/2 L_V + 1/2 L_R,   L_R = mean over images, pairs of views v != q and positions i of v of
                                   -sum over prototypes of p_q,r*(i) log p_v,i   (Equations 3 and 4).

    Regions have a head and a center of their own. Any backbone will do; a class token is not a region.

    Args:
        backbone: the student.
        pool: a view's vector: the class token ("cls"), or the "mean" of its positions.
        **dino: as in :class:`DINO`; ``prototypes`` are those of each head. With centering="sinkhorn", memory
            grows with their product with the regions.

    Source: Li et al., ICLR 2022, arXiv 2106.09785, and its released code: features are matched after the final norm.
    """

    own_heads = ("image", "region")
    heads_of_positions = True

    def __init__(self, backbone: Backbone, pool: Literal["cls", "mean"] = "cls", **dino: Unpack[DINOOptions]) -> None:
        super().__init__(backbone, pool=pool, **dino)

    def represent(self, batch: Batch, crops: View, teacher: bool = False) -> Vectors:
        backbone: Backbone = self.teacher.network if teacher else self.backbone
        if self.pool == "mean":
            features = backbone(crops.pixels)[backbone.deepest]
            return {"image": (global_pool(features), None), "region": (features.flatten(2).transpose(1, 2), None)}
        model = backbone.net.model
        tokens = encode(model, add_positions(model, embed_patches(model, crops.pixels)))
        return {"image": (tokens[:, 0], None), "region": (tokens[:, model.num_prefix_tokens :], None)}

    def distill(
        self, batch: Batch, name: str, taught: tuple[Tensor, Tensor | None], learned: list[tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if name != "region":
            return super().distill(batch, name, taught, learned)
        count, keys, queries = len(batch), taught[0], [tokens for tokens, _ in learned]
        views = sum(map(len, queries)) // count
        _, of_views = view_pairs(count, len(keys) // count, views, keys.device)
        parts = zip(queries, of_views.split([len(x) for x in queries]), strict=True)
        weights = torch.cat([weight.repeat_interleave(x.shape[1], 0) / x.shape[1] for x, weight in parts])
        rows = torch.cat([most_similar_regions(x, keys, count) for x in queries])
        students = torch.cat([x.flatten(0, 1) for x in queries])
        return self.compare_rows(batch, name, flat(taught), (students, None), rows, weights)


@torch.no_grad()
def most_similar_regions(queries: Tensor, keys: Tensor, images: int) -> Tensor:
    """For each position of each view the most similar position of each of the teacher's views of the same image.

    Args:
        queries: (V * B, n, C) features; row v * B + b is view v of image b.
        keys: (Q * B, m, C) the teacher's.
        images: number of images B.

    Returns:
        (V * B * n, Q) int64, rows of the keys' positions (Q * B * m, C).
    """
    with torch.autocast(keys.device.type, enabled=False):
        q = full_precision(queries).unflatten(0, (-1, images))  # its length does not change which cosine is the largest
        k = F.normalize(full_precision(keys), dim=2).unflatten(0, (-1, images))
        best = torch.einsum("vbnc,qbmc->vbnqm", q, k).argmax(-1)  # (V, B, n, Q)
    first = torch.arange(len(keys), device=keys.device).view(-1, images).T * keys.shape[1]  # (B, Q)
    return (best + first.unsqueeze(1)).flatten(0, 2)
