"""The vectors of Cellback and DiRL, with loops over crops, cells and tokens."""

import math

import torch

from densepath.core.affine import apply, invert
from densepath.methods.region_vectors import interaction_names

PATCH = 16


def region_of(cells, view_map, row, column, grid, num_regions):
    """The region of one patch of one crop, from the cells in it."""
    inside = [0] * (num_regions - 1)
    for x, y, number in cells.tolist():
        if math.isnan(x):
            continue
        place = apply(invert(view_map[None].double()), torch.tensor([[[x, y]]], dtype=torch.float64))[0, 0]
        along = [math.floor((float(c) + 1) / 2 * grid) for c in place]
        if along == [column, row]:
            inside[0 if num_regions == 2 else int(number)] += 1
    return inside.index(max(inside)) if max(inside) else num_regions - 1


def vectors_of(prior, backbone, block, view, cells, number):
    """The vectors of one crop by name, None where a region is empty: Equations 3 and 8."""
    pixels = view.pixels[number : number + 1]
    model = backbone.net.model if hasattr(backbone.net, "model") else None
    if model is None:
        features = backbone(pixels)[backbone.deepest][0]
        grid, outputs = features.shape[-1], features.flatten(1).T
    else:
        tokens = model.blocks(model.norm_pre(model._pos_embed(model.patch_embed(pixels))))
        grid, outputs = pixels.shape[-1] // PATCH, model.norm(tokens)[0, model.num_prefix_tokens :]
    regions, names = prior.num_regions, prior.names()
    image = number % len(cells)
    labels = [
        region_of(cells[image], view.map[number], row, column, grid, regions)
        for row in range(grid)
        for column in range(grid)
    ]
    outputs = {names: outputs}
    if block is not None:
        whole = tokens[:, model.num_prefix_tokens :]
        for which, open_ in enumerate(
            (lambda i, j: labels[i] == labels[j], lambda i, j: i == j or labels[i] != labels[j])
        ):
            part = block.blocks[min(which, len(block.blocks) - 1)]
            norm = block.norms[min(which, len(block.norms) - 1)]
            mask = torch.tensor([[0.0 if open_(i, j) else -torch.inf for j in range(grid**2)] for i in range(grid**2)])
            q, k, v = (
                part.attn.qkv(part.norm1(whole))[0]
                .view(grid**2, 3, part.attn.num_heads, -1)
                .permute(1, 2, 0, 3)
                .unbind(0)
            )
            weights = ((q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5 + mask.double()).softmax(-1)
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
            x = whole + part.attn.proj((weights @ v).transpose(0, 1).flatten(1))
            outputs[interaction_names(prior)[which]] = norm(x + part.mlp(part.norm2(x)))[0]
    found = {}
    for of_regions, features in outputs.items():
        for region, name in enumerate(of_regions):
            own = [features[i] for i, label in enumerate(labels) if label == region]
            found[name] = sum(own) / len(own) if own else None
    return found
