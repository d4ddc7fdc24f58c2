"""BEiT-v2 against plain loops."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from method_checks import check
from targets import prepare, write_tokenizer

from densepath.core.errors import UserError
from densepath.methods import BEiTv2
from densepath.sources.image_files import ImageFiles
from densepath.training.optimizers import Optimizer, parameter_groups
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker

IMAGES = ImageFiles(["image.png"])


@pytest.fixture
def method(make, tokenizer):
    method = make(BEiTv2, "test_vit")
    prepare(method, IMAGES, tokenizer=tokenizer)
    return method


@pytest.fixture
def batch(images):
    return ViewMaker(BEiTv2.views(), 64, seed=0)(images)


def test_the_loss_is_that_of_plain_loops(method, batch):
    """The network is run image by image, with mask tokens put in by hand."""
    pixels = batch["image"].pixels
    with torch.no_grad():
        method.mask_token.normal_()
    losses = method(batch)
    mask, codes = method.draw_mask(batch, (64, 64)), method.target.network(pixels)
    assert mask.shape == (4, 16) and (mask.sum(1) == 6).all()
    model = method.backbone.net.model
    terms = {"code_loss": [], "early_code_loss": []}
    right = []
    for image in range(4):
        patches = model.patch_embed(pixels[image : image + 1])
        for patch in mask[image].nonzero().flatten().tolist():
            patches[0, patch // 4, patch % 4] = method.mask_token
        tokens = model._pos_embed(patches)
        for number, block in enumerate(model.blocks):
            tokens = block(tokens)
            if number + 1 == 4:  # of six, as 9 of 12
                early = tokens
        head = torch.cat((tokens[:, :1], early[:, 1:]), dim=1)
        for block in method.early_head:
            head = block(head)
        for name, output in (("code_loss", tokens), ("early_code_loss", head)):
            logits = method.head(model.norm(output))[0, 1:].double()
            for patch in mask[image].nonzero().flatten().tolist():
                terms[name].append(-logits[patch].log_softmax(0)[codes[image, patch]].item())
                if name == "code_loss":
                    right.append(float(logits[patch].argmax() == codes[image, patch]))
    means = {name: sum(values) / 24 for name, values in terms.items()}
    for name, value in means.items():
        assert losses.terms[name].item() == pytest.approx(value, rel=1e-4)
    assert losses.total.item() == pytest.approx(sum(means.values()), rel=1e-4)
    assert losses.statistics["accuracy"].item() == pytest.approx(sum(right) / 24)


def test_masked_patches_are_not_seen(method, batch):
    pixels, mask = batch["image"].pixels, method.draw_mask(batch, (64, 64))
    hidden = mask.view(4, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    others = torch.where(hidden, torch.randn_like(pixels), pixels)
    assert all(
        torch.equal(*pair) for pair in zip(method.encode(pixels, mask), method.encode(others, mask), strict=True)
    )
    shown = torch.where(hidden, pixels, torch.randn_like(pixels))
    assert not torch.allclose(method.encode(pixels, mask)[0], method.encode(shown, mask)[0], atol=1e-3)


def test_masks_belong_to_image_and_epoch(method, images):
    make_views = ViewMaker(BEiTv2.views(), 64, seed=0)
    masks = [method.draw_mask(make_views(replace(images, epoch=epoch)), (64, 64)) for epoch in (0.0, 0.5, 1.0)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_without_an_early_head_there_is_one_term(make, batch, tokenizer):
    method = make(BEiTv2, "test_vit", head_layers=0)
    prepare(method, IMAGES, tokenizer=tokenizer)
    losses = method(batch)
    assert list(losses.terms) == ["code_loss"] and losses.total.detach() == losses.terms["code_loss"]


def test_the_mask_token_has_no_weight_decay(method):
    decayed, excluded = parameter_groups(method, Optimizer(name="adamw", exclude_norm_and_bias=True))
    assert any(p is method.mask_token for p in excluded["params"])
    assert any(p is method.head.weight for p in decayed["params"])


def test_layer_scales_have_the_given_initial_value(make):
    method = make(BEiTv2, "test_vit3", layer_scale=0.1, head_layers=0)
    scales = [p for name, p in method.backbone.named_parameters() if name.endswith("gamma")]
    assert len(scales) == 18 and all((scale == 0.1).all() for scale in scales)
    kept = make(BEiTv2, "test_vit3", head_layers=0)
    assert all((p == 1e-5).all() for name, p in kept.backbone.named_parameters() if name.endswith("gamma"))


def test_overfits_one_batch(method, batch):
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    history = []
    for _ in range(50):
        losses = method(batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(losses.total.item())
    assert history[-1] < 0.35 * history[0] and losses.statistics["accuracy"] > 0.9


def test_step_never_waits_for_the_device(method, images, monkeypatch):
    """On the meta device nothing has a value: whatever asks for one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on this device
    batch = ViewMaker(BEiTv2.views(), 64, seed=0)(replace(images, pixels=images.pixels.to("meta")))
    losses = method.to("meta")(batch)
    losses.total.backward()
    assert losses.total.device.type == "meta"


def test_the_views_are_those_of_the_released_code():
    mild = {"jitter": 1, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0, "grayscale": 0, "blur": 0}
    assert BEiTv2.views() == {"image": Augment(scale=(0.2, 1), interpolation="bicubic", **mild).random_view()}


def test_wrong_hyper_parameters_are_named(make, tmp_path, tokenizer):
    def refused(message, **options):
        backbone, source = options.pop("backbone", "test_vit"), options.pop("tokenizer", tokenizer)
        with pytest.raises(UserError, match=message) as caught:
            prepare(make(BEiTv2, backbone, **options), IMAGES, tokenizer=source)
        assert "\n" not in str(caught.value)

    refused("beit_v2 needs a vision transformer", backbone="resnet18")
    refused("must be from 1 to 5 on test_vit, not 6", early_layer=6)
    refused("the early head has 0 to 6 blocks on test_vit, not 7", head_layers=7)
    refused("test_vit3 has no class token for the early head", backbone="test_vit3")
    refused("test_vit has no layer scales", layer_scale=0.1)
    refused("at least one patch, not 0", smallest_block=0)
    refused("has no exported/tokenizer.safetensors", tokenizer=str(tmp_path))
    refused("the tokenizer has patches of 16 px, but vit_small_patch8_224 of 8 px", backbone="vit_small_patch8_224")
    other = write_tokenizer(tmp_path, "test_vit3", decoder_depth=1)
    prepare(make(BEiTv2, "test_vit"), IMAGES, tokenizer=other)  # any encoder with patches of that size will do
    with pytest.raises(UserError, match=r"a mask ratio of 0\.99 leaves 0 of 16 patches visible"):
        check(make(BEiTv2, "test_vit", mask_ratio=0.99), 64, 4)
