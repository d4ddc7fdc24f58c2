"""The models of bags against independent implementations in float64, and what a permuted bag gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from densepath.core.errors import UserError
from densepath.transfer.mil.bag_task import BagBatch, BagSet, BagTask
from densepath.transfer.mil.models import ALL, MODELS, blocks, models_named, pooling
from densepath.transfer.mil.models.abmil import ABMIL, GatedABMIL
from densepath.transfer.mil.models.clam import CLAM
from densepath.transfer.mil.models.dsmil import DSMIL
from densepath.transfer.mil.models.dsmil_linear import LinearDSMIL
from densepath.transfer.mil.models.nystrom import NystromAttention, pseudo_inverse
from densepath.transfer.mil.models.transmil import TransMIL
from densepath.transfer.mil.objectives import Classification

D, K = 10, 3
Array = NDArray[np.float64]


def weights_of(model: nn.Module) -> dict[str, Array]:
    return {name: value.detach().double().numpy().copy() for name, value in model.state_dict().items()}


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def plain_dsmil(w: dict[str, Array], x: Array) -> tuple[Array, Array, Array]:
    """The equations of the paper, tile by tile: logits of the bag, attention, scores of the critical tiles."""
    scores = np.array([w["tile_classifier.weight"] @ tile + w["tile_classifier.bias"] for tile in x])

    def query(tile: Array) -> Array:
        hidden = np.maximum(w["query.0.weight"] @ tile + w["query.0.bias"], 0)
        return np.tanh(w["query.2.weight"] @ hidden + w["query.2.bias"])

    queries = [query(tile) for tile in x]
    attention, vectors, critical = [], [], []
    for k in range(scores.shape[1]):
        best = int(np.argsort(-scores[:, k])[0])
        critical.append(scores[best, k])
        attention.append(softmax(np.array([q @ queries[best] / np.sqrt(128) for q in queries])))
        vectors.append(sum(a * tile for a, tile in zip(attention[-1], x, strict=True)))
    logits = [
        sum(w["classifier.weight"][k, c] @ vectors[c] for c in range(len(vectors))) + w["classifier.bias"][k]
        for k in range(len(vectors))
    ]
    return np.array(logits), np.array(attention), np.array(critical)


def binary_cross_entropy(logits: Array, label: int) -> float:
    chance = 1 / (1 + np.exp(-logits))
    truth = np.arange(len(logits)) == label
    return float(-np.log(np.where(truth, chance, 1 - chance)).mean())


def test_dsmil_and_its_gradient_are_those_of_the_paper() -> None:
    model, x = DSMIL(D, K).double(), torch.randn(7, D, dtype=torch.float64)
    for bias in (model.tile_classifier.bias, model.classifier.bias, model.query[0].bias):
        nn.init.normal_(bias)
    logits, attention, critical = plain_dsmil(weights_of(model), x.numpy())
    output, found = model(x)
    np.testing.assert_allclose(output.detach(), logits, rtol=1e-6)  # outputs are float32
    np.testing.assert_allclose(found.detach(), attention, rtol=1e-6)
    streams, further = model.training_outputs(x, 2)
    assert further is None
    np.testing.assert_allclose(streams[1].detach(), critical, rtol=1e-6)
    objective = Classification(K, exclusive=False)
    target = torch.tensor([[2.0]])
    loss = sum(w * objective(s[None], target) for w, s in zip(model.streams, streams, strict=True))
    expected = 0.5 * binary_cross_entropy(logits, 2) + 0.5 * binary_cross_entropy(critical, 2)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()

    def loss_at(name: str, place: tuple[int, ...], step: float) -> float:
        w = weights_of(model)
        w[name][place] += step
        out, _, best = plain_dsmil(w, x.numpy())
        return 0.5 * binary_cross_entropy(out, 2) + 0.5 * binary_cross_entropy(best, 2)

    for name, place in {
        "query.0.weight": (5, 3),
        "classifier.weight": (2, 1, 4),
        "tile_classifier.weight": (1, 2),
    }.items():
        numeric = (loss_at(name, place, 1e-5) - loss_at(name, place, -1e-5)) / 2e-5
        assert float(model.get_parameter(name).grad[place]) == pytest.approx(numeric, rel=1e-3, abs=1e-7)


def plain_linear_dsmil(w: dict[str, Array], x: Array) -> tuple[Array, Array, Array]:
    """As :func:`plain_dsmil` with linear queries and values of each tile, as in the paper."""
    scores = [w["tile_classifier.weight"] @ tile + w["tile_classifier.bias"] for tile in x]
    queries = [w["query.weight"] @ tile + w["query.bias"] for tile in x]
    values = [w["value.weight"] @ tile + w["value.bias"] for tile in x]
    critical, attention, vectors = [], [], []
    for k in range(len(w["tile_classifier.bias"])):
        best = max(range(len(x)), key=lambda n: scores[n][k])
        critical.append(scores[best][k])
        attention.append(softmax(np.array([q @ queries[best] / np.sqrt(128) for q in queries])))
        vectors.append(sum(a * value for a, value in zip(attention[-1], values, strict=True)))
    logits = [
        sum(w["classifier.weight"][k, c] @ vector for c, vector in enumerate(vectors)) + w["classifier.bias"][k]
        for k in range(len(vectors))
    ]
    return np.array(logits), np.array(attention), np.array(critical)


@pytest.mark.parametrize("block", [3, 100])
def test_linear_dsmil_and_its_gradient_are_those_of_the_paper(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """No constant of its queries is lost, whichever blocks of tiles it is computed in."""
    monkeypatch.setattr(blocks, "_CPU", block * D)
    model, x = LinearDSMIL(D, K).double(), 2 * torch.randn(11, D, dtype=torch.float64)
    for bias in (model.tile_classifier.bias, model.classifier.bias, model.query.bias, model.value.bias):
        nn.init.normal_(bias)
    w = weights_of(model)
    logits, attention, critical = plain_linear_dsmil(w, x.numpy())
    assert attention.max() < 0.9  # the softmax is not saturated
    output, found = model(x)
    streams, _ = model.training_outputs(x, 2)
    np.testing.assert_allclose(output.detach(), logits, rtol=1e-5)  # outputs are float32
    np.testing.assert_allclose(found.detach(), attention, rtol=1e-5)
    np.testing.assert_allclose(streams[1].detach(), critical, rtol=1e-5)
    target = torch.tensor([[2.0]])
    objective = Classification(K, exclusive=False)
    sum(0.5 * objective(stream[None], target) for stream in streams).backward()

    def loss_at(name: str, place: tuple[int, ...], step: float) -> float:
        moved = {**w, name: w[name].copy()}
        moved[name][place] += step
        out, _, best = plain_linear_dsmil(moved, x.numpy())
        return 0.5 * binary_cross_entropy(out, 2) + 0.5 * binary_cross_entropy(best, 2)

    for name, parameter in model.named_parameters():
        for place in [tuple(0 for _ in parameter.shape), tuple(size - 1 for size in parameter.shape)]:
            numeric = (loss_at(name, place, 1e-5) - loss_at(name, place, -1e-5)) / 2e-5
            assert float(parameter.grad[place]) == pytest.approx(numeric, rel=1e-3, abs=1e-7), name


def test_linear_dsmil_reads_float16_in_full_precision() -> None:
    """In mixed precision, too: outputs and gradients are those of the plain form in float64."""
    model, x = LinearDSMIL(D, K), torch.randn(40, D).half()
    exact = LinearDSMIL(D, K).double()
    exact.load_state_dict(model.state_dict())
    tiles = x.double()
    best = exact.tile_classifier(tiles).argmax(0)
    queries = exact.query(tiles)
    attention = (queries @ queries[best].T / 128**0.5).softmax(0)
    expected = exact.classifier((attention.T @ exact.value(tiles))[None])[0, :, 0]
    expected.square().sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        output, found = model(x)
    output.square().sum().backward()
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.double(), attention.T, rtol=1e-4, atol=1e-6)
    for name in ("query.weight", "query.bias", "value.weight", "value.bias", "classifier.weight"):
        own, true = model.get_parameter(name).grad, exact.get_parameter(name).grad
        torch.testing.assert_close(own.double(), true, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["mean", "max"])
def test_pooling_is_of_the_stored_features(name: str) -> None:
    model, x = MODELS[name](D, K), torch.randn(300, D).half() + 30
    tiles = x.double()
    highest, tile = tiles.max(0)
    vector = tiles.mean(0) if name == "mean" else highest
    expected = model.classifier.weight.double() @ vector + model.classifier.bias.double()
    with torch.autocast("cpu", torch.bfloat16):
        output, attention = model(x)
        trained = model.training_outputs(x, 0)[0][0]
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trained, output)
    if name == "max":
        assert sum(attention[n] for n in set(tile.tolist())).item() == pytest.approx(1)


def test_of_equal_tiles_max_attends_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever blocks of tiles are looked at together."""
    monkeypatch.setattr(pooling, "_ROWS", 3)
    x = torch.zeros(8, 4).half()
    x[:, 1] = torch.tensor([0, 0, 0, 0, 5, 0, 5, 0])
    x[7, 2:] = 1
    _, attention = MODELS["max"](4, K)(x)
    assert attention.tolist() == [0.25, 0, 0, 0, 0.25, 0, 0, 0.5]


