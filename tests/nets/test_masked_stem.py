"""What stands behind the stem where an image is hidden."""

import pytest
import torch

from densepath.nets.backbones import build_backbone
from densepath.nets.masked_stem import MaskedStem

VISIBLE = torch.tensor([[[True, False], [False, False]], [[False, True], [True, False]]])


def spread(visible, size):
    return visible.repeat_interleave(size // 2, 1).repeat_interleave(size // 2, 2).unsqueeze(1)


@pytest.mark.parametrize(
    ("name", "end", "stem", "strides"),
    [
        ("test_resnet", "before_pool", ("conv1", "bn1", "act1"), (2, 4, 8, 16, 32)),
        ("test_resnet", "after_pool", ("conv1", "bn1", "act1", "maxpool"), (4, 4, 8, 16, 32)),
        ("regnetx_002", "after_pool", ("stem",), (2, 4, 8, 16, 32)),
        ("test_convnext", "before_pool", ("stem_0", "stem_1"), (4, 4, 8, 16, 32)),
    ],
)
def test_the_token_stands_where_the_image_is_hidden_and_nowhere_else(name, end, stem, strides):
    backbone = build_backbone(name).eval()
    masked = MaskedStem(backbone, end)
    pixels = torch.randn(2, 3, 64, 64)
    maps = masked(backbone, pixels, VISIBLE)
    e = pixels * spread(VISIBLE, 64)
    for module in stem:
        e = backbone.net[module](e)
    z = maps[0]
    seen = spread(VISIBLE, z.shape[-1]).expand_as(z)
    assert torch.equal(z[seen], e[seen])
    assert torch.equal(z[~seen], masked.token.view(1, -1, 1, 1).expand_as(z)[~seen])
    assert masked.strides == strides
    assert [x.shape[1:] for x in maps] == [
        (c, 64 // stride, 64 // stride) for c, stride in zip(masked.channels, strides, strict=True)
    ]


def test_stages_behind_the_stem_are_those_of_the_backbone():
    """With everything visible the maps are the plain ones."""
    backbone = build_backbone("test_resnet").eval()
    pixels = torch.randn(2, 3, 64, 64)
    maps = MaskedStem(backbone)(backbone, pixels, torch.ones(2, 2, 2, dtype=torch.bool))
    assert all(torch.equal(one, other) for one, other in zip(maps, backbone(pixels).values(), strict=True))


def test_the_mode_of_the_backbone_is_left_alone():
    backbone = build_backbone("test_resnet")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    MaskedStem(backbone)
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_visible_parts_tell_of_themselves_where_nothing_is_visible():
    """Dense convolutions: a change in a visible patch reaches the hidden cells of later maps."""
    backbone = build_backbone("test_resnet").eval()
    masked = MaskedStem(backbone)
    pixels = torch.randn(2, 3, 128, 128)
    other = pixels.clone()
    other[0, :, :64, :64] += 1.0
    for depth, (one, two) in enumerate(zip(*(masked(backbone, x, VISIBLE) for x in (pixels, other)), strict=True)):
        hidden = ~spread(VISIBLE, one.shape[-1])[:1].expand(1, one.shape[1], -1, -1)
        assert bool((one[:1][hidden] != two[:1][hidden]).any()) == (depth > 0)
