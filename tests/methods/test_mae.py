"""MAE: its parts against lightly's, its loss against a loop."""

import warnings
from dataclasses import replace

import pytest
import torch
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.modules.masked_autoencoder_timm import MAEDecoderTIMM
from method_checks import check
from torch import nn

from densepath.core.errors import UserError
from densepath.methods import EVA, MAE
from densepath.nets.backbones import build_backbone
from densepath.nets.backbones.transformer_parts import sincos_positions
from densepath.nets.weights import load_weights, save_backbone
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker

SMALL = {"decoder_depth": 2, "decoder_dim": 32, "decoder_heads": 4}


@pytest.fixture
def batch(images):
    return ViewMaker(MAE.views(), 64, seed=0)(images)


@pytest.fixture
def method(make):
    return make(MAE, "test_vit", **SMALL)


def test_the_prediction_is_that_of_lightlys_encoder_and_decoder(method, batch):
    pixels, visible = batch["image"].pixels, method.visible(batch)
    assert visible.shape == (4, 16) and (visible.sum(1) == 4).all()
    ours = method.predict(pixels, visible)

    kept = torch.stack([row.nonzero().flatten() for row in visible])
    encoder = MaskedVisionTransformerTIMM(
        method.backbone.net.model, weight_initialization="skip", pos_embed_initialization="skip"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoder = MAEDecoderTIMM(16, 16, 3, 64, 32, 2, 4)
    names = {"embed": "decoder_embed", "blocks": "decoder_blocks", "norm": "decoder_norm", "predict": "decoder_pred"}
    state = {names.get(key.split(".")[0], key.split(".")[0]) + key[len(key.split(".")[0]) :]: value
             for key, value in method.decoder.state_dict().items()}  # fmt: skip
    decoder.load_state_dict(state, strict=False)
    decoder.decoder_pos_embed.data[0, 1:] = sincos_positions(4, 4, 32)
    tokens = decoder.embed(encoder.encode(pixels, idx_keep=torch.cat((torch.zeros(4, 1).long(), kept + 1), 1)))
    full = decoder.mask_token.repeat(4, 17, 1)
    full[:, 0] = tokens[:, 0]
    for image in range(4):
        full[image, kept[image] + 1] = tokens[image, 1:]
    theirs = decoder.predict(decoder.decode(full)[:, 1:])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_error_of_only_masked_patches(method, batch):
    losses = method(batch)
    visible = method.visible(batch)
    prediction = method.predict(batch["image"].pixels, visible).double()
    errors = []
    for image, pixels in enumerate(batch["image"].pixels.double()):
        for patch in range(16):
            if visible[image, patch]:
                continue
            top, left = 16 * (patch // 4), 16 * (patch % 4)
            values = pixels[:, top : top + 16, left : left + 16].permute(1, 2, 0).flatten()
            target = (values - values.mean()) / (values.var() + 1e-6).sqrt()
            errors.append(((prediction[image, patch] - target) ** 2).mean().item())
    assert len(errors) == 4 * 12
    assert losses.total.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert losses.terms["reconstruction_loss"] == losses.total


def test_masked_pixels_are_not_seen(method, batch):
    pixels, visible = batch["image"].pixels, method.visible(batch)
    seen = visible.view(4, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    other = torch.where(seen, pixels, torch.randn_like(pixels))
    assert torch.equal(method.predict(pixels, visible), method.predict(other, visible))
    assert not torch.equal(method.predict(pixels, visible), method.predict(torch.where(seen, 0.0, pixels), visible))


def test_masks_belong_to_image_and_epoch(method, batch):
    other = replace(batch, index=batch.index.flip(0))
    assert torch.equal(method.visible(other), method.visible(batch).flip(0))
    assert torch.equal(method.visible(replace(batch, step=7)), method.visible(batch))
    assert not torch.equal(method.visible(replace(batch, epoch=1.0)), method.visible(batch))


def test_the_exported_transformer_carries_the_fixed_positions(method, batch, tmp_path):
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    method(batch).total.backward()
    optimizer.step()
    backbone = method.exported_backbone()
    model = backbone.net.model
    assert torch.equal(model.pos_embed[0, 1:], sincos_positions(10, 10, 64))
    save_backbone(tmp_path / "mae.safetensors", backbone)
    loaded = build_backbone("test_vit")
    load_weights(loaded, tmp_path / "mae.safetensors")
    pixels = batch["image"].pixels
    torch.testing.assert_close(loaded.eval()(pixels)[4], backbone.eval()(pixels)[4], rtol=0, atol=0)
    assert torch.equal(loaded.net.model.pos_embed, model.pos_embed)


def test_positions_may_be_the_backbones_own(make, batch):
    method = make(MAE, "test_vit", fixed_positions=False, **SMALL)
    torch.manual_seed(0)
    own = build_backbone("test_vit").net.model.pos_embed
    assert torch.equal(method.backbone.net.model.pos_embed, own)
    method(batch).total.backward()
    assert method.backbone.net.model.pos_embed.grad.any()


def test_everything_trained_gets_a_gradient_and_mask_tokens_no_decay(method, batch):
    method(batch).total.backward()
    still = [key for key, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == ["backbone.net.model.pos_embed"]
    assert method.decoder.no_weight_decay() == {"mask_token"}


def test_what_is_shown_is_what_the_loss_counts(method, batch):
    shown, pixels = method.reconstruct(batch), batch["image"].pixels
    assert not shown.prediction.requires_grad
    assert torch.equal(shown.view, pixels) and torch.equal(shown.target, pixels)
    assert torch.equal(shown.visible, torch.where(shown.counted, 0.0, pixels))
    assert shown.counted.float().mean() == 0.75
    errors = []
    for image, top, left in [(i, t, s) for i in range(4) for t in range(0, 64, 16) for s in range(0, 64, 16)]:
        region = (image, slice(None), slice(top, top + 16), slice(left, left + 16))
        if shown.counted[image, 0, top, left]:
            error = (shown.prediction[region] - shown.target[region]).square().mean()
            errors.append(error / (shown.target[region].var() + 1e-6))
    assert torch.stack(errors).mean().item() == pytest.approx(method(batch).total.item(), rel=1e-4)


def test_step_never_waits_for_the_device(make, images):
    """On the meta device nothing has a value: whatever asks for one raises."""
    batch = ViewMaker(MAE.views(), 64, seed=0)(replace(images, pixels=images.pixels.to("meta")))
    losses = make(MAE, "test_vit", **SMALL).to("meta")(batch)
    losses.total.backward()
    assert losses.total.device.type == "meta"


def test_overfits_one_batch(method, batch):
    """Patches of nothing but their mean would give a loss of 1."""
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=4e-3)
    history = []
    for _ in range(60):
        loss = method(batch).total
        history.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert history[-1] < 0.75 and history[0] > 0.99


def test_views_keep_their_colors():
    assert MAE.views()["image"] == Augment(jitter=0, grayscale=0, blur=0, interpolation="bicubic").random_view()
    still = Augment(flip=0)
    assert MAE.views(still) == {"image": still.random_view()}


def test_the_decoder_starts_as_the_paper_says(make):
    decoder = make(MAE, "test_vit").decoder
    assert (len(decoder.blocks), decoder.dim) == (8, 512)
    bound = (6 / (512 + 2048)) ** 0.5
    weight = decoder.blocks[0].mlp.fc1.weight
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert not any(layer.bias.any() for layer in decoder.modules() if isinstance(layer, nn.Linear))


def test_what_does_not_fit_is_refused(make, method):
    with pytest.raises(UserError, match=r"MAE needs a vision transformer .* which resnet18 is not"):
        make(MAE)
    with pytest.raises(UserError, match="decoder of 2 blocks with 3 heads and 32 channels"):
        make(MAE, "test_vit", **SMALL | {"decoder_heads": 3})
    with pytest.raises(UserError, match=r"mask ratio of 0\.99 leaves 0 of 16"):
        check(make(MAE, "test_vit", mask_ratio=0.99, **SMALL), 64, 4)
    with pytest.raises(UserError, match="patches of 16 px, and 72 x 72 px"):
        check(method, 72, 4)
    check(method, 64, 4)


@pytest.mark.parametrize("kind", ["mae", "eva"])
def test_a_run_from_random_weights_starts_as_the_released_code(make, kind):
    """All linear layers and the patch projection within Xavier's limits, up to them; biases 0; tokens of std 0.02."""
    torch.manual_seed(0)
    method = make({"mae": MAE, "eva": EVA}[kind], "test_vit", **SMALL)
    before = [p.clone() for p in method.parameters()]
    method.initialize()
    model = method.backbone.net.model
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    matrices = [layer.weight for layer in layers] + [model.patch_embed.proj.weight.flatten(1)]
    for weight in matrices:
        limit = (6 / sum(weight.shape)) ** 0.5
        assert 0.95 * limit < weight.abs().max() <= limit
        assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.1)
    assert not any(layer.bias.any() for layer in layers if layer.bias is not None)
    assert 0.01 < model.cls_token.std() < 0.03
    assert not all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))
