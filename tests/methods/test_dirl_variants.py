"""The comparisons of DiRL's paper: L_sup, and the same vectors on SimCLR and BYOL, against loops in float64."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from method_checks import check
from region_loops import vectors_of

from densepath.core.affine import apply, invert
from densepath.core.errors import UserError
from densepath.methods import BYOL, DINO, DINOSup, DiRL, DiRLBYOL, DiRLSimCLR, SimCLR
from densepath.views.maker import ViewMaker
from densepath.views.view import View

SIZE, PATCH = 48, 16
PLAIN = "test_vit(class_token=False, global_pool='avg', fc_norm=False)"
KINDS = [
    (DiRLSimCLR, {}),
    (DiRLSimCLR, {"interactions": False, "num_regions": 3}),
    (DiRLBYOL, {}),
    (DiRLBYOL, {"interactions": False}),
]


def views_of(method, images):
    batch = ViewMaker(method.views(), SIZE, seed=0)(images)
    return replace(batch, views={name: View(v.pixels.double(), v.map) for name, v in batch.views.items()})


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_losses_equal_the_equations(make, celled, kind, options):
    """NT-Xent and BYOL's loss among the images of which both views have the region."""
    method = make(kind, PLAIN, **options).double()
    cells = celled.extras["cells"]
    cells[3], cells[3, 0] = torch.nan, torch.tensor([-0.5, 0.5, 0.0])  # which the first view shows, and the second not
    batch = views_of(method, celled)
    byol = kind is DiRLBYOL
    if byol:
        with torch.no_grad():
            for parameter in method.target_backbone.parameters():
                parameter.mul_(1.1)

    def of(backbone, block):
        return [
            [vectors_of(method.prior, backbone, block, batch[v], cells, n) for n in range(4)]
            for v in ("first", "second")
        ]

    online = of(method.backbone, method.block)
    target = of(method.target_backbone.network, method.target_block and method.target_block.network) if byol else None
    found, expected, lost = method(batch), 0.0, 0
    for name, weight in method.weights.items():
        both = [n for n in range(4) if online[0][n][name] is not None and online[1][n][name] is not None]
        rows = [(v, n) for v in range(2) for n in range(4) if online[v][n][name] is not None]  # batch norms see these
        lost += len(rows) - 2 * len(both)
        x = torch.stack([online[v][n][name] for v, n in rows])
        if byol:
            z = method.predictors[name](method.projectors[name](x))
            own = method.target_projectors.network[name](torch.stack([target[v][n][name] for v, n in rows]))
            distances = [
                (F.normalize(z[rows.index((v, n))], dim=0) - F.normalize(own[rows.index((1 - v, n))], dim=0))
                .square()
                .sum()
                for v in range(2)
                for n in both
            ]
            loss = sum(distances) / len(both)
        else:
            z = F.normalize(method.heads[name](x), dim=1)
            used = [row for row in rows if row[1] in both]
            terms = []
            for v, n in used:
                scores = {row: z[rows.index((v, n))] @ z[rows.index(row)] / 0.5 for row in used if row != (v, n)}
                terms.append(torch.stack([*scores.values()]).logsumexp(0) - scores[1 - v, n])
            loss = sum(terms) / len(terms)
        torch.testing.assert_close(found.terms[f"{name}_loss"], loss.detach(), rtol=1e-5, atol=1e-7)
        expected = expected + weight * loss
    assert lost > 0 and set(method.weights.values()) == ({0.5, 0.025} if options.get("interactions", True) else {0.5})
    torch.testing.assert_close(found.total, expected, rtol=1e-5, atol=1e-7)
    trained = [p for p in method.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(loss, trained) for loss in (found.total, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_views_and_schedules_are_those_of_simclr_and_byol(make, celled):
    assert DiRLSimCLR.views() == SimCLR.views() and DiRLBYOL.views() == BYOL.views()
    method, plain = make(DiRLBYOL, PLAIN), make(BYOL, PLAIN)
    batch = replace(ViewMaker(method.views(), SIZE, seed=0)(celled), progress=0.3)
    for one in (method, plain):
        with torch.no_grad():
            one.backbone.net.model.pos_embed.add_(0.1)
        one.before_step(batch)
    moved = [one.target_backbone.network.net.model.pos_embed for one in (method, plain)]
    assert torch.equal(*moved)
    before = method.target_block.network.blocks[0].mlp.fc1.weight.clone()
    with torch.no_grad():
        method.block.blocks[0].mlp.fc1.weight.add_(1.0)
    method.before_step(batch)
    assert (method.target_block.network.blocks[0].mlp.fc1.weight - before).mean().item() == pytest.approx(
        0.0794, abs=1e-3
    )


def test_cells_are_counted_in_the_tokens_of_every_crop(make, celled):
    method = make(DINOSup, PLAIN, count_weight=0.3).double()
    batch, cells = views_of(method, celled), celled.extras["cells"]
    errors = []
    for view in method.crops(batch):
        for number in range(len(view.pixels)):
            grid = view.pixels.shape[-1] // PATCH
            tokens = method.backbone.net.model.forward_features(view.pixels[number : number + 1])[0]
            counts = torch.zeros(grid, grid, dtype=torch.float64)
            for x, y, _ in cells[number % 4].tolist():
                place = apply(invert(view.map[number : number + 1].double()), torch.tensor([[[x, y]]]).double())[0, 0]
                if x == x and place.abs().max() <= 1:
                    column, row = ((place + 1) / 2 * grid).long().tolist()
                    counts[row, column] += 1
            linear = tokens @ method.count_head.weight[0] + method.count_head.bias
            errors.append((linear - counts.flatten()).square())
    expected = torch.cat(errors).mean()
    plain = make(DINO, PLAIN).double()(batch)
    found = method(batch)
    torch.testing.assert_close(found.terms["count_loss"], expected.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.total, plain.total + 0.3 * expected, rtol=1e-5, atol=1e-7)
    assert expected > 0.01


@pytest.mark.parametrize(("kind", "lr"), [(DiRLSimCLR, 0.3), (DiRLBYOL, 0.1), (DINOSup, 0.1)])
def test_overfits_one_batch(make, celled, losses_on, kind, lr):
    options = {"count_weight": 0.1, "center_momentum": 0.99} if kind is DINOSup else {"region_weight": 1.0}
    method = make(kind, PLAIN, momentum=0.996, **options) if kind is not DiRLSimCLR else make(kind, PLAIN, **options)
    batch = replace(ViewMaker(method.views(), SIZE, seed=0)(celled), progress=1.0)
    history = losses_on(method, batch, steps=25, lr=lr)
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [(DiRL, {"num_regions": 3, "head_batch_norm": True}), (DiRLSimCLR, {}), (DiRLBYOL, {}), (DINOSup, {})],
)
def test_step_never_waits_for_the_device(make, celled, monkeypatch, kind, options):
    """On the meta device nothing has a value: whatever asks for one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on this device
    method = make(kind, PLAIN, **options).to("meta")
    extras = {"cells": celled.extras["cells"].to("meta")}
    batch = ViewMaker(method.views(), SIZE, seed=0)(replace(celled, pixels=celled.pixels.to("meta"), extras=extras))
    method.before_step(batch)
    method(batch).total.backward()
    method.after_step()


def test_what_does_not_fit_is_named(make):
    for kind in (DiRLSimCLR, DiRLBYOL):
        with pytest.raises(UserError, match="dirl needs a vision transformer"):
            make(kind, "test_resnet")
        make(kind, "test_resnet", interactions=False)
    with pytest.raises(UserError, match="no negatives"):
        check(make(DiRLSimCLR, PLAIN), SIZE, 1)
    with pytest.raises(UserError, match="at least one channel, not 0"):
        make(DiRLSimCLR, PLAIN, hidden_dim=0)
    with pytest.raises(UserError, match="count_weight is -1"):
        make(DINOSup, PLAIN, count_weight=-1.0)
    assert [need.kind for need in make(DINOSup, PLAIN).needs().values()] == ["cells"]
