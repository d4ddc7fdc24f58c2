"""EsViT against its equations, with loops in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from densepath.methods import EsViT
from densepath.views.maker import ViewMaker
from densepath.views.view import View

SIZE = 48


def batch_of(method, images):
    batch = ViewMaker(method.views(), SIZE, seed=0)(images)
    return replace(batch, views={name: View(v.pixels.double(), v.map) for name, v in batch.views.items()})


def both_of(network, pixels, pool):
    """The vector (C,) and the regions (n, C) of one crop."""
    if network.name == "test_resnet":
        regions = network(pixels[None])[5][0].flatten(1).T
        return regions.mean(0), regions
    tokens = network.net.model.forward_features(pixels[None])[0]
    regions = tokens[network.net.model.num_prefix_tokens :]
    return (tokens[0] if pool == "cls" else regions.mean(0)), regions


@pytest.mark.parametrize(
    ("backbone", "pool"),
    [("test_vit(reg_tokens=2)", "cls"), ("test_resnet", "mean")],
)
def test_losses_centers_and_gradients_equal_the_equations(make, images, backbone, pool):
    """Two steps, so that there are centers, with a teacher that differs from the student."""
    method = make(EsViT, backbone, pool=pool, teacher_temperature=0.07).double().eval()
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    batch, count = batch_of(method, images), len(images.index)
    crops = [crop for view in method.crops(batch) for crop in view.pixels.split(count)]
    centers, matched = dict.fromkeys(method.losses, 0.0), set()
    for _ in range(2):
        taught = [[both_of(method.teacher.network, pixels, pool) for pixels in crop] for crop in crops[:2]]
        learned = [[both_of(method.backbone, pixels, pool) for pixels in crop] for crop in crops]

        seen = {name: [] for name in method.losses}

        def teach(name, vector, seen=seen, centers=centers):
            scores = method.teacher_heads.network[name](vector[None])[0]
            seen[name].append(scores)
            return ((scores - centers[name]) / 0.07).softmax(0)

        def learn(name, vector):
            return F.log_softmax(method.heads[name](vector[None])[0] / 0.1, dim=0)

        targets = [[(teach("image", own), [teach("region", z) for z in regions]) for own, regions in q] for q in taught]
        views, regions = [], []
        for q in range(2):
            for v in range(len(crops)):
                for image in range(count) if v != q else ():
                    own, positions = learned[v][image]
                    views.append(-(targets[q][image][0] * learn("image", own)).sum())
                    terms = []
                    for z in positions:
                        cosines = [F.cosine_similarity(z, key, dim=0) for key in taught[q][image][1]]
                        best = int(torch.stack(cosines).argmax())
                        matched.add(best)
                        terms.append(-(targets[q][image][1][best] * learn("region", z)).sum())
                    regions.append(sum(terms) / len(terms))
        expected = sum(views) / len(views) / 2 + sum(regions) / len(regions) / 2
        losses = method(batch)
        method.after_step()
        close = {"rtol": 1e-5, "atol": 1e-7}  # positions are resized in float32
        torch.testing.assert_close(losses.total, expected, **close)
        torch.testing.assert_close(losses.terms["region_loss"], (sum(regions) / len(regions)).detach(), **close)
        centers = {name: 0.9 * centers[name] + 0.1 * torch.stack(seen[name]).mean(0) for name in centers}
        for name, center in centers.items():
            torch.testing.assert_close(method.losses[name].center, center.detach(), **close)
    assert len(matched) > 1
    trained = [p for p in method.parameters() if p.requires_grad]
    found, theirs = torch.autograd.grad(losses.total, trained), torch.autograd.grad(expected, trained)
    for one, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_overfits_one_batch(make, images, losses_on):
    method = make(EsViT, "test_vit", momentum=0.996, center_momentum=0.99)
    batch = replace(ViewMaker(method.views(), SIZE, seed=0)(images), progress=1.0)
    history = losses_on(method, batch, steps=25, lr=0.2)
    assert history[-1] < 0.6 * history[0]
