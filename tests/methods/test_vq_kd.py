"""VQ-KD against plain loops."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from method_checks import check
from safetensors.torch import load_file, save_file
from targets import prepare, write_tokenizer

from densepath.core.errors import UserError
from densepath.methods import VQKD
from densepath.nets.backbones.transformer_parts import sincos_positions
from densepath.nets.tokenizers import load_tokenizer
from densepath.nets.weights import save_backbone
from densepath.sources.image_files import ImageFiles
from densepath.sources.pixel_source import PixelSpec
from densepath.training.export import export_parts
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker

IMAGES = ImageFiles(["image.png"])


@pytest.fixture
def method(make):
    method = make(VQKD, "test_vit", decoder_depth=2)
    prepare(method, IMAGES)
    return method


@pytest.fixture
def batch(images):
    return ViewMaker(VQKD.views(), 64, seed=0)(images)


def test_the_loss_is_that_of_plain_loops(method, batch):
    method.eval()
    pixels = batch["image"].pixels
    losses = method(batch)
    codes, vectors = method.tokenizer.codebook.codes.double(), method.tokenizer.embed(pixels).detach()
    names = method.tokenizer(pixels)
    found = method.tokenizer.codebook.look_up(names)
    x = method.from_codes(found) + sincos_positions(4, 4, 64)
    outputs = method.head(method.norm(method.decoder[1](method.decoder[0](x)))).double()
    targets = method.target.network(pixels, 4).double()
    cosines, distances = [], []
    for image in range(4):
        for patch in range(16):
            h, o, t = vectors[image, patch].double(), outputs[image, patch], targets[image, patch]
            squares = [float(((h - code) ** 2).sum()) for code in codes]
            assert names[image, patch] == squares.index(min(squares))
            distances.append(min(squares))
            cosines.append((o @ t / (o.norm() * t.norm())).item())
    reconstruction, commitment = 1 - sum(cosines) / 64, sum(distances) / 64
    assert losses.terms["reconstruction_loss"].item() == pytest.approx(reconstruction, rel=1e-4)
    assert losses.terms["commitment_loss"].item() == pytest.approx(commitment, rel=1e-4)
    method.commitment = 0.25
    assert method(batch).total.item() == pytest.approx(reconstruction + 0.25 * commitment, rel=1e-4)


def test_the_gradient_passes_through_the_codes(method, batch, monkeypatch):
    method(batch)  # the codes begin
    method.eval()
    kept = []
    embed = method.tokenizer.embed

    def keep(pixels):
        kept.append(embed(pixels))
        kept[0].retain_grad()
        return kept[0]

    monkeypatch.setattr(method.tokenizer, "embed", keep)
    method(batch).total.backward()
    pixels = batch["image"].pixels
    codes = method.tokenizer.codebook.look_up(method.tokenizer.codebook(kept[0]))
    there = codes.clone().requires_grad_()
    cosines = torch.nn.functional.cosine_similarity(method.decode(there, 4), method.target(pixels, 4), dim=-1)
    (1 - cosines.mean()).backward()
    expected = there.grad + 2 * (kept[0] - codes).detach() / 64
    torch.testing.assert_close(kept[0].grad, expected)


def test_codes_are_initialized_once_and_updated_only_in_training(method, batch, whole_step):
    codebook, reference = method.tokenizer.codebook, copy.deepcopy(method)
    assert not codebook.begun
    used = whole_step(method, batch).statistics["used_codes"]
    assert codebook.begun and 1 < used <= 12
    whole_step(reference, batch)
    assert torch.equal(codebook.codes, reference.tokenizer.codebook.codes)  # the same step begins alike
    torch.testing.assert_close(codebook.codes.norm(dim=1), torch.ones(12))
    before = codebook.codes.clone()
    whole_step(method.eval(), batch)
    assert torch.equal(codebook.codes, before)
    other = replace(batch, views={"image": replace(batch["image"], pixels=batch["image"].pixels.flip(3))})
    whole_step(method.train(), other)
    assert not torch.equal(codebook.codes, before)


def test_overfits_one_batch(method, batch):
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    history = []
    for _ in range(30):
        losses = method(batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        method.after_step()
        history.append(losses.terms["reconstruction_loss"].item())
    assert history[-1] < 0.5 * history[0]


def test_step_never_waits_for_the_device(method, images, monkeypatch):
    """On the meta device nothing has a value: whatever asks for one raises. Once the codes have begun."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on this device
    batch = ViewMaker(VQKD.views(), 64, seed=0)(replace(images, pixels=images.pixels.to("meta")))
    method.tokenizer.codebook.begun = True
    method.to("meta")
    method.before_step(batch)
    losses = method(batch)
    losses.total.backward()
    method.after_step()
    assert losses.total.device.type == losses.statistics["used_codes"].device.type == "meta"


