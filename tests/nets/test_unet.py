"""The U-Net decoder: the released shapes, any backbone, and released files."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.decoders.build import load_decoder
from densepath.nets.decoders.unet import UNetDecoder, pixel_head
from densepath.nets.weights import load_weights

BLOCKS = [(512 + 256, 256), (256 + 128, 128), (128 + 64, 64), (64 + 64, 32), (32, 16)]


class Released(nn.Module):
    """A block of the released decoder, written again from its published names and shapes."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Sequential(nn.Conv2d(n, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
            for n in (inputs, outputs)
        )

    def forward(self, x, skip):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return self.conv2(self.conv1(x if skip is None else torch.cat((x, skip), 1)))


def test_a_released_checkpoint_gives_the_released_forward_pass(tmp_path):
    torch.manual_seed(0)
    from torchvision.models import resnet18

    encoder, blocks = resnet18(), nn.ModuleList(Released(*each) for each in BLOCKS)
    for module in (*encoder.modules(), *blocks.modules()):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
    state = {key: value for key, value in encoder.state_dict().items() if not key.startswith("fc.")}
    decoder_state = {f"blocks.{key}": value for key, value in blocks.state_dict().items()}
    released = {"opt": argparse.Namespace(lr=1e-3), "state_dict": state, "decoder_state_dict": decoder_state}
    momentum = {
        f"module.model.encoder.{key}": torch.zeros_like(value) for key, value in state.items() if "layer" not in key
    }
    torch.save(released | {"epoch": 240, "model_ema": momentum}, tmp_path / "pcrl.pt")

    backbone = build_backbone("resnet18")
    decoder = UNetDecoder(backbone)
    load_weights(backbone, tmp_path / "pcrl.pt", complete=True)
    assert "decoder" in load_decoder(decoder, tmp_path / "pcrl.pt")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        result = decoder.eval()(backbone.eval()(x), x.shape[2:])
        encoder.eval(), blocks.eval()
        maps = [encoder.relu(encoder.bn1(encoder.conv1(x)))]
        y = encoder.maxpool(maps[0])
        for layer in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            maps.append(y := layer(y))
        for block, skip in zip(blocks, [*maps[3::-1], None], strict=True):
            y = block(y, skip)
    torch.testing.assert_close(result, y, atol=1e-4, rtol=1e-4)
    assert result.shape == (1, 16, 32, 32)
    assert pixel_head(16, 3)(result).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "size", "skips"),
    [
        ("resnet18", (64, 96), [4, 3, 2, 1, 0]),
        ("convnext_atto", (64, 64), [4, 3, 2, 0, 0]),
        ("test_vit", (160, 160), [0, 0, 0, 0]),
        ("regnetx_002", (70, 50), [4, 3, 2, 1, 0]),
        ("resnet10_3d_w4", (16, 32, 32), [4, 3, 2, 1, 0]),
        ("resnet10_3d_w4_s122", (8, 32, 32), [4, 3, 2, 1, 0]),
    ],
)
def test_any_backbone_with_stages_gets_maps_of_the_images_size(name, size, skips):
    backbone = build_backbone(name, channels=1)
    decoder = UNetDecoder(backbone, width=4)
    assert [stage for stage, _ in decoder.plan] == skips
    x = torch.randn(2, 1, *size)
    result = decoder(backbone(x), size)
    assert result.shape == (2, 4, *size)
    pixel_head(4, 2, backbone.ndim)(result).sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_u_net_overfits_one_image(name):
    torch.manual_seed(0)
    backbone = build_backbone(name)
    decoder, head = UNetDecoder(backbone, width=4), pixel_head(4, 2)
    x = torch.rand(1, 3, 48, 48)
    y = (F.interpolate(torch.rand(1, 1, 6, 6), (48, 48), mode="bicubic") > 0.5).long()[:, 0]
    parameters = [p for part in (backbone, decoder, head) for p in part.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    for _ in range(40):
        scores = head(decoder(backbone(x), (48, 48)))
        optimizer.zero_grad()
        F.cross_entropy(scores, y).backward()
        optimizer.step()
    predicted = scores.argmax(1)
    assert 2 * (predicted & y).sum() / (predicted.sum() + y.sum()) > 0.95  # Dice


def test_a_file_without_this_decoder_is_refused(tmp_path):
    decoder = UNetDecoder(build_backbone("resnet18"))
    with pytest.raises(UserError, match="there are no weights"):
        load_decoder(decoder, tmp_path / "no.pt")
    state = decoder.state_dict()
    torch.save({"decoder_state_dict": dict(list(state.items())[6:])}, tmp_path / "part.pt")
    with pytest.raises(UserError, match=r"lacks blocks\.0"):
        load_decoder(decoder, tmp_path / "part.pt")
    torch.save({"decoder_state_dict": UNetDecoder(build_backbone("regnetx_002")).state_dict()}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"has other shapes of blocks\.0"):
        load_decoder(decoder, tmp_path / "other.pt")