@pytest.mark.parametrize("kind", [ABMIL, GatedABMIL])
def test_abmil_is_that_of_the_paper(kind: type[ABMIL]) -> None:
    model, x = kind(D, K, 6, 5), torch.randn(9, D)
    w = weights_of(model)
    h = np.maximum(x.double().numpy() @ w["embed.0.weight"].T + w["embed.0.bias"], 0)
    hidden = np.tanh(h @ w["attention.value.weight"].T + w["attention.value.bias"])
    if kind is GatedABMIL:
        hidden /= 1 + np.exp(-(h @ w["attention.gate.weight"].T + w["attention.gate.bias"]))
    attention = softmax(hidden @ w["attention.score.weight"][0] + w["attention.score.bias"][0])
    output, found = model(x)
    np.testing.assert_allclose(found.detach(), attention, rtol=1e-4)
    np.testing.assert_allclose(
        output.detach(), w["classifier.weight"] @ (attention @ h) + w["classifier.bias"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("classes", "tiles"), [(2, 20), (3, 20), (2, 5)])
def test_clam_teaches_its_extreme_tiles(classes: int, tiles: int) -> None:
    """The smooth SVM loss, log sum exp over j of (margin if j is wrong + s_j - s_y), of the extreme tiles."""
    model, x, label = CLAM(D, classes, 8, dropout=0.0), torch.randn(tiles, D), 1
    w = weights_of(model)
    h = np.maximum(x.double().numpy() @ w["embed.0.weight"].T + w["embed.0.bias"], 0)
    order = np.argsort(-model(x)[1].detach().double().numpy())
    count = min(8, tiles)

    def svm(tile: int, k: int, truth: int) -> float:
        s = w[f"tile_classifiers.{k}.weight"] @ h[tile] + w[f"tile_classifiers.{k}.bias"]
        return float(np.log(sum(np.exp((j != truth) + s[j] - s[truth]) for j in (0, 1))))

    own = [svm(t, label, 1) for t in order[:count]] + [svm(t, label, 0) for t in order[::-1][:count]]
    expected = np.mean(own)
    if classes > 2:
        others = [np.mean([svm(t, k, 0) for t in order[:count]]) for k in range(classes) if k != label]
        expected = (expected + sum(others)) / classes
    outputs, further = model.training_outputs(x, label)
    assert outputs.shape == (1, classes) and further is not None
    assert further.item() == pytest.approx(0.3 * expected, rel=1e-4)


def test_nystrom_attention_with_all_tokens_as_landmarks_is_softmax_attention() -> None:
    layer = NystromAttention(16, heads=2, landmarks=11, iterations=30, dropout=0.0).double()
    tokens = torch.randn(11, 16, dtype=torch.float64)
    q, k, v = layer.qkv(tokens).view(11, 3, 2, 8).permute(1, 2, 0, 3)
    attention = (q @ k.mT / 8**0.5).softmax(-1)
    convolved = torch.zeros_like(v)
    for head in range(2):
        for token in range(11):
            for offset in range(-16, 17):
                if 0 <= token + offset < 11:
                    weight = layer.convolution.weight[head, 0, offset + 16]
                    convolved[head, token] += weight * v[head, token + offset]
    expected = layer.output((attention @ v + convolved).transpose(0, 1).reshape(11, 16))
    found, of_first = layer(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(of_first, attention[:, 0].mean(0), rtol=1e-4, atol=1e-6)


def test_the_pseudo_inverse_is_that_of_numpy() -> None:
    x = torch.rand(2, 5, 5, dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(pseudo_inverse(x, 40), torch.from_numpy(np.linalg.pinv(x.numpy())), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("count", "alike"), [(1, 7), (5, 3), (8, 1), (17, 2), (21, 1)])
def test_landmarks_of_padding_are_inverted_as_one(monkeypatch: pytest.MonkeyPatch, count: int, alike: int) -> None:
    """Tokens and gradients are those of the whole matrices."""
    layer = NystromAttention(16, heads=2, landmarks=8, dropout=0.0).double()
    tokens, merged, found = torch.randn(count, 16, dtype=torch.float64), [], []

    def whole(x: torch.Tensor, iterations: int, same: int) -> torch.Tensor:
        merged.append(same)
        return pseudo_inverse(x, iterations)

    for inverse in (pseudo_inverse, whole):
        monkeypatch.setattr("densepath.transfer.mil.models.nystrom.pseudo_inverse", inverse)
        layer.zero_grad()
        out, first = layer(tokens)
        (out.square().sum() + first[0]).backward()
        found.append([out, first, *(parameter.grad for parameter in layer.parameters())])
    assert merged == [alike]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_transmil_fills_the_square_with_the_first_tiles() -> None:
    model, x = TransMIL(D, K).eval(), torch.randn(7, D)
    output, attention = model(x)
    torch.testing.assert_close(model(torch.cat((x, x[:2])))[0], output)  # 9 tiles are a square
    assert attention.shape == (7,)


def test_long_bags_of_transmil_train_alike_in_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that are computed again, dropout included, give the same gradients to the bit."""
    found = []
    for longest in (100, 10):
        monkeypatch.setattr("densepath.transfer.mil.models.transmil._LONG", longest)
        torch.manual_seed(0)
        model = TransMIL(D, K).train()
        model(torch.randn(20, D))[0].sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None)


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"transmil"}))
def test_a_permuted_bag_gives_the_same_answer(name: str) -> None:
    model, x, order = MODELS[name](D, K).eval(), torch.randn(30, D), torch.randperm(30)
    (output, attention), (again, permuted) = model(x), model(x[order])
    torch.testing.assert_close(again, output, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(permuted, attention[..., order], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_bag_may_have_one_tile(name: str) -> None:
    model = MODELS[name](D, 2)
    outputs, _ = model.training_outputs(torch.randn(1, D), 1)
    outputs.sum().backward()
    assert outputs.shape == (len(model.streams), 2)


def test_models_have_names() -> None:
    assert set(models_named(ALL)) == {*MODELS, "knn"}
    with pytest.raises(UserError, match=r"no model is called 'dsmill'; did you mean dsmil or dsmil_linear\?"):
        models_named("dsmill")


def test_a_step_of_several_bags_has_the_gradient_of_their_mean_loss() -> None:
    """Outputs are computed again in the backward pass, with the same dropout."""
    model, bags = CLAM(D, 2, 8), [torch.randn(n, D).half() for n in (20, 25, 30)]
    task = BagTask(model, Classification(2), model.solver, BagSet([], np.array([]), np.zeros((0, 1))), 1)
    targets = torch.tensor([[0.0], [1.0], [1.0]])

    def gradient(*numbers: int) -> torch.Tensor:
        model.zero_grad()
        batch = BagBatch([bags[n] for n in numbers], targets[list(numbers)], torch.tensor(numbers))
        task.forward(task.inputs(batch))["loss"].backward()
        return model.embed[0].weight.grad.clone()

    torch.manual_seed(0)
    alone = sum(gradient(n) for n in range(3)) / 3
    torch.manual_seed(0)
    torch.testing.assert_close(gradient(0, 1, 2), alone, rtol=1e-4, atol=1e-7)


def test_linear_dsmil_computes_several_bags_again_in_mixed_precision() -> None:
    model, bags = LinearDSMIL(D, 2), [torch.randn(n, D).half() for n in (20, 25)]
    task = BagTask(model, Classification(2, False), model.solver, BagSet([], np.array([]), np.zeros((0, 1))), 1, True)
    targets = torch.tensor([[0.0], [1.0]])

    def gradient(*numbers: int) -> torch.Tensor:
        model.zero_grad()
        batch = BagBatch([bags[n] for n in numbers], targets[list(numbers)], torch.tensor(numbers))
        with torch.autocast("cpu", torch.bfloat16):
            task.forward(task.inputs(batch))["loss"].backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    torch.testing.assert_close(gradient(0, 1), (gradient(0) + gradient(1)) / 2, rtol=1e-4, atol=1e-7)


def test_the_critical_tile_of_dsmil_is_exact_in_bfloat16() -> None:
    """Scores of 1 + n / 1000 are equal in bfloat16 and differ in float32."""
    model = DSMIL(2, 1)
    with torch.no_grad():
        model.tile_classifier.weight.copy_(torch.tensor([[1.0, 2**-9]]))
        model.tile_classifier.bias.zero_()
    bag = torch.stack((torch.ones(4), torch.tensor([0.0, 1.0, 2.0, 1.0])), 1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        _, critical = model.training_outputs(bag, 0)[0]
    assert critical.item() == 1 + 2 * 2**-9
