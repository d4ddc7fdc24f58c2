"""PCRL, its released code, and C2L: losses in float64 by plain loops, and targets that are what the indicators say."""

import math

import pytest
import torch
import torch.nn.functional as F
from method_checks import check

from densepath.core.errors import UserError
from densepath.core.fixed_nce import FixedNCE
from densepath.core.mixing import beta
from densepath.methods import C2L, PCRL, PCRLReleased
from densepath.nets.transformation_attention import TransformationAttention
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker
from densepath.views.turns import indicator

ROWS = {
    "contrast": ({"targets": "none", "attention": "none", "alpha": 0.0}, set()),
    "self": ({"targets": "same", "attention": "none", "alpha": 0.0}, {"ordinary", "momentum"}),
    "rotnet": ({"targets": "none", "attention": "none", "alpha": 0.0, "predict_turns": True}, {"turn"}),
    "flips": ({"targets": "flips", "alpha": 0.0}, {"ordinary", "momentum"}),
    "crossmix": ({"targets": "same", "attention": "none", "alpha": 0.5}, {"ordinary", "momentum", "hybrid"}),
    "pcrl": ({}, {"ordinary", "momentum", "hybrid"}),
    "small": ({"standardize": True, "contrast": "before"}, {"ordinary", "momentum", "hybrid"}),
}


def views_of(method, images, size=64):
    seen = {name: view for name, view in method.views().items() if name not in method.unused_views}
    batch = ViewMaker(seen, size, seed=0)(images)
    for view in batch.views.values():
        object.__setattr__(view, "pixels", view.pixels.double())
    return batch


def vector_of(clean, target):
    """The flips and turns that make one image of another, found by trying all: each map has one of several names."""
    found = [
        (flip_x, flip_y, k)
        for flip_x in (False, True)
        for flip_y in (False, True)
        for k in range(4)
        if torch.equal(target, torch.rot90(clean.flip([-1] * flip_x + [-2] * flip_y), k, (-2, -1)))
    ]
    assert found
    return [[float(x), float(y), *(float(k == turns) for turns in range(4))] for x, y, k in found]


