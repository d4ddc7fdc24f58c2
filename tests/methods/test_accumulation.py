"""A step made of several batches is the step of one large batch, where nothing is normalized over a batch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from targets import prepare

from densepath.core.momentum import Momentum
from densepath.methods import BYOL, PCLV2, VQKD, ConCL, DenseCL, MoCoV1, MoCoV2
from densepath.sources.open import ImageFiles
from densepath.views.maker import ViewMaker
from densepath.views.view import View

STEPS = 3
SIZE = 160  # pixels: that of the transformer, whose position embeddings are else resized in float32
GRID = {"concepts": "grid", "grid_size": 2, "warmup": 0.0, "concept_weight": 0.6}
METHODS = {
    "moco_v1": (MoCoV1, {}),
    "moco_v2": (MoCoV2, {}),
    "densecl": (DenseCL, {}),
    "pcl_v2": (
        PCLV2,
        {"num_clusters": (9, 10), "warmup": 0.9},
    ),  # after it, prototypes of a batch's images are no negatives
    "concl": (ConCL, GRID),
    "vq_kd": (VQKD, {"num_codes": 12, "code_dim": 8, "decoder_depth": 1, "momentum": 0.9, "restart_below": 0.0}),
}


def batches(images, step):
    """A step's views, in float64; query and key show all concepts of an image."""
    made = ViewMaker(ConCL.views(), SIZE, seed=step)(replace(images, step=step))
    views = {name: View(view.pixels.double(), view.map) for name, view in made.views.items()}
    same = {"key": replace(views["query"], pixels=views["key"].pixels), "reference": views["query"]}
    return replace(made, views=views | same | {"image": views["query"]})


def cut(batch, parts):
    """Batches that a batch is made of."""
    size = len(batch) // parts
    for first in range(0, len(batch), size):
        rows = slice(first, first + size)
        views = {name: View(view.pixels[rows], view.map[rows]) for name, view in batch.views.items()}
        yield replace(batch, views=views, index=batch.index[rows])


def train(method, images, parts):
    """The gradients of each step."""
    method.double()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    gradients = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for number, batch in enumerate(cut(batches(images, step), parts)):
            if number == 0:
                method.before_step(batch)
            (method(batch).total / parts).backward()
        optimizer.step()
        method.after_step()
        gradients.append({name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None})
    return gradients


@pytest.mark.parametrize("name", METHODS)
def test_batches_of_a_step_make_the_step_of_one(make, images, name):
    method, options = METHODS[name]

    def made():
        one = make(method, "test_vit", **options)
        prepare(one, ImageFiles(f"{number}.png" for number in range(40)))
        if name == "vq_kd":
            vectors = F.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(1)), dim=1)
            one.tokenizer.codebook.begin(vectors, torch.arange(60.0))
        return one

    whole, parts, before = made(), made(), made().double()
    expected, found = train(whole, images, 1), train(parts, images, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=1e-9)
    moved = [key for key, value in whole.state_dict().items() if not torch.equal(value, before.state_dict()[key])]
    kept = {"vq_kd": ("codebook.codes", "codebook.usage"), "concl": ("concept_queue.rows", "key_head")}
    for part in kept.get(name, ("queue.rows", "queue.pointer", "key_backbone", "key_head")):
        assert any(part in key for key in moved)


@pytest.mark.parametrize("method", [MoCoV1, MoCoV2, DenseCL, ConCL, PCLV2, BYOL])
def test_momentum_encoders_move_once_a_step(make, images, method, monkeypatch):
    """However many batches it is made of; and not when a batch is only looked at."""
    options = {"num_clusters": (9, 10), "warmup": 0.9} if method is PCLV2 else {}
    one = make(method, **options)
    one.prepare(ImageFiles(f"{number}.png" for number in range(40)))
    moved, update = [], Momentum.update
    monkeypatch.setattr(Momentum, "update", lambda self, *rest: (moved.append(self), update(self, *rest)))
    followers = [part for part in one.modules() if isinstance(part, Momentum)]
    views = {"first": batches(images, 0)["query"], "second": batches(images, 0)["key"]}
    whole = replace(batches(images, 0), progress=0.5)
    whole = replace(whole, views={name: View(v.pixels.float(), v.map) for name, v in (whole.views | views).items()})
    parts = list(cut(whole, 2))
    for _ in range(3):
        one.before_step(parts[0])
        for part in parts:
            one(part)
        one.after_step()
    assert len(followers) >= 2
    assert sorted(map(id, moved)) == sorted(map(id, followers * 3))
