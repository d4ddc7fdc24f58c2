"""EVA against plain loops."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from method_checks import check
from targets import prepare

from densepath.core.errors import UserError
from densepath.methods import EVA, MAE
from densepath.sources.image_files import ImageFiles
from densepath.views.maker import ViewMaker

IMAGES = ImageFiles(["image.png"])
SMALL = {"decoder_depth": 2, "decoder_dim": 32, "decoder_heads": 4}


@pytest.fixture
def method(make):
    method = make(EVA, "test_vit", **SMALL)
    prepare(method, IMAGES)
    return method


@pytest.fixture
def batch(images):
    return ViewMaker(EVA.views(), 64, seed=0)(images)


def test_the_loss_is_that_of_plain_loops(method, batch):
    losses, visible = method(batch), method.visible(batch)
    assert visible.shape == (4, 16) and (visible.sum(1) == 4).all()
    outputs = method.predict(batch["image"].pixels, visible).double()
    targets = method.target.network(batch["image"].pixels, 4).double()
    values = []
    for image in range(4):
        for patch in range(16):
            if not visible[image, patch]:
                o, t = outputs[image, patch], targets[image, patch]
                values.append(2 - 2 * (o @ t / (o.norm() * t.norm())).item())
    assert len(values) == 48
    assert losses.total.item() == pytest.approx(sum(values) / 48, rel=1e-5)
    assert losses.terms["feature_loss"] == losses.total


def test_what_it_predicts_with_is_mae(make, method, batch):
    """The encoder, the decoder and the masks are those of MAE, but for the last layer."""
    mae = make(MAE, "test_vit", **SMALL)
    own = method.head.state_dict()
    mae.decoder.load_state_dict({k: v for k, v in own.items() if not k.startswith("predict.")}, strict=False)
    mae.backbone.load_state_dict(method.backbone.state_dict())
    visible = mae.visible(batch)
    assert torch.equal(visible, method.visible(batch))
    hidden = []
    for head in (mae.decoder, method.head):
        head.predict.register_forward_hook(lambda module, inputs, output: hidden.append(inputs[0]))
    mae.predict(batch["image"].pixels, visible)
    method.predict(batch["image"].pixels, visible)
    torch.testing.assert_close(*hidden)


def test_the_teacher_sees_all_and_the_encoder_the_visible_patches(method, batch):
    pixels, visible = batch["image"].pixels, method.visible(batch)
    shown = visible.view(4, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    other = torch.where(shown, pixels, torch.randn_like(pixels))
    assert torch.equal(method.predict(pixels, visible), method.predict(other, visible))
    changed = replace(batch, views={"image": replace(batch["image"], pixels=other)})
    assert method(batch).total != method(changed).total


def test_overfits_one_batch(method, batch):
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    history = []
    for _ in range(25):
        loss = method(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.4 * history[0]


def test_step_never_waits_for_the_device(method, images, monkeypatch):
    """On the meta device nothing has a value: whatever asks for one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on this device
    batch = ViewMaker(EVA.views(), 64, seed=0)(replace(images, pixels=images.pixels.to("meta")))
    losses = method.to("meta")(batch)
    losses.total.backward()
    assert losses.total.device.type == "meta"


def test_wrong_hyper_parameters_are_named(make):
    assert EVA.views() == MAE.views()
    with pytest.raises(UserError, match="eva needs a vision transformer"):
        make(EVA, "resnet18")
    with pytest.raises(UserError, match="a decoder of 8 blocks with 5 heads and 512 channels cannot be built"):
        make(EVA, "test_vit", decoder_heads=5)
    with pytest.raises(UserError, match=r"a mask ratio of 0\.99 leaves 0 of 16 patches visible"):
        check(make(EVA, "test_vit", mask_ratio=0.99, **SMALL), 64, 4)
