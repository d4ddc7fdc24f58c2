"""Exported networks for volumes in other libraries give the same maps there; networks of others become backbones."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.backbones.choose import choose_backbone
from densepath.nets.backbones.listed import resenc_options
from densepath.nets.decoders.build import build_decoder, decoder_state, load_decoder
from densepath.nets.weights import load_weights, save_backbone
from densepath.nets.weights.pretrained import backbone_of_weights
from densepath.nets.weights.volume_layouts import arrange_volumes
from densepath.training.load_code import loading_code


def moved(backbone, *size):
    """The backbone after a pass in training mode, so that its running statistics are not those of the start."""
    torch.manual_seed(0)
    x = torch.randn(2, backbone.in_channels, *size)
    with torch.no_grad():
        backbone.train()(x)
    return backbone.eval(), x


def test_models_genesis_gets_the_whole_u_net(tmp_path):
    backbone, _ = moved(build_backbone("unet_3d_w2", 1), 8, 8, 8)
    decoder, head = build_decoder(backbone)
    path = tmp_path / "genesis.pt"
    save_backbone(path, backbone, "models_genesis", None, decoder_state(decoder, head))
    content = torch.load(path)
    assert set(content["state_dict"]) == {
        f"module.{name}" for name in (*backbone.net.state_dict(), *decoder_state(decoder, head))
    }
    assert content["metadata"]["untrained"] == "" and content["metadata"]["layout"] == "models_genesis"
    again = build_backbone("unet_3d_w2", 1)
    load_weights(again, path, complete=True)
    other, _ = build_decoder(again)
    load_decoder(other, path)
    for ours, theirs in ((backbone, again), (decoder, other)):
        pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs if a.is_floating_point())
    state, untrained = arrange_volumes(backbone, "models_genesis", {})
    assert len(state) == len(content["state_dict"]) and "module.up_tr64.up_conv.weight" in untrained
    with pytest.raises(UserError, match="unet_3d_w2 has no counterpart in the layout monai, which is for"):
        save_backbone(tmp_path / "x.pt", backbone, "monai")
    with pytest.raises(UserError, match=r"must end in \.pt or \.pth"):
        save_backbone(tmp_path / "x.safetensors", backbone, "models_genesis")


@pytest.mark.parametrize("name", ["resnet10_3d_w4", "resnet18_3d_w4_s122"])
def test_monais_names_come_back(tmp_path, name):
    backbone, again = moved(build_backbone(name, 2), 16, 32, 32)[0], build_backbone(name, 2)
    save_backbone(tmp_path / "monai.pt", backbone, "monai")
    load_weights(again, tmp_path / "monai.pt", complete=True)
    torch.testing.assert_close(again.state_dict(), backbone.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet10_3d_w4", "resnet18_3d_w4_s122"])
def test_monai_gets_its_residual_network(tmp_path, name):
    pytest.importorskip("monai")
    backbone, x = moved(build_backbone(name, 2), 16, 32, 32)
    path = tmp_path / "monai.pt"
    save_backbone(path, backbone, "monai")
    code = loading_code(path, backbone, "monai", {}).split("```python\n")[1].split("```")[0]
    given = {}
    exec(code.replace("'monai.pt'", repr(str(path))), given)  # the code of the model card
    network = given["model"].eval()
    with torch.no_grad():
        maps, y = backbone(x), network.act(network.bn1(network.conv1(x)))
        torch.testing.assert_close(maps[1], y)
        for number in range(1, 5):
            y = getattr(network, f"layer{number}")(y)
            torch.testing.assert_close(maps[number + 1], y, atol=1e-4, rtol=1e-4)


def test_nnunet_gets_its_residual_encoder(tmp_path):
    pytest.importorskip("dynamic_network_architectures")
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    backbone = build_backbone("resenc_3d_w2", 1)
    assert backbone.strides[6] == (32, 32, 32) and list(backbone.channels.values()) == [2, 4, 8, 16, 20, 20]
    backbone.check_size(32, 33, 32)
    with pytest.raises(UserError, match=r"resenc_3d_w2 has instance norms.* at least 33 along an axis"):
        backbone.check_size(32, 32, 32)
    path = tmp_path / "nnunet.pth"
    save_backbone(path, backbone, "nnunet")
    options = resenc_options("resenc_3d_w2", 1)
    network = ResidualEncoderUNet(**options, num_classes=5, n_conv_per_stage_decoder=1, deep_supervision=True)
    # As nnU-Net's load_pretrained_weights: all but the segmentation layers must be there, in the same shape.
    given, own = torch.load(path)["network_weights"], network.state_dict()
    wanted = {name: value for name, value in own.items() if ".seg_layers." not in name}
    assert {name: value.shape for name, value in given.items()} == {name: value.shape for name, value in wanted.items()}
    network.load_state_dict(own | given)
    x = torch.randn(1, 1, 64, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(backbone(x).values(), network.encoder(x), strict=True):
            torch.testing.assert_close(ours, theirs)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv3d(1, 4, 3, (1, 2, 2), 1), nn.Conv3d(4, 6, 3, 2, 1)])

    def forward(self, x):
        maps = []
        for part in self.parts:
            maps.append(x := part(x))
        return maps


@pytest.mark.parametrize("last", [(2, 2, 1), (1, 2, 2)])
def test_the_encoder_is_that_of_plans_with_other_strides(tmp_path, last):
    """As in the documentation: the decoder's shapes follow from the strides, those of the encoder do not."""
    pytest.importorskip("dynamic_network_architectures")
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    backbone = build_backbone("resenc_3d_w2", 1)
    save_backbone(tmp_path / "timm.safetensors", backbone)
    save_backbone(tmp_path / "nnunet.pth", backbone, "nnunet")
    options = resenc_options("resenc_3d_w2", 1) | {"strides": [1, 2, 2, 2, 2, last]}
    network = ResidualEncoderUNet(**options, num_classes=2, n_conv_per_stage_decoder=1, deep_supervision=True)
    given, name = torch.load(tmp_path / "nnunet.pth")["network_weights"], "decoder.transpconvs.0.weight"
    assert given[name].shape != network.state_dict()[name].shape
    network.encoder.load_state_dict(load_file(tmp_path / "timm.safetensors"))


