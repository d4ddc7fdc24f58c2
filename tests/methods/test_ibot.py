"""iBOT against its equations, with loops in float64; KoLeo; masks."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from method_checks import check

from densepath.core.errors import UserError
from densepath.core.koleo import koleo
from densepath.methods import IBOT
from densepath.views.maker import ViewMaker
from densepath.views.view import View

SIZE = 64
PLAIN = "test_vit(class_token=False, global_pool='avg', fc_norm=False)"


def batch_of(method, images, size=SIZE):
    batch = ViewMaker(method.views(), size, seed=0)(images)
    return replace(batch, views={name: View(v.pixels.double(), v.map) for name, v in batch.views.items()})


def encode(network, pixels, pool, mask=None, token=None):
    """The vector (C,) and the patches (n, C) of one crop, of which some are masked."""
    model = network.net.model
    patches = model.patch_embed(pixels[None])[0].flatten(0, 1)
    if mask is not None:
        patches = torch.stack([token if hidden else patch for hidden, patch in zip(mask, patches, strict=True)])
    side = math.isqrt(len(patches))
    tokens = model.norm(model.blocks(model._pos_embed(patches.unflatten(0, (side, side))[None])))[0]
    own = tokens[model.num_prefix_tokens :]
    return (tokens[0] if pool == "cls" else own.mean(0)), own


def nearest(vectors):
    """KoLeo by a loop."""
    unit = [v / v.norm() for v in vectors]
    closest = [
        min((float((one - other).detach().norm()), j) for j, other in enumerate(unit) if j != i)[1]
        for i, one in enumerate(unit)
    ]
    return -sum((unit[i] - unit[j]).norm().log() for i, j in enumerate(closest)) / len(unit)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [("test_vit(reg_tokens=2)", {}), (PLAIN, {"pool": "mean", "shared_head": False, "koleo_weight": 0.1})],
)
def test_losses_centers_and_gradients_equal_the_equations(make, images, backbone, options):
    """Two steps, so that there are centers, with a teacher that differs from the student."""
    method = make(IBOT, backbone, local_size=0.5, patch_weight=0.7, **options).double()
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    batch, count, pool = batch_of(method, images), len(images.index), options.get("pool", "cls")
    crops = [crop for view in method.crops(batch) for crop in view.pixels.split(count)]
    masks = method.with_masks(batch).extras["mask"]
    assert 0 < masks.any(1).sum() < len(masks)  # some crops are not masked
    centers = {"image": 0.0, "patch": 0.0}
    own = {name: name if name in method.heads else "image" for name in centers}
    assert ("patch" in method.heads) == (not options.get("shared_head", True))
    for _ in range(2):
        taught = [[encode(method.teacher.network, pixels, pool) for pixels in crop] for crop in crops[:2]]
        scores = {
            "image": [[method.teacher_heads.network["image"](v[None])[0] for v, _ in crop] for crop in taught],
            "patch": [[method.teacher_heads.network[own["patch"]](x) for _, x in crop] for crop in taught],
        }
        p = {n: [[((s - centers[n]) / 0.04).softmax(-1).detach() for s in q] for q in of] for n, of in scores.items()}
        learned = []
        for v, crop in enumerate(crops):
            hidden = masks[v * count : (v + 1) * count].tolist() if v < 2 else [None] * count
            token = method.mask_token
            learned.append(
                [encode(method.backbone, x, pool, mask, token) for x, mask in zip(crop, hidden, strict=True)]
            )

        def learn(name, vector):
            return F.log_softmax(method.heads[own[name]](vector[None])[0] / 0.1, dim=0)

        image = [
            -(p["image"][q][b] * learn("image", learned[v][b][0])).sum()
            for q in range(2)
            for v in range(len(crops))
            for b in range(count)
            if v != q
        ]
        patch = []
        for v in range(2):
            for b in range(count):
                mask = masks[v * count + b]
                terms = [
                    -(p["patch"][v][b][i] * learn("patch", learned[v][b][1][i])).sum() for i in mask.nonzero()[:, 0]
                ]
                patch.append(sum(terms) / max(len(terms), 1))
        spread = sum(nearest([vector for vector, _ in learned[v]]) for v in range(2)) / 2
        image_loss = sum(image) / len(image) + options.get("koleo_weight", 0.0) * spread
        expected = image_loss + 0.7 * sum(patch) / len(patch)
        losses = method(batch)
        method.after_step()
        close = {"rtol": 1e-5, "atol": 1e-7}  # positions are resized in float32
        torch.testing.assert_close(losses.total, expected, **close)
        torch.testing.assert_close(losses.terms["image_loss"], image_loss.detach(), **close)
        for name, of in scores.items():
            every = torch.cat([s.view(-1, s.shape[-1]) for q in of for s in q]).detach()
            centers[name] = 0.9 * centers[name] + 0.1 * every.mean(0)
            torch.testing.assert_close(method.losses[name].center, centers[name], **close)
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert "mask_token" in trained
    found = torch.autograd.grad(losses.total, trained.values())
    theirs = torch.autograd.grad(expected, trained.values())
    for one, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_masks_have_the_shares_of_the_paper(make, images):
    """Half of the crops are masked, a tenth to a half of their patches; others in each crop and epoch."""
    method = make(IBOT, "test_vit")
    batch = batch_of(method, images, 96)
    drawn = [method.with_masks(replace(batch, epoch=float(epoch))).extras for epoch in range(30)]
    shares = torch.stack([each["mask"].float().mean(1) for each in drawn])  # (epochs, crops)
    masked = shares[shares > 0]
    assert 0.4 < len(masked) / shares.numel() < 0.6
    assert masked.min() >= 0.1 - 0.5 / 36 and masked.max() <= 0.5 and 0.2 < masked.mean() < 0.4
    assert len({tuple(mask.flatten().tolist()) for each in drawn for mask in each["mask"] if mask.any()}) > 100
    for each in drawn:
        rows, weights = each["masked"], each["mask_weights"]
        assert rows[:-1].tolist() == each["mask"].flatten().nonzero()[:, 0].tolist() and weights[-1] == 0
        torch.testing.assert_close(weights.sum(), each["mask"].any(1).float().mean())


def test_a_batch_without_masks_has_a_loss(make, images):
    method = make(IBOT, "test_vit", local_size=0.5, mask_probability=1e-9)
    losses = method(ViewMaker(method.views(), SIZE, seed=0)(images))
    losses.total.backward()
    assert losses.terms["patch_loss"] == 0 and losses.total.isfinite()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_koleo_is_small_for_vectors_that_are_apart():
    vectors = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(koleo(vectors), nearest(vectors))
    assert koleo(torch.eye(4)) < koleo(vectors.float()) < koleo(1 + 0.01 * torch.randn(4, 4))


def test_what_does_not_fit_is_named(make):
    with pytest.raises(UserError, match="no neighbors for KoLeo"):
        check(make(IBOT, "test_vit", local_size=0.5, koleo_weight=0.1), SIZE, 1)
    with pytest.raises(UserError, match="ibot needs a vision transformer"):
        make(IBOT, "test_resnet")
    for wrong in ({"mask_probability": 0.0}, {"mask_spread": 0.3}, {"mask_ratio": 0.9}):
        with pytest.raises(UserError, match="mask"):
            make(IBOT, "test_vit", **wrong)


def test_overfits_one_batch(make, images, losses_on):
    method = make(IBOT, "test_vit", local_size=0.5, momentum=0.996, center_momentum=0.99)
    batch = replace(ViewMaker(method.views(), SIZE, seed=0)(images), progress=1.0)
    history = losses_on(method, batch, steps=25, lr=0.2)
    assert history[-1] < 0.6 * history[0]
