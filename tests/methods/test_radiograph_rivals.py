"""Model Genesis and SwAV: losses in float64 by plain loops."""

import math

import pytest
import torch
from method_checks import check

from densepath.core.errors import UserError
from densepath.methods import ModelGenesis, SwAV
from densepath.views.maker import ViewMaker


def views_of(method, images, size=32):
    batch = ViewMaker(method.views(), size, seed=0)(images)
    for view in batch.views.values():
        object.__setattr__(view, "pixels", view.pixels.double())
    return batch


def balanced(scores, epsilon):
    """Three iterations of the released code, by loops: columns have equal shares, then rows."""
    q = [[math.exp(score / epsilon) for score in row] for row in scores]
    rows, columns = len(q), len(q[0])
    for _ in range(3):
        sums = [sum(q[b][j] for b in range(rows)) for j in range(columns)]
        q = [[q[b][j] / sums[j] / columns for j in range(columns)] for b in range(rows)]
        q = [[value / sum(row) / rows for value in row] for row in q]
    return [[value * rows for value in row] for row in q]


def swapped_loss(method, batch, earlier):
    """The loss, where the codes of each global crop are balanced together with earlier vectors; and the vectors."""
    prototypes = [c / c.norm() for c in method.prototypes.directions.detach()]
    crops = [
        batch["first"].pixels,
        batch["second"].pixels,
        *(p for view in (batch.views.get("local"),) if view for p in view.pixels.split(4)),
    ]
    vectors, scores = [], []
    for pixels in crops:
        z = method.projector(method.backbone(pixels)[5].mean((2, 3))).detach()
        vectors.append(z / z.norm(dim=1, keepdim=True))
        scores.append([[float(row @ c) for c in prototypes] for row in vectors[-1]])
    terms = []
    for i in (0, 1):
        old = [[float(row @ c) for c in prototypes] for row in earlier[i]]
        codes = balanced(scores[i] + old, 0.05)[:4]
        for v in range(len(crops)):
            for b in range(4 if v != i else 0):
                total = sum(math.exp(score / 0.1) for score in scores[v][b])
                told = [score / 0.1 - math.log(total) for score in scores[v][b]]
                terms.append(-sum(q * log for q, log in zip(codes[b], told, strict=True)))
    return sum(terms) / len(terms), vectors[:2]


@pytest.mark.parametrize("local_crops", [2, 0])
def test_swav_predicts_swapped_assignments(make, images, local_crops):
    method = make(SwAV, "test_resnet", prototypes=7, queue_size=0, local_crops=local_crops).double().eval()
    batch = views_of(method, images)
    for name in method.unused_views:
        del batch.views[name]
    assert method(batch).total.item() == pytest.approx(swapped_loss(method, batch, ([], []))[0], rel=1e-9)


def test_the_queues_of_swav_count_when_they_are_full(make, images):
    method = make(SwAV, "test_resnet", prototypes=7, queue_size=8, queue_epoch=1, local_crops=2).double().eval()
    batch, queues = views_of(method, images), ([], [])
    for epoch, full in ((0.5, False), (1.0, False), (1.5, False), (2.0, True), (2.5, True)):
        object.__setattr__(batch, "epoch", epoch)
        loss, vectors = swapped_loss(method, batch, queues if full else ([], []))
        assert method(batch).total.item() == pytest.approx(loss, rel=1e-9)
        method.after_step()
        with torch.no_grad():
            method.projector.get_parameter(next(iter(dict(method.projector.named_parameters())))).mul_(1.3).add_(0.01)
        if epoch >= 1:
            queues = tuple([*old, *new][-8:] for old, new in zip(queues, vectors, strict=True))
    with pytest.raises(UserError, match=r"--method\.queue_size 16 or more, or 0"):
        check(method, 64, 16)


def test_model_genesis_restores_the_clean_view(make, images):
    method = make(ModelGenesis, "test_resnet").double().eval()
    batch = views_of(method, images, 64)
    given, clean = batch["image"].pixels, batch["target"].pixels
    assert not torch.equal(given, clean)
    raw = method.head(method.decoder(method.backbone(given), (64, 64))).detach()
    total = 0.0
    for c, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        made = 1 / (1 + (-raw[:, c]).exp())
        total += float((made - (clean[:, c] * std + mean)).square().sum())
    assert method(batch).total.item() == pytest.approx(total / clean.numel(), rel=1e-6)
    assert (clean[:, 0] * 0.229 + 0.485).min() > -1e-6 and (clean[:, 0] * 0.229 + 0.485).max() < 1 + 1e-6
