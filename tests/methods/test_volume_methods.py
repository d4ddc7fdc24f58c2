"""Methods for volumes on a 3D U-Net: losses in float64 by plain loops, and one batch overfitted."""

import itertools
import math

import pytest
import torch

from densepath.core.affine import bounds
from densepath.core.errors import UserError
from densepath.methods import C2L, CPC, PCRL, Cube, ModelGenesis, PCRLReleased, SemanticGenesis
from densepath.nets.backbones import build_backbone
from densepath.sources.batch import ImageBatch
from densepath.synthetic.volumes import SyntheticVolumes
from densepath.views.cubes import PatchJitter
from densepath.views.declarations import without_color
from densepath.views.maker import ViewMaker
from densepath.views.random_streams import Draw, Stream
from densepath.views.turns import indicator
from densepath.views.view import Batch

WINDOWS = ((8, 12, 12), (12, 16, 16))
OPTIONS = {
    ModelGenesis: {"resize": False},
    PCRL: {"attention": "factored", "queue_size": 16, "windows": WINDOWS, "dim": 8},
    PCRLReleased: {"queue_size": 16, "windows": WINDOWS, "dim": 8},
    C2L: {"queue_size": 16, "dim": 8},
    Cube: {"side": 8},
    CPC: {"side": 4, "dim": 6, "hidden_dim": 5},
    SemanticGenesis: {"num_classes": 3, "neighbors": 2, "discovery_epochs": 1, "classification_epochs": 1},
}


@pytest.fixture(scope="module")
def volumes():
    return SyntheticVolumes(4, size=(16, 24, 24))


@pytest.fixture
def make(volumes):
    def build(kind, **options):
        torch.manual_seed(0)
        method = kind(build_backbone("unet_3d_w2", 1), **{**OPTIONS[kind], **options})
        method.prepare(volumes)
        return method.double()

    return build


@pytest.fixture
def views_of(volumes):
    def views(method, epoch=0.0, size=(8, 16, 16)) -> Batch:
        declared, _ = without_color(method.views(), method.views(), volumes.spec)
        seen = {name: view for name, view in declared.items() if name not in method.unused_views}
        maker = ViewMaker(seen, size, 0, volumes.spec)
        method.check(maker.sizes(), 4)
        index = torch.arange(4)
        gathered, spacing = volumes.gather(index), volumes.spacing(index)
        batch = maker(ImageBatch(gathered.pixels, gathered.sizes, index, spacing=spacing, epoch=epoch))
        for view in batch.views.values():
            object.__setattr__(view, "pixels", view.pixels.double())
        return batch

    return views


def restored(method, x):
    raw = method.head(method.decoder(method.backbone(x), x.shape[2:]))
    return 1 / (1 + (-raw).exp())


def test_model_genesis_restores_windows_at_the_volumes_own_resolution(make, views_of, volumes):
    method = make(ModelGenesis)
    batch = views_of(method)
    clean = batch["target"].pixels * 0.226 + 0.449
    loss = ((restored(method, batch["image"].pixels) - clean) ** 2).mean()
    assert method(batch).total.item() == pytest.approx(loss.item(), rel=1e-6)
    low, window = volumes.spec.window[0], volumes.spec.window[1] - volumes.spec.window[0]
    ends = [(edge.flip(-1).double() + 1) / 2 * volumes.sizes(batch.index) for edge in bounds(batch["image"].map)]
    for row in range(4):  # a box of whole voxels, perhaps flipped
        begin, end = (edge[row].round().long().tolist() for edge in ends)
        box = torch.from_numpy(volumes.read(row))[tuple(slice(a, b) for a, b in zip(begin, end, strict=True))][..., 0]
        box = ((box.double() - low) / window).clamp(0, 1)
        assert any(torch.allclose(clean[row, 0], each, atol=1e-5) for each in (box, box.flip(-1)))


