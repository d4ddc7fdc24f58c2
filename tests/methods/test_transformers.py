"""Every method on a vision transformer."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from method_checks import check
from targets import prepare

from densepath.core.errors import UserError
from densepath.methods import BYOL, METHODS, ConCL, MoCoV2, SimCLR
from densepath.sources.image_files import ImageFiles
from densepath.views.maker import ViewMaker

DISTILLED = ("dino", "dino_imix", "dino_sup", "cellback", "dirl", "esvit", "selfpatch", "ibot", "hipt_region")
SMALL = {"prototypes": 24, "hidden_dim": 16, "dim": 8, "local_size": 0.75}
OPTIONS = dict.fromkeys(DISTILLED, SMALL) | {
    "pcl_v2": {"num_clusters": (5, 6)},
    "pcrl": {"attention": "factored", "queue_size": 16},
    "pcrl_released": {"queue_size": 16},
    "swav": {"prototypes": 24, "local_size": 0.75},
    "semantic_genesis": {"num_classes": 3, "neighbors": 4, "discovery_epochs": 0, "classification_epochs": 0},
    "cpc": {"side": 16, "dim": 8},
}
OWN_VIEWS = ("pcrl", "pcrl_released", "c2l", "model_genesis", "swav", "semantic_genesis", "cube", "cpc")
TAKERS = [name for name in METHODS if name not in ("spark", "conv_mim")]  # which are for ConvNets


@pytest.fixture
def views(images):
    """A batch of 64 px with the views of all methods, and labels."""
    batch = ViewMaker(ConCL.views(), 64, seed=0)(images)
    views = {"first": batch["query"], "second": batch["key"], "image": batch["query"]}
    cells = F.pad(torch.rand(len(batch), 9, 2) * 2 - 1, (0, 1))
    return replace(batch, views={**batch.views, **views}, extras={"class": batch.index % 3, "cells": cells})


HALVED = "vit_tiny_patch16_224(img_size=64, embed_dim=32, num_heads=2, depth=6, halve_after={})"
OF_TOKENS = ("mae", "eva", "vq_kd", "beit_v2")


@pytest.mark.parametrize(
    ("name", "backbone"), [(name, "test_vit") for name in TAKERS] + [(name, HALVED.format(1)) for name in OF_TOKENS]
)
def test_every_method_takes_a_step_that_moves_every_weight(make, images, views, name, backbone, tokenizer):
    """In bfloat16 where autocast takes it, with channels last: as a GPU trains."""
    backbone = "vit_tiny_patch16_224" if name == "moco_v2" else backbone
    method = make(METHODS[name], backbone, **OPTIONS.get(name, {})).to(memory_format=torch.channels_last)
    pixels = views["first"].pixels
    if name in OWN_VIEWS:
        views = ViewMaker(method.views(), 64, seed=0)(images)
    if "cells" in method.needs():
        method.prepare(None, {"cells": SimpleNamespace(class_names=("cell",), describe=lambda: "cells")})
    else:
        prepare(method, ImageFiles(f"{number % 3}/{number}.png" for number in range(12)), tokenizer=tokenizer)
    before = {key: p.clone() for key, p in method.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        if method.wants_features(views):
            method.on_features(method.extract_features(pixels).repeat(3, 1), views)
        method.before_step(views)
        losses = method(views)
    losses.total.backward()
    optimizer.step()
    method.after_step()
    assert losses.total.isfinite() and losses.total.dtype == torch.float32
    still = [key for key, p in method.named_parameters() if key in before and torch.equal(p, before[key])]
    assert [key for key in still if not key.startswith("autoencoder.")] == []  # which learned in an earlier epoch
    kept = method.exported_backbone()
    assert kept.name == backbone and kept(pixels)[4].shape == (4, kept.channels[4], 4, 4)


@pytest.mark.parametrize(
    ("name", "options", "after", "message"),
    [
        ("vq_kd", {"decoder_depth": 3}, 3, "halved within its last 3 blocks; use fewer new blocks"),
        ("beit_v2", {"early_layer": 2}, 3, "halved after early_layer 2; set --method.early_layer to a later one"),
        ("dino", {"early_head": True}, 5, "early_head needs the width of .* before its last block; halve it earlier"),
    ],
)
def test_parts_that_need_the_final_width_of_an_earlier_block_are_refused(make, name, options, after, message):
    with pytest.raises(UserError, match=message):
        make(METHODS[name], HALVED.format(after), **options)


@pytest.mark.parametrize(
    ("method", "steps", "lr", "share"), [(SimCLR, 16, 0.01, 0.5), (BYOL, 12, 0.02, 0.4), (MoCoV2, 15, 0.1, 0.7)]
)
def test_overfits_one_batch(make, views, losses_on, method, steps, lr, share):
    model = make(method, "test_vit")
    history = losses_on(model, replace(views, progress=1.0), steps, lr, getattr(model, "queue", None))
    assert history[-1] < share * history[0]


@pytest.mark.parametrize("name", [name for name in TAKERS if name != "cpc"])  # which gives it patches of its own
def test_views_that_the_patches_do_not_divide_are_refused_before_the_run(make, name):
    method = make(METHODS[name], "test_vit", **OPTIONS.get(name, {}))
    check(method, 64, 4)
    with pytest.raises(UserError, match=r"test_vit divides images into patches of 16 px, and 72 x 72 px"):
        check(method, 72, 4)


def test_the_concepts_that_a_batch_may_bring_are_counted_in_patches(make):
    method = make(ConCL, "test_vit", concepts="superpixels", concept_queue_size=143)
    with pytest.raises(UserError, match=r"smaller than the 144 concepts \(36 on each of 4 images\)"):
        check(method, 96, 4)
    check(make(ConCL, "resnet18", concepts="superpixels", concept_queue_size=36), 96, 4)


def test_a_stage_that_a_transformer_lacks_is_refused(make):
    with pytest.raises(UserError, match="test_vit has no stage f5; choose one of f4"):
        check(make(ConCL, "test_vit", stage=5), 96, 4)
