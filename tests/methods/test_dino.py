"""DINO against lightly's loss, its schedules, and the signs of its collapse."""

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightly.loss import DINOLoss
from method_checks import check

from densepath.core.distillation import Distillation
from densepath.core.errors import UserError
from densepath.core.losses import full_precision
from densepath.core.regions import global_pool
from densepath.core.sinkhorn import sinkhorn
from densepath.methods import DINO, DINOIMix
from densepath.nets.backbones import build_backbone
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker
from densepath.views.view import View

SIZE = 48
CLS = "test_vit"
PLAIN = "test_vit(class_token=False, global_pool='avg', fc_norm=False)"


def views_of(method, images):
    return ViewMaker(method.views(), SIZE, seed=0)(images)


@pytest.mark.parametrize(("backbone", "pool"), [(PLAIN, "mean"), (CLS, "mean"), (CLS, "cls"), ("test_resnet", "mean")])
def test_loss_is_that_of_lightly(make, images, backbone, pool):
    """Two steps, so that there is a center, with a teacher that differs from the student."""
    method = make(DINO, backbone, pool=pool, teacher_temperature=0.07).eval()  # batch norms have no batch
    batch, criterion = views_of(method, images), DINOLoss(32, teacher_temp=0.07)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.mul_(1.1)

    def vectors(network, pixels):
        if backbone == "test_resnet":
            return network(pixels)[5].mean((2, 3))
        tokens = network.net.model.forward_features(pixels)
        prefix = network.net.model.num_prefix_tokens
        return tokens[:, 0] if pool == "cls" else tokens[:, prefix:].mean(1)

    for _ in range(2):
        crops = [batch["first"].pixels, batch["second"].pixels, *batch["local"].pixels.split(len(batch))]
        taught = [method.teacher_heads.network["image"](vectors(method.teacher.network, crop)) for crop in crops[:2]]
        expected = criterion(taught, [method.heads["image"](vectors(method.backbone, crop)) for crop in crops])
        losses = method(batch)
        method.after_step()
        torch.testing.assert_close(losses.total, expected)
        torch.testing.assert_close(losses.terms["image_loss"], losses.total.detach())
    torch.testing.assert_close(method.losses["image"].center, criterion.center.flatten())
    unit = torch.nn.functional.normalize(
        torch.cat([vectors(method.teacher.network, crop) for crop in crops[:2]]), dim=1
    )
    deviation = unit.var(0, correction=0).mean().sqrt() * unit.shape[1] ** 0.5
    torch.testing.assert_close(losses.statistics["feature_std"], deviation)