def test_pcrl_in_volumes_mixes_decodes_and_pairs_windows(make, views_of, volumes):
    method = make(PCRL, alpha=1.0).eval()
    batch = views_of(method)
    losses = method(batch)
    own, other = method.backbone(batch["first"].pixels), method.key_backbone(batch["second"].pixels)
    shares = batch.uniform(1)[:, 0].double().view(4, 1, 1, 1, 1)
    hybrid = {i: shares * own[i] + (1 - shares) * other[i] for i in own}
    expected = {}
    for name, maps, attention, clean in (
        ("ordinary", own, method.attention, "first"),
        ("momentum", other, method.key_attention, "second"),
        ("hybrid", hybrid, method.attention, "first"),
    ):
        target = {"ordinary": "first", "momentum": "second", "hybrid": "mixed"}[name]
        vector = indicator(batch[f"{clean}_clean"].map, batch[f"{target}_target"].map)
        assert vector.shape == (4, 7)
        true = batch[f"{target}_target"].pixels
        for row in range(4):  # flips along x, y, z, then quarter turns in the xy-plane
            flips, k = vector[row, :3].tolist(), int(vector[row, 3:].argmax())
            turn = lambda v: torch.rot90(v.flip([-1 - axis for axis in range(3) if flips[axis]]), k, (-2, -1))  # noqa: E731, B023
            first = turn(batch[f"{clean}_clean"].pixels[row])
            assert torch.allclose(true[row], first)
            if name == "hybrid":
                second = turn(batch["second_clean"].pixels[row])
                true = true.clone()
                true[row] = shares[row] * first + (1 - shares[row]) * second
        maps = {**maps, 4: attention(maps[4], vector.double())}
        made = method.head(method.decoder(maps, true.shape[2:]))
        expected[f"{name}_loss"] = ((made - true) ** 2).mean().item()
    assert {name: losses.terms[name].item() for name in expected} == pytest.approx(expected, rel=1e-6)
    boxes = [bounds(batch[name].map) for name in ("first", "second")]
    low, high = (torch.stack([box[end] for box in boxes]) for end in (0, 1))
    common = (high.amin(0) - low.amax(0)).clamp(min=0).prod(-1)
    sizes = (high - low).prod(-1)
    assert (common / (sizes.sum(0) - common) > 0.1).all()  # rotation is off; flips keep boxes
    assert torch.allclose(sizes[0], sizes[1], rtol=1e-4)
    with pytest.raises(UserError, match=r"with a sigmoid, pixels must be in .* --no_method\.sigmoid$"):
        make(PCRL, sigmoid=True)


def test_the_released_pcrl_paints_both_volumes_inside_or_both_outside_or_neither(make):
    method = make(PCRLReleased)
    names = [type(each).__name__ for each in method.views()["first"].appearance]
    assert names[-2:] == ["LocalShuffle", "Painting"]
    chance, inside = Draw(0, 0, torch.arange(60), torch.zeros(60).long())(Stream.PAINTING)[:, :2].unbind(1)
    painted = chance < 0.9
    outside = painted & (inside >= 0.2)
    assert 0 < outside.sum() < painted.sum() < 60
    for number, view in enumerate(("first", "second")):
        draw = Draw(0, 0, torch.arange(60), torch.full((60,), number))
        made = method.views()[view].appearance[-1].apply(torch.full((60, 1, 16, 16, 16), 2.0), draw)[:, 0]
        assert torch.equal(made[:, 0, 0, 0] != 2, outside)  # corners are noise outside
        assert not (made != 2).flatten(1).any(1)[~painted].any()