def test_the_tokenizer_is_kept(method, batch, tmp_path):
    method.before_step(batch)
    method(batch)
    method.after_step()  # which counts how the codes are used
    parts = method.exported_parts()
    assert list(parts) == ["tokenizer"]
    export_parts(tmp_path, parts, {"method": "vq_kd", "backbone": "test_vit"}, 5)
    again = load_tokenizer(tmp_path / "tokenizer.safetensors").eval()
    method.eval()
    assert torch.equal(again(batch["image"].pixels), method.tokenizer(batch["image"].pixels))
    usage = method.tokenizer.codebook.usage.double()
    perplexity = torch.exp(-(usage / usage.sum()).xlogy(usage / usage.sum()).sum())
    assert again.describe() == f"a tokenizer with 12 codes (perplexity {perplexity:.0f}) on test_vit"
    assert method.exported_backbone() is method.tokenizer.backbone


def test_a_tokenizer_takes_views_that_are_normalized_as_its_own_were(method, tmp_path):
    grey = PixelSpec.default(1).record()
    config = {"method": "vq_kd", "backbone": "test_vit", "pixels": PixelSpec(window=(0.0, 4095.0)).record()}
    export_parts(tmp_path, method.exported_parts(), config, 5)
    again = load_tokenizer(tmp_path / "tokenizer.safetensors")
    again.show(PixelSpec(window=(0.0, 4095.0)))
    for other, remedy in (
        (PixelSpec(), "--mean, --std and --window"),
        (PixelSpec.from_record(grey), "train one on such"),
    ):
        with pytest.raises(UserError, match=f"the tokenizer was trained on pixels of .*{remedy}"):
            again.show(other)


def test_a_path_that_is_not_a_tokenizer_is_named(tmp_path, method):
    def refused(message, source):
        with pytest.raises(UserError, match=message) as caught:
            load_tokenizer(source)
        assert "\n" not in str(caught.value)

    refused(r"has no exported/tokenizer\.safetensors; name a complete run of vq_kd", tmp_path)
    refused("there are no weights to read at", tmp_path / "nowhere.safetensors")
    save_backbone(tmp_path / "backbone.safetensors", method.exported_backbone())
    refused("contains no tokenizer", tmp_path / "backbone.safetensors")
    path = write_tokenizer(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"test_vit"', b'"test_vi4"'))
    refused("unknown backbone 'test_vi4'", path)
    path = write_tokenizer(tmp_path)
    other = {**load_file(path), "projection.0.weight": torch.zeros(64, 32)}
    save_file(other, path, {"backbone": "test_vit"})
    refused(r"is not a tokenizer on test_vit: projection\.0\.weight does not fit", path)
    save_file(other, path, {"backbone": "test_resnet"})
    refused("is not a tokenizer on test_resnet: ", path)
    path = write_tokenizer(tmp_path)
    save_file({**load_file(path), "codebook.usage": torch.tensor([900.0, *[1.0] * 11])}, path, {"backbone": "test_vit"})
    refused("gives almost all patches the same code, so nothing can be learned from it", path)


def test_the_views_are_those_of_the_released_code():
    plain = Augment(scale=(0.08, 1), jitter=0, grayscale=0, blur=0, interpolation="bicubic")
    assert VQKD.views() == {"image": plain.random_view()}
    still = Augment(jitter=0)
    assert VQKD.views(still) == {"image": still.random_view()}


def test_wrong_hyper_parameters_are_named(make):
    with pytest.raises(UserError, match="vq_kd needs a vision transformer"):
        make(VQKD, "resnet18")
    with pytest.raises(UserError, match="the commitment must be at least 0"):
        make(VQKD, "test_vit", commitment=-1.0)
    with pytest.raises(UserError, match="2 codes of length 1 or more, not 12 of length -1"):
        make(VQKD, "test_vit", num_codes=12, code_dim=-1)
    with pytest.raises(UserError, match=r"restart_below is a share of the mean usage, .*, not 1\.0"):
        make(VQKD, "test_vit", restart_below=1.0)
    with pytest.raises(UserError, match="the decoder has 1 to 6 blocks on test_vit, not 0"):
        make(VQKD, "test_vit", decoder_depth=0)
    with pytest.raises(UserError, match="a batch of 4 images has 64 patches, too few to initialize 100 codes"):
        check(make(VQKD, "test_vit", num_codes=100), 64, 4)
    with pytest.raises(UserError, match="there is no teacher 'nobody'"):
        prepare(make(VQKD, "test_vit"), IMAGES, teacher="nobody")