def test_sinkhorn_replaces_the_center(make, images):
    """The loss from the balanced distributions of all teacher views together."""
    method = make(DINO, PLAIN, centering="sinkhorn")
    made = views_of(method, images)
    batch = replace(made, views={name: made[name] for name in ("first", "second")})
    losses = method(batch)
    method.after_step()
    assert not method.losses["image"].center.any()
    crops = torch.cat([view.pixels for view in batch.views.values()])
    scores = method.heads["image"](global_pool(method.backbone(crops)[4]))  # the teacher's, too, at the start
    swapped = torch.cat(sinkhorn(scores / 0.04).exp().chunk(2)[::-1])
    torch.testing.assert_close(losses.total, -(swapped * (scores / 0.1).log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_an_early_head_sees_the_tokens_before_the_last_block(make, images, pool):
    method = make(DINO, CLS, early_head=True, pool=pool)
    batch = views_of(method, images)
    view = method.crops(batch)[0]
    model = method.backbone.net.model
    early = model.norm(model.blocks[:-1](model._pos_embed(model.patch_embed(view.pixels))))
    early = early[:, 0] if pool == "cls" else early[:, 1:].mean(1)
    vectors = method.represent(batch, view)
    torch.testing.assert_close(vectors["early"][0], early)
    plain = make(DINO, CLS, pool=pool)
    torch.testing.assert_close(vectors["image"][0], plain.represent(batch, view)["image"][0])
    losses = method(batch)
    both = torch.stack([losses.terms["image_loss"], losses.terms["early_loss"]])
    torch.testing.assert_close(losses.total.detach(), both.mean())
    losses.total.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    with pytest.raises(UserError, match="early_head needs a vision transformer"):
        make(DINO, "test_resnet", early_head=True)


def test_mixtures_predict_mixtures(make, images):
    """i-mix, with a loop."""
    method = make(DINOIMix, PLAIN).double()
    made = views_of(method, images)
    batch = replace(made, views={name: View(v.pixels.double(), v.map) for name, v in made.views.items()})
    crops = [view.double() for v in method.crops(batch) for view in v.pixels.split(len(batch))]
    partners, shares = method.mixture(batch, len(crops))
    assert (shares >= 0.5).all() and (shares <= 1).all() and shares.unique().numel() == shares.numel()
    assert all(sorted(row) == [0, 1, 2, 3] for row in partners.tolist())
    assert (partners != torch.arange(4)).all()
    taught = [method.teacher_heads.network["image"](global_pool(method.teacher(crop)[4])) for crop in crops[:2]]
    expected = []
    for v, crop in enumerate(crops):
        for image in range(4):
            own, other = float(shares[v, image]), int(partners[v, image])
            mixed = own * crop[image] + (1 - own) * crop[other]
            student = method.heads["image"](global_pool(method.backbone(mixed[None])[4]))[0] / 0.1
            for q in range(2):
                p = (taught[q] / 0.04).softmax(1)
                target = own * p[image] + (1 - own) * p[other]
                expected += [-(target * student.log_softmax(0)).sum()] * (q != v)
    torch.testing.assert_close(method(batch).total, torch.stack(expected).mean(), rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match="two or more for each process"):
        check(method, SIZE, 2, processes=2)


def test_without_local_crops_two_pairs_are_left(make, images):
    method = make(DINO, PLAIN, local_crops=0)
    views = {name: view for name, view in method.views().items() if name not in method.unused_views}
    assert sorted(views) == ["first", "second"]
    batch = ViewMaker(views, SIZE, seed=0)(images)
    whole = method(batch).total
    swapped = replace(batch, views={"first": batch["second"], "second": batch["first"]})
    torch.testing.assert_close(method(swapped).total, whole)


@pytest.mark.parametrize("epochs", [0, 1, 5])
def test_the_teachers_temperature_follows_the_released_schedule(make, epochs):
    method = make(
        DINO, PLAIN, teacher_temperature_start=0.04, teacher_temperature=0.07, teacher_temperature_epochs=epochs
    )
    schedule = np.concatenate((np.linspace(0.04, 0.07, epochs), np.full(20, 0.07)))  # one for each epoch
    for epoch in (0.0, 0.5, 1.9, 3.0, 4.99, 5.0, 17.2):
        assert method.temperature(epoch) == pytest.approx(schedule[int(epoch)])


def test_the_teacher_follows_the_student_ever_more_slowly(make, images):
    method = make(DINO, PLAIN, momentum=0.9)
    batch = views_of(method, images)
    for progress in (0.0, 0.3, 1.0):
        before = [parameter.clone() for parameter in (*method.teacher.parameters(), *method.teacher_heads.parameters())]
        with torch.no_grad():
            for parameter in (*method.backbone.parameters(), *method.heads.parameters()):
                parameter.add_(0.1)
        method.before_step(replace(batch, progress=progress))
        momentum = 1 - (1 - 0.9) * (math.cos(math.pi * progress) + 1) / 2
        fast = (*method.backbone.parameters(), *method.heads.parameters())
        slow = (*method.teacher.parameters(), *method.teacher_heads.parameters())
        for old, student, teacher in zip(before, fast, slow, strict=True):
            torch.testing.assert_close(teacher, momentum * old + (1 - momentum) * student)
    assert method.exported_backbone() is method.teacher.network


def test_only_the_student_takes_a_gradient(make, images):
    method = make(DINO, PLAIN, drop_path=0.2)
    method(views_of(method, images)).total.backward()
    student = {
        name for name, p in method.named_parameters() if name.startswith(("backbone", "heads")) and p.requires_grad
    }
    assert {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()} == student
    assert "heads.image.prototypes.directions" in student and "heads.image.prototypes.lengths" not in student


def test_views_are_those_of_the_paper():
    color = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "jitter": 0.8, "grayscale": 0.2}
    every = Augment(interpolation="bicubic", scale=(0.4, 1.0), blur_sigma=(0.1, 2.0), **color)
    local = replace(every, scale=(0.05, 0.4), blur=0.5)
    assert DINO.views() == {
        "first": replace(every, blur=1.0).random_view(),
        "second": replace(every, blur=0.1, solarize=0.2).random_view(),
        "local": local.random_view(size=96 / 224, count=8),
    }
    own = DINO.views(Augment(scale=(0.3, 0.8), jitter=0))
    assert own["first"] == own["second"] == Augment(scale=(0.3, 0.8), jitter=0).random_view()
    assert own["local"].crop == replace(own["first"].crop, scale=(0.05, 0.3)) and own["local"].count == 8


def test_half_batches_make_the_whole_one(make, images):
    """Stochastic depth is a function of image and epoch, and the center of the step's scores."""
    methods = [make(DINO, "test_vit", drop_path=0.4).double() for _ in range(2)]
    batch = views_of(methods[0], images)
    whole = replace(batch, views={name: View(v.pixels.double(), v.map) for name, v in batch.views.items()})
    halves = []
    for rows in (torch.arange(2), torch.arange(2, 4)):
        views = {}
        for name, view in whole.views.items():
            of_view = (torch.arange(len(view.pixels)).view(-1, 4)[:, rows]).flatten()
            views[name] = View(view.pixels[of_view], view.map[of_view])
        halves.append(replace(whole, views=views, index=whole.index[rows]))
    for _ in range(2):
        total = methods[0](whole).total
        parts = torch.stack([methods[1](half).total for half in halves]).mean()
        torch.testing.assert_close(parts, total, rtol=1e-5, atol=1e-7)  # positions are resized in float32
        for method in methods:
            method.after_step()
    torch.testing.assert_close(
        methods[1].losses["image"].center, methods[0].losses["image"].center, rtol=1e-5, atol=1e-7
    )
    other = methods[0](replace(whole, epoch=1.0)).total
    assert not torch.allclose(other, methods[0](whole).total)


def test_step_never_waits_for_the_device(make, images, monkeypatch):
    """On the meta device nothing has a value: whatever asks for one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on this device
    method = make(DINO, PLAIN, drop_path=0.1).to("meta")
    batch = views_of(method, replace(images, pixels=images.pixels.to("meta")))
    method.before_step(batch)
    losses = method(batch)
    losses.total.backward()
    method.after_step()
    assert losses.total.device.type == "meta"


def test_overfits_one_batch(make, images, losses_on):
    method = make(DINO, PLAIN, momentum=0.996, center_momentum=0.99)
    history = losses_on(method, replace(views_of(method, images), progress=1.0), steps=25, lr=0.2)
    assert history[-1] < 0.6 * history[0]


def test_autocast_trains_in_full_precision_where_it_matters(make, images):
    method = make(DINO, PLAIN)
    batch = views_of(method, images)
    expected = method(batch).total
    with torch.autocast("cpu", torch.bfloat16):
        found = method(batch)
    assert full_precision(found.total).dtype == found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, expected, rtol=0.05, atol=0)


def test_what_does_not_fit_is_named(make):
    with pytest.raises(
        UserError, match=r"local crops of 21 px .* patches of 16 px .*--method.local_size, e.g. 0.3333 for 16"
    ):
        check(make(DINO, PLAIN, local_size=96 / 224), SIZE, 4)
    check(make(DINO, PLAIN, local_size=96 / 224, local_crops=0), SIZE, 4)
    check(make(DINO, "test_resnet", local_size=96 / 224), SIZE, 4)
    with pytest.raises(UserError, match="has no class token; use"):
        make(DINO, PLAIN, pool="cls")
    with pytest.raises(UserError, match="pool cls needs a vision transformer"):
        make(DINO, "test_resnet", pool="cls")
    for wrong in ({"momentum": 1.5}, {"teacher_temperature": 0.0}, {"local_size": 0.0}, {"pool": "max"}):
        with pytest.raises(UserError):
            DINO(build_backbone("test_resnet"), prototypes=8, **wrong)


def small_run(seed, steps, images, **options):
    """Warnings, in a run on 8 images, of the means of every ten steps."""
    torch.manual_seed(seed)
    sizes = {"prototypes": 64, "hidden_dim": 64, "dim": 16, "local_crops": 0, "momentum": 0.9, "drop_path": 0.0}
    method = DINO(build_backbone(PLAIN), **(sizes | options))
    plain = method.views(Augment(scale=(0.4, 1.0), jitter=0, grayscale=0, blur=0))
    views = ViewMaker({name: plain[name] for name in ("first", "second")}, 32, seed=seed)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, fused=True)
    for ten in range(steps // 10):
        rows = []
        for step in range(10 * ten, 10 * ten + 10):
            batch = replace(views(replace(images, epoch=float(step))), progress=0.0)
            method.before_step(batch)
            losses = method(batch)
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
            method.after_step()
            rows.append(losses.statistics)
        row = {name: float(torch.stack([each[name] for each in rows]).mean()) for name in rows[0]}
        if lines := method.warnings(row, last=False):
            return lines[0]
    return None


def test_collapse_is_reported_and_nothing_else_is(images, monkeypatch):
    """To a constant without centering, to the uniform distribution without sharpening: DINO's section 5.3."""
    sharpless = {"teacher_temperature": 2.0, "teacher_temperature_start": 2.0}
    assert "'image' is nearly uniform" in small_run(0, 200, images, **sharpless)
    assert [small_run(seed, 40, images, momentum=0.99) for seed in range(3)] == [None] * 3
    monkeypatch.setattr(Distillation, "after_step", lambda loss: loss._pending.clear())  # the center stays
    assert "'image' is nearly constant" in small_run(0, 200, images)