def test_weights_for_volumes_are_not_taken_for_those_of_images(tmp_path):
    with torch.device("meta"):
        made, _ = arrange_volumes(build_backbone("resnet18_3d", 1), "monai", {})
    path = tmp_path / "w.pth"
    torch.save({key: torch.zeros(()).expand(value.shape) for key, value in made.items()}, path)
    with pytest.raises(UserError, match="name it with --backbone, if it is one of those for volumes, such as resnet"):
        backbone_of_weights(path)
    with pytest.raises(UserError, match=r"does not fit resnet18: .* \(--backbone resnet18_3d, say\)"):
        load_weights(build_backbone("resnet18"), path)


def test_a_network_that_lists_its_maps_becomes_a_backbone():
    network = Encoder()
    backbone = choose_backbone(network, 1)
    assert (backbone.channels, backbone.strides) == ({1: 4, 2: 6}, {1: (1, 2, 2), 2: (2, 4, 4)})
    assert backbone.net is network and backbone.ndim == 3 and backbone.name == "Encoder"
    x = torch.randn(2, 1, 7, 9, 16)
    maps = backbone(x)
    assert {stage: tuple(y.shape[2:]) for stage, y in maps.items()} == {s: backbone.grid(s, 7, 9, 16) for s in (1, 2)}
    decoder, head = build_decoder(backbone)
    assert head(decoder(maps, x.shape[2:])).shape == x.shape
    with pytest.raises(UserError, match="let it return the list of its maps"):
        choose_backbone(nn.Conv3d(1, 2, 3, padding=1), 1)
