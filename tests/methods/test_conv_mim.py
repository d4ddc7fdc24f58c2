"""Conv-MIM against a plain float64 loop over everything it does, and what its paper implies."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from method_checks import check

from densepath.core.affine import between, from_box
from densepath.core.errors import UserError
from densepath.core.masking import standardize_patches, to_patches
from densepath.core.resampling import inside, sample
from densepath.methods import ConvMIM
from densepath.nets.backbones import build_backbone
from densepath.nets.sparse import Visible
from densepath.sources.batch import ImageBatch
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker
from densepath.views.view import Batch, View

PLAIN = Augment(jitter=0, grayscale=0, blur=0)


@pytest.fixture
def batch(images) -> Batch:
    return ViewMaker(ConvMIM.views(), 64, seed=0)(images)


def tiny(**options):
    torch.manual_seed(0)
    return ConvMIM(build_backbone("test_resnet"), **{"width": 16, "heads": 2, "patch": 16, **options})


def taps(scale, shift, size, positions):
    """Of each of ``size`` output positions of an axis, the weights of the input's positions; zeros outside of it."""
    rows = np.zeros((size, positions))
    for i in range(size):
        place = scale * ((2 * i + 1) / size - 1) + shift
        if abs(place) <= 1:
            wide = max(1, abs(scale) * positions / size)
            row = [1 - abs((2 * j + 1) / positions - 1 - place) * positions / 2 / wide for j in range(positions)]
            rows[i] = np.clip(row, 0, None) / np.clip(row, 0, None).sum()
    return rows


def normed(x, layer):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * array(layer.weight) + array(layer.bias)


def linear(x, layer):
    return x @ array(layer.weight).T + array(layer.bias)


def array(tensor):
    return tensor.detach().double().numpy()


def attention(x, layer):
    """Of tokens (N, D), head by head."""
    n, heads = len(x), layer.num_heads
    q, k, v = linear(x, layer.qkv).reshape(n, 3, heads, -1).transpose(1, 2, 0, 3)
    out = []
    for head in range(heads):
        scores = np.exp(q[head] @ k[head].T / math.sqrt(q.shape[-1]))
        out.append(scores / scores.sum(1, keepdims=True) @ v[head])
    return linear(np.concatenate(out, axis=1), layer.proj)


