"""SparK: its loss against a loop, what its decoder gets, and what it does not see."""

from dataclasses import replace

import pytest
import torch
from method_checks import check
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.core.errors import UserError
from densepath.core.masking import enlarge
from densepath.methods import SparK
from densepath.nets.backbones.choose import choose_backbone
from densepath.nets.decoders.light import LightDecoder
from densepath.nets.norms import plain_batch_norm
from densepath.nets.sparse import Visible, encode_sparsely
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker

SMALL = {"decoder_dim": 32}


@pytest.fixture
def batch(images):
    return ViewMaker(SparK.views(), 64, seed=0)(images)


@pytest.fixture
def method(make):
    return make(SparK, "test_resnet", **SMALL)


def test_the_loss_is_the_error_of_only_masked_patches(method, batch):
    losses = method(batch)
    visible = method.visible(batch)
    assert (visible.patches.flatten(1).sum(1) == 2).all()  # of four: 1.6
    prediction = method.predict(batch["image"].pixels, visible).double()
    errors = []
    for image, pixels in enumerate(batch["image"].pixels.double()):
        for row, column in [(0, 0), (0, 1), (1, 0), (1, 1)]:
            if visible.patches[image, row, column]:
                continue
            patch = (slice(None), slice(32 * row, 32 * row + 32), slice(32 * column, 32 * column + 32))
            target = (pixels[patch] - pixels[patch].mean()) / (pixels[patch].var() + 1e-6).sqrt()
            errors.append(((prediction[image][patch] - target) ** 2).mean().item())
    assert len(errors) == 8
    assert losses.total.item() == pytest.approx(sum(errors) / 8, rel=1e-5)
    assert losses.terms["reconstruction_loss"] == losses.total


