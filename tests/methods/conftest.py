"""Small views and small methods."""

import inspect
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from densepath.methods import ConCL
from densepath.nets.backbones import build_backbone
from densepath.nets.norms import set_batch_norm
from densepath.sources.batch import ImageBatch
from densepath.views.maker import ViewMaker
from densepath.views.view import Batch

sys.path.insert(0, str(Path(__file__).parent))
from targets import CODES, write_tokenizer


@pytest.fixture
def images() -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 8, 8, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, size=(96, 96), mode="bicubic").clamp(0, 1) * 255
    return ImageBatch(pixels.permute(0, 2, 3, 1).to(torch.uint8), torch.full((4, 2), 96), torch.arange(4), progress=0.5)


@pytest.fixture
def celled(images) -> ImageBatch:
    """Images with up to nine cells of two classes, mostly in one corner; one image has none."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(4, 9, 3, generator=generator) * 1.2 - 1
    cells[..., 2] = torch.randint(0, 2, (4, 9), generator=generator).float()
    cells[0, 6:], cells[2] = torch.nan, torch.nan
    return replace(images, extras={"cells": cells})


@pytest.fixture
def batch(images) -> Batch:
    return ViewMaker(ConCL.views(), 96, seed=0)(images)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A tokenizer's file, of random weights."""
    return str(write_tokenizer(tmp_path_factory.mktemp("run")))


@pytest.fixture
def make():
    """Build a method on a fresh backbone, always with the same weights; its batch norms may be over groups."""

    def build(method, backbone="resnet18", group=0, **options):
        torch.manual_seed(0)
        sizes = {"queue_size": 64, "momentum": 0.9, "hidden_dim": 32, "dim": 16}
        sizes |= {"concept_queue_size": 256, "num_concepts": 4, **CODES}
        sizes |= {
            "prototypes": 32,
            "interaction_prototypes": 24,
            "patch_prototypes": 24,
            "local_crops": 3,
            "local_size": 1 / 3,
            "drop_path": 0.0,
        }
        known = inspect.signature(method).parameters
        sizes = {name: size for name, size in sizes.items() if name in known}
        built = method(build_backbone(backbone), **{**sizes, **options})
        set_batch_norm(built, "per_process", group, 4 if built.views_together > 1 else 0)
        return built

    return build


@pytest.fixture
def whole_step():
    """Put a method through a step that does not change its weights; returns the losses."""

    def run(method, batch):
        method.before_step(batch)
        losses = method(batch)
        method.after_step()
        return losses

    return run


@pytest.fixture
def losses_on():
    """Train on one batch; gives the loss of each step.

    A ``queue`` keeps the negatives that it holds: the batch's own keys are none.
    """

    def train(method, batch, steps, lr, queue=None):
        negatives = queue.rows.clone() if queue else None
        optimizer = torch.optim.SGD(method.parameters(), lr=lr, momentum=0.9)
        history = []
        for _ in range(steps):
            if queue:
                queue.rows.copy_(negatives)
            method.before_step(batch)
            loss = method(batch).total
            history.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.after_step()
        return history

    return train