def test_painting_of_the_released_pcrl_is_an_option_of_volumes(make):
    x = torch.full((4, 1, 16, 16, 16), 2.0)
    draw = Draw(0, 0, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    for share in (0.0, 1.0):
        painting = make(PCRLReleased, painting=share).views()["first"].appearance[-1]
        assert (painting.apply(x.clone(), draw) != 2).flatten(1).any(1).tolist() == [share > 0] * 4
    with pytest.raises(UserError, match=r"not painted; leave out --method\.painting 0"):
        PCRLReleased(build_backbone("test_resnet"), painting=0.0)


def test_cube_restores_against_a_discriminator(make, views_of):
    method = make(Cube, error="l2")
    batch = views_of(method)
    true = batch["target"].pixels * 0.226 + 0.449
    made = restored(method, batch["image"].pixels)
    soft = lambda x: torch.log(1 + x.exp()).mean()  # noqa: E731
    judge = method.discriminator
    parts = [((made - true) ** 2).mean(), 0.01 * soft(-judge(made)), soft(judge(made.detach())) + soft(-judge(true))]
    losses = method(batch)
    assert losses.total.item() == pytest.approx(sum(part.item() for part in parts), rel=1e-6)
    generator = torch.autograd.grad(parts[0] + parts[1], method.head[0].weight, retain_graph=True)[0]
    critic = torch.autograd.grad(parts[2], judge[0].weight)[0]
    losses.total.backward()
    torch.testing.assert_close(method.head[0].weight.grad, generator)
    torch.testing.assert_close(judge[0].weight.grad, critic)
    method.eval()  # held-out images tell how well they are restored, not how good the discriminator is
    losses, made = method(batch), restored(method, batch["image"].pixels)
    assert losses.total.item() == pytest.approx(((made - true) ** 2).mean().item(), rel=1e-6)
    with pytest.raises(UserError, match=r"cannot be divided into several cubes with sides of 8"):
        views_of(make(Cube), size=(8, 16, 12))


def test_cpc_predicts_later_patches_from_an_inverted_pyramid(make, views_of):
    method = make(CPC, rows=4).eval()
    batch = views_of(method)
    x = batch["image"].pixels
    assert isinstance(method.views()["image"].appearance[-1], PatchJitter)
    z = {}
    for d, h, w in itertools.product(range(2), range(4), range(4)):
        patch = x[:, :, 4 * d : 4 * d + 4, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4]
        z[d, h, w] = method.code(method.backbone(patch)[4].mean((2, 3, 4)))
    mirror = lambda i, n: -i if i < 0 else 2 * (n - 1) - i if i >= n else i  # noqa: E731
    z = {at: code.detach() for at, code in z.items()}
    columns = list(itertools.product(range(2), range(4)))
    steps = batch.uniform(8)
    total = 0.0
    for number, (d, h) in enumerate(columns):
        around = [z[mirror(d + i, 2), mirror(h + j, 4), 0] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        _, state = method.context(torch.stack([*around, z[d, h, 1]], 1))
        predicted = [layer(state[0]).detach() for layer in method.predictors]
        for image in range(4):
            other = columns[(number + 1 + int(steps[image, number] * 7)) % 8]
            assert other != (d, h)
            true, false = (
                sum(float((p[image] * z[(*at, w)][image]).mean()) for p, w in zip(predicted, (2, 3), strict=True)) / 2
                for at in ((d, h), other)
            )
            total += (math.log(1 + math.exp(-true)) + math.log(1 + math.exp(false))) / 2
    assert method(batch).total.item() == pytest.approx(total / 32, rel=1e-6)
    with pytest.raises(UserError, match="no 4 rows of patches of 4 along the last axis"):
        views_of(make(CPC), size=(8, 16, 12))


def test_semantic_genesis_discovers_classifies_and_restores(make, views_of, volumes):
    method = make(SemanticGenesis)
    batch = views_of(method)
    low, high = bounds(batch["target"].map)
    assert (low == -1).all() and (high == 1).all() and not method.wants_features(batch)  # whole volumes
    x = batch["target"].pixels
    part = method.autoencoder
    raw = part.head(part.decoder(part.backbone(x), x.shape[2:]))
    expected = ((1 / (1 + (-raw).exp()) - (x * 0.226 + 0.449)) ** 2).mean()
    first = method(batch)
    assert first.total.item() == pytest.approx(expected.item(), rel=1e-6)
    first.total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in method.backbone.parameters())
    method.after_backward()  # an optimizer with a memory must not see zeros
    trained = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    assert trained == {"autoencoder"}
    maker = ViewMaker({"center": method.feature_view}, (8, 16, 16), 0, volumes.spec)
    assert torch.equal(
        maker.draw(batch.index, volumes.sizes(batch.index), epoch=5.0).views["center"].map, batch["target"].map
    )

    batch = views_of(method, 1.0)
    assert method.wants_features(batch)
    features = torch.tensor([[0.0], [1.0], [10.0], [12.0]]).double()
    method.on_features(features, batch)
    assert not method.wants_features(batch)
    assert {tuple(row.tolist()) for row in method.members} == {(True, True, False, False), (False, False, True, True)}
    assert method.members.sum(1).eq(2).all()  # a volume, and its nearest
    copy = make(SemanticGenesis, discovery_epochs=0)
    copy.load_state_dict(method.state_dict())
    assert copy.discovered and torch.equal(copy.members, method.members)
    assert method.extract_features(x).shape == (4, 32)

    for epoch, names in ((1.5, {"pattern_loss"}), (2.0, {"pattern_loss", "restoration_loss"})):
        batch = views_of(method, epoch)
        place = (Draw(0, int(epoch), batch.index, torch.zeros(4).long())(Stream.PATTERN)[:, 0] * 3).long()
        maps = method.backbone(batch["image"].pixels)
        hidden = method.classifier.norm(method.classifier.conv(maps[4])).clamp(min=0).mean((2, 3, 4))
        scores, terms = method.classifier.fc(hidden), []
        for image in range(4):
            if method.members[place[image], image]:
                terms.append((scores[image].exp().sum().log() - scores[image, place[image]]).item())
        expected = sum(terms) / max(1, len(terms))
        losses = method(batch)
        assert set(losses.terms) == names
        assert losses.terms["pattern_loss"].item() == pytest.approx(expected, rel=1e-6)
        if epoch == 2.0:
            made = restored(method, batch["image"].pixels)
            error = ((made - (batch["target"].pixels * 0.226 + 0.449)) ** 2).mean().item()
            assert losses.total.item() == pytest.approx(error + 0.01 * expected, rel=1e-6)
    method.check_length(2.0)
    with pytest.raises(UserError, match=r"begins after 2 epochs, and the last step after 1\.75; make it longer"):
        method.check_length(1.75)
    with pytest.raises(UserError, match="4 images are fewer than the 44 classes"):
        make(SemanticGenesis, num_classes=44)


@pytest.mark.parametrize("kind", [Cube, CPC, SemanticGenesis])
def test_one_batch_is_overfitted(make, views_of, kind):
    method = make(kind)
    batch = views_of(method, 2.0 if kind is SemanticGenesis else 0.0)
    if kind is SemanticGenesis:
        method.on_features(torch.arange(4.0).double().view(4, 1), batch)
    optimizer, history = torch.optim.Adam(method.parameters(), lr=0.003), []
    for _ in range(20):
        loss = method(batch).total
        history.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        method.after_backward()
        optimizer.step()
    assert all(map(math.isfinite, history)) and history[-1] < 0.9 * history[0]
