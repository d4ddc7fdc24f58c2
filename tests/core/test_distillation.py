"""DINO's loss against a loop in float64, autograd, and lightly."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss

from densepath.core import distillation
from densepath.core.distillation import Distillation, deviation, soft_cross_entropy, view_pairs
from densepath.core.errors import UserError

B, Q, V, K, D = 3, 2, 5, 11, 4  # images, teacher views, student views, prototypes, channels
EYE = torch.eye(K, dtype=torch.float64)  # prototypes for which vectors are scores


def given(dtype=torch.float64):
    students = F.normalize(torch.randn(V * B, D, dtype=dtype), dim=1).requires_grad_()
    prototypes = torch.randn(K, D, dtype=dtype).requires_grad_()
    return students, prototypes, torch.randn(Q * B, K, dtype=dtype)


@pytest.mark.parametrize("most", [1, 4 * K, 10**6])
def test_loss_and_gradients_equal_a_loop(monkeypatch, most):
    """However many scores there are at a time."""
    monkeypatch.setattr(distillation, "_CPU_SCORES", most)
    students, prototypes, scores = given()
    targets, rows = scores.softmax(1), torch.randint(Q * B, (V * B, 3))
    weights = torch.rand(V * B, 3, dtype=torch.float64) * (torch.rand(V * B, 3) > 0.3)
    expected = torch.zeros((), dtype=torch.float64)
    for n in range(V * B):
        logs = F.log_softmax(prototypes @ students[n] / 0.3, dim=0)
        for q in range(3):
            expected = expected - weights[n, q] * (targets[rows[n, q]] * logs).sum()
    found = soft_cross_entropy(students, prototypes, targets, rows, weights, 0.3)
    torch.testing.assert_close(found, expected)
    theirs = torch.autograd.grad(expected * 3, (students, prototypes))
    torch.testing.assert_close(torch.autograd.grad(found * 3, (students, prototypes)), theirs)


def test_steps_equal_those_of_lightly():
    """Losses, gradients and centers of four steps."""
    ours, theirs = Distillation(K).double(), DINOLoss(K, center_momentum=0.9).double()
    for step in range(4):
        temperature = 0.04 + 0.01 * step
        students, prototypes, scores = given()
        logits = (students @ prototypes.T).unflatten(0, (V, B))
        expected = theirs(list(scores.view(Q, B, K)), list(logits), teacher_temp=temperature)
        targets, _ = ours.targets(scores, EYE, temperature)
        rows, weights = view_pairs(B, Q, V, torch.device("cpu"))
        found = ours(students, prototypes, targets, rows, weights)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # lightly's temperature has float32
        gradients = (torch.autograd.grad(loss, (students, prototypes)) for loss in (found, expected))
        torch.testing.assert_close(next(gradients), next(gradients), rtol=1e-5, atol=1e-9)
        ours.after_step()
        torch.testing.assert_close(ours.center, theirs.center.flatten())
    assert ours.center.abs().max() > 0.1


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("most", [1, 4 * K, 10**6])
def test_a_teacher_in_parts_is_the_whole_teacher(monkeypatch, most, used):
    """Loss, gradients, center and statistics, however many scores there are at a time, of all rows or of some."""
    monkeypatch.setattr(distillation, "_CPU_SCORES", most)
    loss = Distillation(K, center_momentum=0.8).double()
    loss.center += torch.randn(K)
    before = loss.center.clone()
    students, prototypes, _ = given()
    vectors, keys = torch.randn(Q * B, D, dtype=torch.float64), torch.randn(K, D, dtype=torch.float64)
    valid = torch.tensor([True, True, False, True, True, True])
    chosen, counted = (torch.tensor([4, 1, 1]), torch.tensor([True, True, False])) if used else (None, None)
    rows = torch.randint(3 if used else Q * B, (V * B, 2))
    weights = torch.rand(V * B, 2, dtype=torch.float64)
    weights[: 2 * B, 0] = 0  # some parts need one column only, some none
    weights[:B] = 0
    targets, statistics = loss.targets(vectors, keys, 0.3, valid, (chosen, counted) if used else None)
    assert isinstance(targets, distillation.Targets) == (most // K < (3 if used else Q * B))
    found = loss(students, prototypes, targets, rows, weights)
    scores = vectors @ keys.T
    p = ((scores - before) / 0.3).softmax(1)[chosen if used else slice(None)]
    logs = (students @ prototypes.T / 0.1).log_softmax(1)
    expected = -(weights.unsqueeze(2) * p[rows] * logs.unsqueeze(1)).sum()
    exact = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(found, expected, **exact)
    gradients = torch.autograd.grad(expected, (students, prototypes))
    torch.testing.assert_close(torch.autograd.grad(found, (students, prototypes)), gradients, **exact)
    own = p[counted if used else valid]
    entropy = -(own * own.log()).sum(1).mean() / math.log(K)
    torch.testing.assert_close(statistics["entropy"], entropy, **exact)
    uniform = 1 + (own.mean(0) * own.mean(0).log()).sum() / math.log(K)
    torch.testing.assert_close(statistics["kl_uniform"], uniform, **exact)
    loss.after_step()
    torch.testing.assert_close(loss.center, 0.8 * before + 0.2 * scores[valid].mean(0), **exact)


def test_pairs_are_all_of_an_image_but_a_view_with_itself():
    rows, weights = view_pairs(B, Q, V, torch.device("cpu"))
    pairs = {(v * B + b, q * B + b) for v in range(V) for q in range(Q) for b in range(B) if v != q}
    kept = weights > 0
    assert {(n, int(rows[n, q])) for n, q in kept.nonzero().tolist()} == pairs
    torch.testing.assert_close(weights[kept], torch.full((len(pairs),), 1 / len(pairs)))


def test_pairs_without_both_vectors_are_left_out():
    taught, learned = torch.rand(Q * B) > 0.4, torch.rand(V * B) > 0.4
    rows, weights = view_pairs(B, Q, V, torch.device("cpu"), taught, learned)
    for n in range(V * B):
        for q in range(Q):
            counts = n // B != q and taught[q * B + n % B] and learned[n]
            assert (weights[n, q] > 0) == counts and rows[n, q] == q * B + n % B
    torch.testing.assert_close(weights.sum(), torch.ones(()))
    none = torch.zeros(Q * B, dtype=torch.bool)
    assert not view_pairs(B, Q, V, torch.device("cpu"), none, learned)[1].any()


def test_the_center_is_that_of_the_rows_that_exist_over_all_batches_of_a_step():
    loss, first, second = Distillation(K, center_momentum=0.8), torch.randn(4, K), torch.randn(2, K)
    loss.targets(first, EYE.float(), 0.1, torch.tensor([True, False, True, False]))
    loss.targets(second, EYE.float(), 0.1)
    assert not loss.center.any()
    loss.after_step()
    torch.testing.assert_close(loss.center, 0.2 * torch.cat((first[::2], second)).mean(0))
    before = loss.center.clone()
    loss.targets(first, EYE.float(), 0.1, torch.zeros(4, dtype=torch.bool))
    loss.after_step()
    loss.after_step()
    assert torch.equal(loss.center, before)


@pytest.mark.parametrize("valid", [1, 0])
def test_a_single_row_is_no_collapse(valid):
    """Sinkhorn makes the distribution of a single row uniform, whatever the network says."""
    vectors, exist = torch.randn(4, K), torch.arange(4) < valid
    loss = Distillation(K, centering="sinkhorn")
    statistics = loss.targets(vectors, EYE.float(), 0.1, exist)[1]
    assert {name: float(value) for name, value in statistics.items()} == {"entropy": 0, "kl_uniform": 0}


def test_statistics_show_both_kinds_of_collapse():
    def of(scores):
        return {name: float(value) for name, value in Distillation(K).targets(scores, EYE.float(), 0.1)[1].items()}

    uniform, constant = of(torch.zeros(6, K)), of(9 * F.one_hot(torch.zeros(6, dtype=torch.int64), K).float())
    assert uniform == pytest.approx({"entropy": 1, "kl_uniform": 0}, abs=1e-6)
    assert constant == pytest.approx({"entropy": 0, "kl_uniform": 1}, abs=1e-6)
    different = of(9 * torch.eye(K))
    assert different == pytest.approx({"entropy": 0, "kl_uniform": 0}, abs=1e-6)
    scores = torch.randn(6, K)
    p = (scores.double() / 0.1).softmax(1)
    entropy = -(p * p.log()).sum(1).mean() / math.log(K)
    divergence = (p.mean(0) * (p.mean(0) * K).log()).sum() / math.log(K)
    assert of(scores) == pytest.approx({"entropy": float(entropy), "kl_uniform": float(divergence)}, abs=1e-5)


def test_the_deviation_of_fewer_than_two_rows_is_not_a_collapse():
    vectors, one = torch.randn(5, D), torch.tensor([False, True, False, False, False])
    assert deviation(vectors, one) == deviation(vectors, one & False) == 1
    two = one | torch.tensor([True, False, False, False, False])
    torch.testing.assert_close(deviation(vectors, two), deviation(vectors[:2]))
    assert deviation(vectors[:1].expand(5, -1)) < 1e-3 < deviation(vectors) < 1


def test_weights_of_accumulated_batches_are_their_own():
    """Each batch counts equally, whatever its number of pairs: the documented limit of empty regions."""
    taught, learned = torch.tensor([True, False] * Q), torch.tensor([True, False] * V)
    _, whole = view_pairs(2, Q, V, torch.device("cpu"), taught, learned)
    parts = [view_pairs(1, Q, V, torch.device("cpu"), taught[n::2], learned[n::2])[1] for n in range(2)]
    torch.testing.assert_close(parts[0], whole[::2])
    assert not parts[1].any()


def test_autocast_keeps_statistics_and_softmax_in_full_precision():
    students, prototypes, scores = given(torch.float32)
    scores = scores.bfloat16().float()  # products of these are exact
    loss, (rows, weights) = Distillation(K), view_pairs(B, Q, V, torch.device("cpu"))
    expected = loss(students, prototypes, loss.targets(scores, EYE.float(), 0.04)[0], rows, weights)
    with torch.autocast("cpu", torch.bfloat16):
        targets, statistics = loss.targets(scores, EYE.float(), 0.04)
        found = loss(students, prototypes, targets, rows, weights)
    assert targets.dtype == found.dtype == statistics["entropy"].dtype == torch.float32
    torch.testing.assert_close(targets, (scores / 0.04).softmax(1))
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)
    gradients = torch.autograd.grad(found, (students, prototypes))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (students, prototypes)), rtol=0.1, atol=0.02)


def test_wrong_numbers_are_named():
    with pytest.raises(UserError, match="student temperature must be positive, not 0"):
        Distillation(K, student_temperature=0)
    with pytest.raises(UserError, match="unknown centering 'none'; there are: mean, sinkhorn"):
        Distillation(K, centering="none")
    with pytest.raises(UserError, match="momentum of the center must be at least 0 and less than 1, not 1"):
        Distillation(K, center_momentum=1)