@pytest.mark.parametrize("kind", ["outer", "factored", "gate"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_attention_is_the_equation(kind, ndim):
    torch.manual_seed(0)
    channels, count = 5, ndim + 4
    module = TransformationAttention(channels, count, kind, rank=3, ndim=ndim).double()
    features, vector = torch.randn(2, channels, *(3, 4, 3)[:ndim]).double(), torch.rand(2, count).double()
    for row in range(2):
        f_l = [features[row, c].mean() for c in range(channels)]
        f_p = module.embed[2](module.embed[0](vector[row]).relu())
        if kind == "gate":
            expected = features[row] * torch.sigmoid(f_p).view(-1, *[1] * ndim)
        else:
            weight = module.combine.weight
            if kind == "factored":  # the large layer, from its parts
                parts = zip(weight.T, module.left.weight, module.right.weight, strict=True)
                weight = sum(torch.einsum("c,i,j->cij", *each) for each in parts).flatten(1)
            scale = []
            for c in range(channels):
                total = sum(
                    weight[c, i * channels + j] * f_p[i] * f_l[j] for i in range(channels) for j in range(channels)
                )
                scale.append(1 / (1 + torch.exp(-total.clamp(min=0))))
            assert all(0.5 <= value < 1 for value in scale)
            scaled = torch.stack([features[row, c] * scale[c] for c in range(channels)])
            expected = module.conv(scaled.unsqueeze(0))[0]
        torch.testing.assert_close(module(features, vector)[row], expected)


@pytest.mark.parametrize("targets", ["turns", "flips", "same"])
def test_the_indicator_tells_the_flips_and_turns_that_happened(make, images, targets):
    method = make(PCRL, "test_resnet", attention="factored", targets=targets)
    batch = views_of(method, images)
    seen = set()
    for clean, target in (("first", "first"), ("second", "second"), ("first", "mixed")):
        vectors = indicator(batch[f"{clean}_clean"].map, batch[f"{target}_target"].map)
        for image, vector in enumerate(vectors.tolist()):
            assert vector in vector_of(batch[f"{clean}_clean"].pixels[image], batch[f"{target}_target"].pixels[image])
            seen.add(tuple(vector))
    assert (len(seen) == 1) == (targets == "same")
    released = make(PCRLReleased, "test_resnet")
    batch = views_of(released, images)
    for name in ("first", "second"):
        vectors = indicator(batch[name].map, batch[f"{name}_target"].map).tolist()
        for image, vector in enumerate(vectors):
            assert vector in vector_of(batch[name].pixels[image], batch[f"{name}_target"].pixels[image])


@pytest.mark.parametrize("row", ROWS)
def test_the_loss_is_the_equation(make, images, row):
    options, terms = ROWS[row]
    options = {"attention": "factored"} | options
    method = make(PCRL, "test_resnet", **options).double().eval()
    batch, deepest = views_of(method, images), 5
    rows = method.queue.keys().clone()
    losses = method(batch)
    assert {name.removesuffix("_loss") for name in losses.terms} == terms | {"instance"}

    own = method.backbone(batch["first"].pixels)
    other = method.key_backbone(batch["second"].pixels)
    shares = beta(batch.uniform(1)[:, 0], method.alpha).double() if method.alpha else torch.ones(4)
    hybrid = {
        stage: torch.stack([shares[b] * own[stage][b] + (1 - shares[b]) * other[stage][b] for b in range(4)])
        for stage in own
    }
    attended = []
    for maps, attention, clean, target in (
        (own, method.attention, "first", "first"),
        (other, method.key_attention, "second", "second"),
        (hybrid, method.attention, "first", "mixed"),
    ):
        maps = dict(maps)
        if attention is not None and f"{target}_target" in batch.views:
            vector = indicator(batch[f"{clean}_clean"].map, batch[f"{target}_target"].map).double()
            maps[deepest] = attention(maps[deepest], vector)
        attended.append(maps)
    embedded = []
    compared = (own, other, hybrid) if row == "small" else attended
    for maps, projector in zip(compared, (method.projector, *[method.key_projector] * 2), strict=True):
        x = projector(maps[deepest].mean((2, 3))).detach()
        if row == "small":
            x = (x - x.mean(0)) / torch.sqrt(x.var(0, correction=0) + 1e-5)
        embedded.append(F.normalize(x, dim=1))
    q, k, h = embedded
    contrast = 0.0
    for b in range(4):
        positive = math.exp(float((q[b] @ k[b]).detach()) / 0.2)
        negatives = sum(math.exp(float(q[b] @ key) / 0.2) for key in rows.double())
        contrast -= math.log(positive / (positive + negatives)) / 4
    rest = 0.0
    if method.targets != "none":
        true = [batch["first_target"].pixels, batch["second_target"].pixels]
        if method.alpha:
            mixed = []
            for b in range(4):  # the mixture of the clean views is flipped and turned as a whole
                clean = [batch[f"{name}_clean"].pixels[b] for name in ("first", "second")]
                both = shares[b] * clean[0] + (1 - shares[b]) * clean[1]
                x, y, *turns = indicator(batch["first_clean"].map, batch["mixed_target"].map)[b].tolist()
                mixed.append(torch.rot90(both.flip([-1] * int(x) + [-2] * int(y)), turns.index(1.0), (-2, -1)))
            true.append(torch.stack(mixed))
        for maps, x in zip(attended, true, strict=False):
            y = method.head(method.decoder(maps, x.shape[2:]))
            rest += float(((y - x) ** 2).mean().detach())
    if method.turn_head is not None:
        scores = method.turn_head(method.backbone(batch["rotated"].pixels)[deepest].mean((2, 3)))
        for b in range(4):
            pairs = vector_of(batch["first"].pixels[b], batch["rotated"].pixels[b])
            turns = next(each[2:].index(1.0) for each in pairs if each[:2] == [0.0, 0.0])
            rest -= float(scores[b].log_softmax(0)[turns]) / 4
    expected = 0.5 * contrast + 0.5 * rest if terms else contrast
    assert losses.total.item() == pytest.approx(expected, rel=1e-6)
    losses.total.backward()
    method.after_step()
    pushed = [q, k, h] if method.alpha else [q, k]
    torch.testing.assert_close(method.queue.keys()[: 4 * len(pushed)], torch.cat(pushed))
    if method.targets != "none":
        assert all(p.grad is not None for p in method.decoder.parameters())
    assert all(p.grad is None for p in method.key_backbone.parameters())


def test_beta_has_its_distribution():
    from scipy import stats

    numbers = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    for alpha in (0.5, 1.0, 2.0):
        assert stats.kstest(beta(numbers, alpha).numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_the_fixed_nce_is_the_released_loss():
    """With its number of images, its constant Z from the first batch, and its epsilon, which ours leaves out."""
    torch.manual_seed(0)
    nce, images, m = FixedNCE(0.2), 5000, 32
    constant = None
    for _ in range(3):
        q, k, rows = (F.normalize(torch.randn(n, 8).double(), dim=1) for n in (6, 6, m))
        scores = [
            [math.exp(float(q[b] @ k[b]) / 0.2), *(math.exp(float(q[b] @ r) / 0.2) for r in rows)] for b in range(6)
        ]
        constant = constant or sum(map(sum, scores)) / (6 * (m + 1)) * images
        loss = 0.0
        for positive, *negatives in scores:
            p, pn, eps = positive / constant, 1 / images, 1e-12
            loss -= math.log(p / (p + m * pn + eps)) / 6
            loss -= sum(math.log(m * pn / (n / constant + m * pn + eps)) for n in negatives) / 6
        assert nce(q, k, rows).item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("kind", "standardized"), [(C2L, False), (C2L, True), (PCRLReleased, False)])
def test_the_released_losses_are_the_equations(make, images, kind, standardized):
    method = make(kind, "test_resnet", standardize=standardized).double().eval()
    batch, other = views_of(method, images), make(kind, "test_resnet").double().eval()
    losses = method(batch)
    first, second = batch["first"].pixels, batch["second"].pixels
    lam, a1, a2 = (max(float(x), 1 - float(x)) for x in batch.common_uniform(3))
    partners = [int((other.mixed(batch, 0.0, first)[b] == first).flatten(1).all(1).nonzero()) for b in range(4)]
    assert sorted(partners) == [0, 1, 2, 3]
    mixed = lambda x: lam * x + (1 - lam) * x[partners]  # noqa: E731
    maps = [method.backbone(first), method.key_backbone(second)]
    maps += [method.backbone(mixed(first)), method.key_backbone(mixed(second))]
    heads = [method.head, method.key_head, method.head, method.key_head]
    q, k, mixed_q, mixed_k = (head(m[5].mean((2, 3))) for head, m in zip(heads, maps, strict=True))
    if standardized:
        columns = [(x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in (q, k, mixed_q, mixed_k)]
        q, k, mixed_q, mixed_k = columns
    rows, total = other.queue.keys().double().clone(), 0.0
    for number, (query, key) in enumerate(((q, k), (mixed_q, mixed_k), (mixed_q, mixed(k)))):
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        total += float(other.nce(query, key, rows)) / 3
        rows[4 * number : 4 * number + 4] = key.detach()  # negatives of the next
    if kind is PCRLReleased:
        vectors = [indicator(batch[n].map, batch[f"{n}_target"].map).double() for n in ("first", "second")]
        gated = [{**m, 5: method.gate(m[5], v)} for m, v in zip(maps, vectors, strict=False)]
        true = [batch[f"{n}_target"].pixels for n in ("first", "second")]
        clean = [mixed(batch[f"{n}_clean"].pixels) for n in ("first", "second")]
        for (one, two), (x, y), a in ((gated, true, a1), (maps[2:], clean, a2)):
            for share in (1.0, a):
                both = {i: share * one[i] + (1 - share) * two[i] for i in one}
                made = method.pixels(method.decoder(both, (64, 64)))
                total += float((made - share * x - (1 - share) * y).square().mean()) / 4
    assert losses.total.item() == pytest.approx(total, rel=1e-5)


def test_chance_is_the_least_loss_of_keys_that_are_all_the_same(make):
    count = 96
    same = F.normalize(torch.ones(1, 128), dim=1)
    method = make(PCRL, "test_resnet", queue_size=count)
    expected = F.cross_entropy(torch.zeros(1, count + 1), torch.zeros(1, dtype=torch.long))
    assert method.chance()["instance_loss"] == pytest.approx(expected.item(), rel=1e-6)
    other = make(C2L, "test_resnet", queue_size=count)
    losses = []
    for scale in torch.linspace(-2, 2, 401).exp():  # the scores of all keys change together
        other.nce.scale.fill_(scale * math.exp(1 / other.nce.temperature))
        losses.append(other.nce(same, same, same.expand(count, -1)).item())
    assert other.chance()["instance_loss"] == pytest.approx(min(losses), rel=1e-4)
    assert 0 < losses.index(min(losses)) < 400


def test_painting_is_optional(make, images):
    augment = Augment(jitter=0.0, grayscale=0.0, blur=0.0)
    for share in (0.0, 1.0):
        seen = make(PCRL, "test_resnet", painting=share).views(augment)
        batch = ViewMaker({name: seen[name] for name in ("first", "first_clean")}, 64, seed=0)(images)
        changed = (batch["first"].pixels != batch["first_clean"].pixels).flatten(1).any(1)
        assert changed.tolist() == [share > 0] * 4


@pytest.mark.parametrize("row", ROWS)
def test_rows_without_targets_predict_no_pixels(make, images, row):
    options, _ = ROWS[row]
    method = make(PCRL, "test_resnet", **{"attention": "factored", **options}).double()
    batch = views_of(method, images)
    assert method.predicts_pixels() == (options.get("targets") != "none")
    if method.predicts_pixels():
        assert method.reconstruct(batch).prediction.isfinite().all()
    else:
        with pytest.raises(UserError, match="predicts no pixels"):
            method.reconstruct(batch)


def test_options_that_do_not_fit_are_refused(make):
    with pytest.raises(UserError, match="without targets"):
        make(PCRL, "test_resnet", targets="none")
    with pytest.raises(UserError, match="give after or before"):
        make(PCRL, "test_resnet", contrast="inside")
    with pytest.raises(UserError, match="unknown attention"):
        make(PCRL, "test_resnet", attention="other")
    with pytest.raises(UserError, match=r"--method\.queue_size 192"):
        check(make(PCRL, "test_resnet", attention="factored"), 64, 64)
    check(make(C2L, "test_resnet", queue_size=192), 64, 64)
    for kind in (PCRL, C2L):
        with pytest.raises(UserError, match="one image cannot be standardized"):
            check(make(kind, "test_resnet", queue_size=192, standardize=True), 64, 1)
    with pytest.raises(UserError, match=r"smaller than the 192 of a batch; use --method\.queue_size 192"):
        check(make(C2L, "test_resnet", queue_size=191), 64, 64)


@pytest.mark.parametrize(("kind", "options"), [(PCRL, {"attention": "factored"}), (PCRLReleased, {}), (C2L, {})])
def test_one_batch_is_overfitted(make, images, losses_on, kind, options):
    method = make(kind, "test_resnet", **options).double()
    history = losses_on(method, views_of(method, images, 32), 12, 0.01, method.queue)
    assert min(history[-3:]) < 0.9 * history[0]


def test_the_constant_of_many_equal_keys_is_finite_at_the_least_temperature():
    nce = FixedNCE(FixedNCE.LEAST)
    q, rows = torch.eye(8)[:1].expand(4, 8), torch.eye(8)[:1].expand(1000, 8)
    loss = nce(q, q, rows)
    assert nce.scale.isfinite() and loss.item() == pytest.approx(FixedNCE.chance(1000), rel=1e-3)