def decoded(decoder, tokens, along):
    """The patches (N, patch * patch * 3) of tokens (N, D)."""
    width = tokens.shape[1]
    for n in range(len(tokens)):
        for place, offset in ((n // along, 0), (n % along, width // 4)):
            for i in range(width // 4):
                angle = place / 10000 ** (i / (width // 4))
                tokens[n, offset + i] += math.sin(angle)
                tokens[n, width // 2 + offset + i] += math.cos(angle)
    tokens = tokens + attention(normed(tokens, decoder.block.norm1), decoder.block.attn)
    hidden = linear(normed(tokens, decoder.block.norm2), decoder.block.mlp.fc1)
    hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
    tokens = tokens + linear(hidden, decoder.block.mlp.fc2)
    return linear(normed(tokens, decoder.norm), decoder.predict)


def by_the_book(method, batch):
    """L and the share of pixels that it counts; loops, float64, the method's own convolutions."""
    network, patch = copy.deepcopy(method.backbone).net, method.patch
    query, target = (batch[name].pixels.double() for name in ("query", "target"))
    size, along = query.shape[-1], query.shape[-1] // patch
    visible = np.zeros((len(query), along, along), bool)
    for image, noise in enumerate(batch.uniform(along**2).numpy()):
        for place in np.argsort(noise)[: round(along**2 * (1 - method.mask_ratio))]:
            visible[image, place // along, place % along] = True

    def insert(x, value):
        x, stride = x.clone(), size // x.shape[-1]
        for image, row, column in np.ndindex(len(x), *x.shape[2:]):
            if not visible[image, row * stride // patch, column * stride // patch]:
                x[image, :, row, column] = value
        return x

    x = insert(query, 0.0)
    maps = []
    for name, module in network.items():
        x = module(x)
        if name == "act1":
            x = insert(x, method.encoder.token.double())
        if name == "act1" or "layer" in name:
            maps.append(array(x))
    errors = []
    for image in range(len(query)):
        of_query, of_target = (batch[name].map[image].double().numpy() for name in ("query", "target"))
        # A coordinate of the target is taken to the image, x -> a x + b, and on to the query, y -> (y - d) / c.
        axes = [(of_target[i, i] / of_query[i, i], (of_target[i, 2] - of_query[i, 2]) / of_query[i, i]) for i in (0, 1)]
        tokens = np.zeros((along**2, method.decoder.width))
        for z, convolution in zip(maps, method.decoder.unify, strict=True):
            positions = z.shape[-1]
            n = max(1, positions // along)
            across, down = (taps(*axis, along * n, positions) for axis in axes)
            aligned = np.einsum("ij,cjk,lk->cil", down, z[image], across)
            for row, column in np.ndindex(along, along):
                part = aligned[:, row * n : (row + 1) * n, column * n : (column + 1) * n]
                weight, bias = array(convolution.weight), array(convolution.bias)
                tokens[row * along + column] += (weight * part).sum((1, 2, 3)) + bias
        patches = decoded(method.decoder, tokens, along).reshape(along, along, patch, patch, 3)
        for row, column in np.ndindex(size, size):
            places = [axes[i][0] * ((2 * p + 1) / size - 1) + axes[i][1] for i, p in enumerate((column, row))]
            if max(map(abs, places)) < 1:
                x, y = (int((place + 1) / 2 * along) for place in places)
                if not visible[image, y, x]:
                    predicted = patches[row // patch, column // patch, row % patch, column % patch]
                    errors.append(np.mean((predicted - array(target)[image, :, row, column]) ** 2))
    return np.mean(errors), len(errors) / (len(query) * size**2)


@pytest.mark.parametrize("patch", [16, 32])  # of 16 px: f5 is coarser than the patches
def test_the_loss_is_that_of_a_plain_loop(batch, patch):
    method = tiny(patch=patch).double()
    views = {name: View(view.pixels.double(), view.map) for name, view in batch.views.items()}
    expected, share = by_the_book(method, batch)
    losses = method(replace(batch, views=views))
    assert float(losses.total.detach()) == pytest.approx(expected, rel=1e-5)  # maps are float32
    assert float(losses.statistics["counted_pixels"]) == pytest.approx(share, abs=2e-3)
    assert losses.terms["reconstruction_loss"] == losses.total


@pytest.mark.parametrize("change", [{}, {"rotation": 40.0}, {"quarter_turns": True, "vertical_flip": 0.5}])
def test_the_query_warped_to_the_target_is_the_target(images, change):
    """Where both lie, if colors stay as they are: of crops, flips, turns."""
    views = ConvMIM.views(replace(PLAIN, scale=(0.4, 1.0), **change))
    batch = ViewMaker(views, 96, seed=1)(images)
    target_to_query = between(batch["query"].map, batch["target"].map)
    warped = sample(batch["query"].pixels, target_to_query, (96, 96))
    valid = inside(target_to_query, (96, 96)).unsqueeze(1)
    assert 0.2 < valid.float().mean() < 1
    errors = ((warped - batch["target"].pixels).abs() * valid).flatten(1).sum(1) / (3 * valid.flatten(1).sum(1))
    assert errors.max() < 0.06  # of deviations of 1; where they don't lie alike:
    assert (batch["query"].pixels - batch["target"].pixels).abs().mean() > 0.3


def test_the_target_keeps_its_colors_and_has_a_place_of_its_own():
    query, target = ConvMIM.views(Augment(rotation=10.0, solarize=0.1, stain=0.5)).values()
    changes = [(type(operation).__name__, operation.probability) for operation in query.appearance]
    named = ("StainJitter", "ColorJitter", "Grayscale", "GaussianBlur", "Solarize")
    assert changes == list(zip(named, (0.5, 0.8, 0.2, 0.5, 0.1), strict=True))
    assert target.appearance == ()
    assert target.crop == query.crop and target.crop.rotation == 10.0


def captured(method, batch):
    """The maps that the decoder gets."""
    seen = []
    hook = method.decoder.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0]))
    with torch.no_grad():
        method(batch)
    hook.remove()
    return seen


def test_a_flipped_target_gets_mirrored_features(batch):
    method = tiny(patch=32).eval()
    same, flipped = (
        captured(method, replace(batch, views={**batch.views, "target": View(batch["target"].pixels, maps)}))
        for maps in (batch["query"].map, batch["query"].map @ torch.diag(torch.tensor([-1.0, 1.0, 1.0])))
    )
    visible = method.draw_visible(batch)
    maps = method.encoder(method.backbone, batch["query"].pixels, visible)
    for one, other, z in zip(same, flipped, maps, strict=True):
        torch.testing.assert_close(one, z, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other, z.flip(3), atol=1e-5, rtol=1e-5)
        assert (z - z.flip(3)).abs().max() > 0.1


def test_nothing_hidden_that_both_show_gives_no_loss_and_no_gradient(batch, monkeypatch):
    method = tiny()
    corner = torch.ones(4, 2)
    apart = {"query": from_box(-corner, 0 * corner), "target": from_box(0 * corner, corner)}
    views = {name: View(batch[name].pixels, maps) for name, maps in apart.items()}
    nothing_in_common = method(replace(batch, views=views))
    monkeypatch.setattr(method, "draw_visible", lambda batch: Visible(torch.ones(4, 4, 4, dtype=torch.bool), 16))
    all_visible = method(batch)
    for losses in (nothing_in_common, all_visible):
        losses.total.backward()
        assert losses.total == 0 and losses.statistics["counted_pixels"] == 0
        assert not any(p.grad.any() for p in method.parameters())


def test_the_counted_share_is_the_ratio_of_what_both_show(images):
    many = ImageBatch(torch.zeros(200, 8, 8, 3, dtype=torch.uint8), torch.full((200, 2), 8), torch.arange(200))
    batch = ViewMaker(ConvMIM.views(PLAIN), 64, seed=0)(many)
    method = tiny()
    counted = method.counted(batch, method.draw_visible(batch))
    shown = inside(method.target_to_query(batch), (64, 64)).unsqueeze(1)
    assert not (counted & ~shown).any()
    assert float(counted.sum() / shown.sum()) == pytest.approx(11 / 16, abs=0.02)
    assert 0.3 < shown.float().mean() < 0.9


def test_what_is_hidden_cannot_be_seen(batch):
    method = tiny().eval()
    visible = method.draw_visible(batch)
    other = batch["query"].pixels.clone()
    hidden = ~visible.patches.repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
    other[hidden.expand_as(other)] = torch.randn(int(hidden.sum()) * 3)
    views = {**batch.views, "query": View(other, batch["query"].map)}
    assert visible.patches.sum((1, 2)).tolist() == [5] * 4  # 16 patches, 70% of them hidden
    assert torch.equal(method.predict(replace(batch, views=views), visible), method.predict(batch, visible))


@pytest.mark.parametrize("options", [{}, {"masking": "sparse", "patch": 32}], ids=str)
def test_every_weight_learns(batch, options):
    """The tokens among them; with channels last in bfloat16, as on a GPU."""
    method = tiny(**options).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(batch)
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    assert [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("options", [{}, {"stem": "after_pool", "normalize_target": True}], ids=str)
def test_overfits_one_batch(batch, losses_on, options):
    history = losses_on(tiny(width=32, **options), batch, 26, 2.0)
    assert history[-1] < 0.6 * history[0]


def test_without_invariance_the_query_is_its_own_target(batch):
    plain, full = tiny(invariance=False), tiny()
    assert (plain.unused_views, full.unused_views) == (("target",), ())
    only_query = replace(batch, views={"query": batch["query"]})
    same = replace(batch, views={"query": batch["query"], "target": batch["query"]})
    assert torch.equal(plain(only_query).total, full(same).total)
    made = plain.reconstruct(only_query)
    hidden = ~plain.draw_visible(batch).patches.repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
    assert torch.equal(made.target, made.view) and torch.equal(made.counted, hidden)


def test_a_normalized_target_is_undone_in_the_picture(batch, monkeypatch):
    method = tiny(normalize_target=True)
    monkeypatch.setattr(
        method, "predict", lambda batch, visible: standardize_patches(to_patches(batch["target"].pixels, 16))[0]
    )
    assert method(batch).total == 0
    torch.testing.assert_close(method.reconstruct(batch).prediction, batch["target"].pixels, atol=1e-5, rtol=1e-5)


def test_the_picture_shows_what_the_loss_counts(batch):
    method = tiny().eval()
    made = method.reconstruct(batch)
    errors = (made.prediction - made.target).square().mean(1, keepdim=True)
    assert float(errors[made.counted].mean()) == pytest.approx(float(method(batch).total.detach()), rel=1e-5)
    seen = made.visible != 0
    assert torch.equal(made.visible[seen], made.view[seen]) and 0.2 < seen.float().mean() < 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 48}, "do not fit the strides 2, 4, 8, 16, 32 of test_resnet"),
        ({"patch": 1}, "do not fit"),
        ({"patch": 16, "masking": "sparse"}, "of test_resnet and sparse masking; use e"),
        ({"masking": "none"}, "unknown masking 'none'; there are: stem, sparse"),
        ({"stem": "pool"}, "unknown stem 'pool'; there are: before_pool, after_pool"),
        ({"width": 18}, "width must be a multiple of 4"),
        ({"heads": 3}, "of its 3 heads; 16 is not"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        tiny(**options)


@pytest.mark.parametrize("name", ["test_vit", "efficientnet_b0"])
def test_a_network_without_a_stem_of_its_own_is_refused(name):
    with pytest.raises(UserError, match=f"{name} is not a ConvNet that can be divided after its stem; use a ResNet"):
        ConvMIM(build_backbone(name))


def test_views_that_the_patches_do_not_divide_are_refused_before_the_run():
    check(tiny(), 48, 4)
    with pytest.raises(UserError, match=r"view_size 56 is not a multiple of the patch size of 16 px; use e\.g\. 48"):
        check(tiny(), 56, 4)
    with pytest.raises(UserError, match=r"a mask ratio of 0\.7 leaves 0 of 1 patches visible"):
        check(tiny(), 16, 4)
