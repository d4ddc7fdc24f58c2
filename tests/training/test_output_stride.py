"""Pre-training with a dilated last stage: more positions for the method, an ordinary network for everybody else."""

from __future__ import annotations

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.backbones.choose import choose_backbone
from densepath.runs.folder import EXPORTED
from densepath.training.load_run import load_run
from densepath.training.pretrain import pretrain

RUN = {"backbone": "test_resnet", "output_stride": 16, "method": "concl", "batch_size": 8, "view_size": 64}
RUN |= {"devices": "cpu", "precision": "32", "log_every": 1, "method_options": {"warmup": 0.0, "num_concepts": 2}}


def test_the_exported_network_is_an_ordinary_one(tmp_path, tiles, capsys):
    run = pretrain(data=tiles, out=tmp_path / "a", max_steps=2, **RUN)
    ordinary = build_backbone("test_resnet").eval()
    state = load_file(run / EXPORTED)
    network = timm.create_model("test_resnet", num_classes=0, checkpoint_path=str(run / EXPORTED)).eval()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in network.state_dict().items()}

    method, config, _ = load_run(run)
    trained = method.exported_backbone().eval()
    assert config["output_stride"] == 16 and trained.strides[5] == (16, 16) and trained.grid(5, 64, 64) == (4, 4)
    for ours, theirs in zip(trained.net.state_dict().values(), ordinary.net.state_dict().values(), strict=True):
        assert ours.shape == theirs.shape
    ordinary.net.load_state_dict(trained.net.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        fine, coarse = trained(x)[5], ordinary(x)[5]
        torch.testing.assert_close(network.forward_features(x), coarse)
    assert fine.shape[2:] == (4, 4)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse)

    again = yaml.safe_load((run / "config.yaml").read_text())
    assert again["output_stride"] == 16
    with pytest.raises(UserError, match="output_stride"):
        pretrain(data=tiles, out=run, max_steps=4, resume=True, **{**RUN, "output_stride": 32})


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002", "regnety_002", "convnext_atto", "efficientnet_b0"])
def test_the_weights_do_not_depend_on_the_stride(name):
    made = []
    for stride in (32, 16):
        torch.manual_seed(0)
        backbone = choose_backbone(name, 3, stride)
        made.append((backbone.state_dict(), torch.rand(3)))  # what is drawn next, for a head, is equal too
        assert backbone(torch.zeros(1, 3, 64, 96), last=5)[5].shape[2:] == backbone.grid(5, 64, 96)
        assert backbone.grid(5, 64, 96) == (64 // stride, 96 // stride)
    (one, next_one), (other, next_other) = made
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(next_one, next_other)


def network(**options):
    return timm.create_model("test_resnet", **{"features_only": True, **options})


@pytest.mark.parametrize("options", [{}, {"act_layer": "gelu"}, {"out_indices": (2, 3, 4)}])
def test_a_network_is_dilated_in_place(options):
    given = network(**options).requires_grad_(False).eval()
    x = torch.randn(1, 3, 64, 96)
    coarse = given(x)[-1]
    made = choose_backbone(given, 3, 16)
    assert made.net is given and not any(parameter.requires_grad for parameter in given.parameters())
    maps = made.eval()(x)
    torch.testing.assert_close(maps[5][..., ::2, ::2], coarse)
    assert {stage: tuple(f.shape[1:]) for stage, f in maps.items()} == {
        stage: (made.channels[stage], *made.grid(stage, 64, 96)) for stage in made.stages
    }
    for stride in (16, 32):  # passed again: it stays as it is
        assert choose_backbone(given, 3, stride).grid(5, 64, 96) == (4, 6)


@pytest.mark.parametrize("options", [{"aa_layer": timm.layers.BlurPool2d}, {"out_indices": (0, 1, 2)}])
def test_a_network_that_cannot_be_dilated_like_that_of_its_name_stays_unchanged(options):
    given = network(**options)
    x = torch.randn(1, 3, 64, 64)
    before = given.eval()(x)[-1]
    with pytest.raises(UserError, match=r"the last stage of test_resnet\* cannot be dilated"):
        choose_backbone(given, 3, 16)
    assert torch.equal(given.eval()(x)[-1], before)


@pytest.mark.parametrize(("name", "stride"), [("vit_tiny_patch16_224", 16), ("resnet10_3d", 16), ("resnet18", 8)])
def test_what_cannot_be_dilated_is_refused(name, stride):
    with pytest.raises(UserError, match=r"dilated; use a ResNet or RegNet|use 16 or 32"):
        choose_backbone(name, 3, stride)