def test_the_decoder_gets_normed_features_and_tokens_where_there_are_none(method, batch):
    """A map of each scale, worked out position by position."""
    visible, pixels = method.visible(batch), batch["image"].pixels
    maps = encode_sparsely(method.backbone, pixels, visible)
    assert method.stages == (5, 4, 3, 2)
    for densify, stage in zip(method.densify, method.stages, strict=True):
        nn.init.normal_(densify.norm.weight), nn.init.normal_(densify.norm.bias)
        flags = enlarge(visible.patches, 64 // 2**stage)[:, 0]
        rows = maps[stage].permute(0, 2, 3, 1)
        picked = rows[flags]
        normed = (rows - picked.mean(0)) / (picked.var(0, correction=0) + 1e-5).sqrt()
        normed = normed * densify.norm.weight + densify.norm.bias
        dense = torch.where(flags[..., None], normed, densify.mask_token.flatten()).permute(0, 3, 1, 2)
        torch.testing.assert_close(densify(maps[stage], visible), densify.project(dense), rtol=1e-4, atol=1e-4)
        assert densify.project.kernel_size == ((1, 1) if stage == 5 else (3, 3))


def test_the_decoder_doubles_and_adds():
    decoder = LightDecoder(32, 5).double().eval()
    assert decoder.channels == (32, 16, 8, 4, 2, 1)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter)
    maps = [torch.randn(2, 32 // 2**i, 2 * 2**i, 2 * 2**i).double() for i in range(4)]
    x = torch.zeros(()).double()
    for number, block in enumerate(decoder.blocks):
        x = block(x + maps[number] if number < 4 else x)
    assert x.shape == (2, 1, 64, 64)
    torch.testing.assert_close(decoder(maps), decoder.predict(x))
    kinds = [type(layer).__name__ for layer in decoder.blocks[0]]
    assert kinds == ["ConvTranspose2d", "Conv2d", "BatchNorm2d", "ReLU6", "Conv2d", "BatchNorm2d"]


def test_masked_pixels_are_not_seen(method, batch):
    pixels, visible = batch["image"].pixels, method.visible(batch)
    other = torch.where(visible.mask(64), pixels, torch.randn_like(pixels))
    assert torch.equal(method.predict(pixels, visible), method.predict(other, visible))
    hidden = torch.where(visible.mask(64), 0.0, pixels)
    assert not torch.equal(method.predict(pixels, visible), method.predict(hidden, visible))


def test_masks_belong_to_image_and_epoch(make, images):
    method, batch = make(SparK, "test_resnet", **SMALL), ViewMaker(SparK.views(), 96, seed=0)(images)
    patches = method.visible(batch).patches
    assert (patches.flatten(1).sum(1) == 4).all()  # of nine: 3.6
    assert torch.equal(method.visible(replace(batch, index=batch.index.flip(0))).patches, patches.flip(0))
    assert torch.equal(method.visible(replace(batch, step=7)).patches, patches)
    assert not torch.equal(method.visible(replace(batch, epoch=1.0)).patches, patches)


def test_everything_gets_a_gradient_and_mask_tokens_no_decay(method, batch):
    method(batch).total.backward()
    assert [key for key, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(densify.no_weight_decay() == {"mask_token"} for densify in method.densify)
    assert all(0 < densify.mask_token.abs().max() <= 0.02 for densify in method.densify)


def test_what_is_kept_is_the_plain_network(make, batch):
    method = make(SparK, "test_resnet", group=2, **SMALL)
    method(batch)
    kept = plain_batch_norm(method.exported_backbone())
    assert {type(norm) for norm in kept.modules() if isinstance(norm, _BatchNorm)} == {nn.BatchNorm2d}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in kept.modules())


def test_groups_have_statistics_of_their_own_everywhere(make, batch):
    whole = make(SparK, "test_resnet", group=2, **SMALL).double()
    reference = make(SparK, "test_resnet", **SMALL).double()
    pixels, visible = batch["image"].pixels.double(), whole.visible(batch)
    parts = [reference.predict(pixels[i : i + 2], Visible(visible.patches[i : i + 2], 2)) for i in (0, 2)]
    torch.testing.assert_close(whole.predict(pixels, visible), torch.cat(parts))


def test_what_is_shown_is_what_the_loss_counts(method, batch):
    shown, pixels = method.reconstruct(batch), batch["image"].pixels
    assert not shown.prediction.requires_grad
    assert torch.equal(shown.view, pixels) and torch.equal(shown.target, pixels)
    assert torch.equal(shown.visible, torch.where(shown.counted, 0.0, pixels))
    assert shown.counted.float().mean() == 0.5
    errors = []
    for image, top, left in [(i, t, s) for i in range(4) for t in (0, 32) for s in (0, 32)]:
        region = (image, slice(None), slice(top, top + 32), slice(left, left + 32))
        if shown.counted[image, 0, top, left]:
            error = (shown.prediction[region] - shown.target[region]).square().mean()
            errors.append(error / (shown.target[region].var() + 1e-6))
    assert torch.stack(errors).mean().item() == pytest.approx(method(batch).total.item(), rel=1e-4)


def test_step_never_waits_for_the_device(make, images):
    """On the meta device nothing has a value: whatever asks for one raises."""
    batch = ViewMaker(SparK.views(), 64, seed=0)(replace(images, pixels=images.pixels.to("meta")))
    losses = make(SparK, "test_resnet", group=2, **SMALL).to("meta")(batch)
    losses.total.backward()
    assert losses.total.device.type == "meta"


def test_overfits_one_batch(make, batch):
    """Cells of nothing but their mean would give a loss of 1."""
    method = make(SparK, "test_resnet", decoder_dim=128)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    history = []
    for _ in range(40):
        loss = method(batch).total
        history.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert history[-1] < 0.65 and history[0] > 0.99


@pytest.mark.parametrize("name", ["regnetx_002", "test_convnext"])
def test_takes_convnets_in_bfloat16(make, batch, name):
    method = make(SparK, name, **SMALL).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(batch)
    losses.total.backward()
    assert losses.total.dtype == torch.float32 and losses.total.isfinite()
    assert all(p.grad is not None for p in method.parameters())
    norms = {type(densify.norm).__name__ for densify in method.densify}
    assert norms == ({"LayerNorm2d"} if name == "test_convnext" else {"BatchNorm2d"})


def test_views_keep_their_colors():
    plain = Augment(scale=(0.67, 1), jitter=0, grayscale=0, blur=0, interpolation="bicubic")
    assert SparK.views()["image"] == plain.random_view()
    still = Augment(flip=0)
    assert SparK.views(still) == {"image": still.random_view()}


def test_what_does_not_fit_is_refused(make, method):
    with pytest.raises(UserError, match=r"SparK needs a ConvNet .* which test_vit is not; .*mae is the method"):
        make(SparK, "test_vit", **SMALL)
    with pytest.raises(
        UserError, match=r"needs maps of strides 4, 8, 16 and 32, and those of test_resnet have 4, 8, 16, 16"
    ):
        SparK(choose_backbone("test_resnet", output_stride=16), **SMALL)
    with pytest.raises(UserError, match="seresnet18 has a Sigmoid"):
        make(SparK, "seresnet18", **SMALL)
    with pytest.raises(UserError, match="40 channels cannot halve them 5 times"):
        make(SparK, "test_resnet", decoder_dim=40)
    with pytest.raises(UserError, match=r"mask ratio of 0\.9 leaves 0 of 4"):
        check(make(SparK, "test_resnet", mask_ratio=0.9, **SMALL), 64, 4)
    with pytest.raises(UserError, match="view_size 72 is not a multiple of the patch size of 32 px"):
        check(method, 72, 4)
    check(method, 64, 4)
