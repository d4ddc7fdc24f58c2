"""SelfPatch against its published definition, with loops in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from method_checks import check

from densepath.core.errors import UserError
from densepath.methods import DINO, SelfPatch
from densepath.nets.aggregate import similar_neighbors
from densepath.views.maker import ViewMaker
from densepath.views.view import View

SIZE, SMALL = 64, {"local_size": 0.75, "local_crops": 2, "patch_prototypes": 24}  # 4 x 4 and 3 x 3 patches
PLAIN = "test_vit(class_token=False, global_pool='avg', fc_norm=False)"


def batch_of(method, images):
    batch = ViewMaker(method.views(), SIZE, seed=0)(images)
    return replace(batch, views={name: View(v.pixels.double(), v.map) for name, v in batch.views.items()})


def attend(head, tokens):
    """Two blocks of class attention on tokens (n, C), by the equations."""
    own = head.token[0, 0]
    for block in head.blocks:
        x = block.norm1(torch.cat((own[None], tokens)))
        attn = block.attn
        q = attn.q(x[0]).view(attn.num_heads, -1)
        k, v = (layer(x).view(len(x), attn.num_heads, -1) for layer in (attn.k, attn.v))
        parts = []
        for number in range(attn.num_heads):
            weights = torch.stack([q[number] @ key for key in k[:, number]]) / q.shape[1] ** 0.5
            parts.append(weights.softmax(0) @ v[:, number])
        own = own + attn.proj(torch.cat(parts))
        own = own + block.mlp(block.norm2(own))
    return own


def neighborhood(tokens, position, grid, count):
    """The tokens (count, C) around a position that resemble it most, wrapping around."""
    row, column = divmod(position, grid)
    near = [(row + down) % grid * grid + (column + right) % grid for down in (-1, 0, 1) for right in (-1, 0, 1)]
    near.remove(position)
    near.sort(key=lambda other: -float(F.cosine_similarity(tokens[position], tokens[other], dim=0)))
    return tokens[near[:count]]


@pytest.mark.parametrize("backbone", ["test_vit"])
def test_losses_centers_and_gradients_equal_the_definition(make, images, backbone):
    """Two steps, so that there are centers, with a teacher that differs from the student."""
    method = make(SelfPatch, backbone, neighbors=3, **SMALL).double()
    with torch.no_grad():
        for part in (method.teacher, method.teacher_aggregate, method.teacher_heads):
            for parameter in part.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    batch, count = batch_of(method, images), len(images.index)
    crops = [crop for view in method.crops(batch) for crop in view.pixels.split(count)]
    assert len(crops) == 4

    def last(network, pixels):
        model = network.net.model
        return model.blocks(model._pos_embed(model.patch_embed(pixels[None])))[0, model.num_prefix_tokens :]

    centers = {"image": 0.0, "patch": 0.0}
    norm, teacher_norm = method.backbone.net.model.norm, method.teacher.network.net.model.norm
    for _ in range(2):
        scores, learned = {"image": [], "patch": []}, {"image": [], "patch": []}
        for crop in crops:
            taught = [last(method.teacher.network, pixels) for pixels in crop]
            own = torch.stack([attend(method.teacher_aggregate.network, tokens) for tokens in taught])
            scores["image"].append(method.teacher_heads.network["image"](teacher_norm(own)))
            grid = round(len(taught[0]) ** 0.5)
            near = [
                attend(method.teacher_aggregate.network, neighborhood(tokens, position, grid, 3))
                for tokens in taught
                for position in range(grid**2)
            ]
            scores["patch"].append(method.teacher_heads.network["patch"](teacher_norm(torch.stack(near))))
            tokens = [last(method.backbone, pixels) for pixels in crop]
            own = torch.stack([attend(method.aggregate, each) for each in tokens])
            learned["image"].append(F.log_softmax(method.heads["image"](norm(own)) / 0.1, dim=1))
            learned["patch"].append(F.log_softmax(method.heads["patch"](norm(torch.cat(tokens))) / 0.1, dim=1))
        p = {name: [((s - centers[name]) / 0.04).softmax(1).detach() for s in of] for name, of in scores.items()}
        pairs = [(q, v) for q in range(2) for v in range(4) if v != q]
        image = sum(-(p["image"][q] * learned["image"][v]).sum(1).mean() for q, v in pairs) / len(pairs)
        patch = sum(-(p["patch"][v] * learned["patch"][v]).sum(1).mean() for v in range(4)) / 4
        losses = method(batch)
        method.after_step()
        close = {"rtol": 1e-5, "atol": 1e-7}  # positions are resized in float32
        torch.testing.assert_close(losses.terms["image_loss"], image.detach(), **close)
        torch.testing.assert_close(losses.terms["patch_loss"], patch.detach(), **close)
        torch.testing.assert_close(losses.total, image + 0.1 * patch, **close)
        for name, of in scores.items():
            centers[name] = 0.9 * centers[name] + 0.1 * torch.cat(of).mean(0).detach()
            torch.testing.assert_close(method.losses[name].center, centers[name], **close)
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(losses.total, trained.values())
    theirs = torch.autograd.grad(image + 0.1 * patch, trained.values())
    for one, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_neighbors_wrap_around_a_grid_that_is_not_square():
    tokens = torch.randn(2, 12, 5)
    found = similar_neighbors(tokens, (3, 4), 8)
    for row, column in ((0, 0), (2, 3), (1, 2)):
        around = {(row + down) % 3 * 4 + (column + right) % 4 for down in (-1, 0, 1) for right in (-1, 0, 1)}
        expected = tokens[:, sorted(around - {row * 4 + column})]
        own = found[:, row * 4 + column]
        assert torch.equal(own.sort(1).values, expected.sort(1).values)


def test_views_are_those_of_dino_with_other_scales(make):
    found, dino = SelfPatch.views(), DINO.views()
    assert found["first"].crop.scale == found["second"].crop.scale == (0.25, 1.0)
    assert found["local"].crop.scale == (0.05, 0.25)
    assert all(found[name].appearance == dino[name].appearance for name in dino)
    with pytest.raises(UserError, match="crops of 32 px have less than 3 patches"):
        check(make(SelfPatch, PLAIN, local_size=0.5), SIZE, 4)
    check(make(SelfPatch, PLAIN, local_size=0.5, local_crops=0), SIZE, 4)
    with pytest.raises(UserError, match=r"--method.neighbors from 1 to 8, not 9"):
        make(SelfPatch, PLAIN, neighbors=9)


def test_overfits_one_batch(make, images, losses_on):
    method = make(SelfPatch, PLAIN, momentum=0.996, center_momentum=0.99, **SMALL)
    batch = replace(ViewMaker(method.views(), SIZE, seed=0)(images), progress=1.0)
    history = losses_on(method, batch, steps=25, lr=0.2)
    assert history[-1] < 0.7 * history[0]
