"""The learned vectors at masked positions after the stem."""

import pytest
import torch

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.masked_stem import MaskedStages, MaskedStem
from densepath.nets.sparse import Visible

PATCHES = torch.tensor([[[True, False], [False, False]], [[False, True], [False, False]]])
VISIBLE = Visible(PATCHES, 1)


def spread(visible, size):
    return visible.repeat_interleave(size // 2, 1).repeat_interleave(size // 2, 2).unsqueeze(1)


@pytest.mark.parametrize(
    ("name", "end", "stem", "strides"),
    [
        ("test_resnet", "before_pool", ("conv1", "bn1", "act1"), (2, 4, 8, 16, 32)),
        ("test_resnet", "after_pool", ("conv1", "bn1", "act1", "maxpool"), (4, 4, 8, 16, 32)),
        ("regnetx_002", "before_pool", ("stem",), (2, 4, 8, 16, 32)),
        ("test_convnext", "before_pool", ("stem_0", "stem_1"), (4, 4, 8, 16, 32)),
    ],
)
def test_the_token_stands_where_the_image_is_hidden_and_nowhere_else(name, end, stem, strides):
    backbone = build_backbone(name).eval()
    masked = MaskedStem(backbone, end)
    pixels = torch.randn(2, 3, 64, 64)
    maps = masked(backbone, pixels, VISIBLE)
    e = pixels * spread(PATCHES, 64)
    for module in stem:
        e = backbone.net[module](e)
    z = maps[0]
    seen = spread(PATCHES, z.shape[-1]).expand_as(z)
    assert torch.equal(z[seen], e[seen])
    assert torch.equal(z[~seen], masked.token.view(1, -1, 1, 1).expand_as(z)[~seen])
    assert masked.strides == strides
    assert [x.shape[1:] for x in maps] == [
        (c, 64 // stride, 64 // stride) for c, stride in zip(masked.channels, strides, strict=True)
    ]


def test_stages_after_the_stem_are_those_of_the_backbone():
    """With everything visible the maps are the plain ones."""
    backbone = build_backbone("test_resnet").eval()
    pixels = torch.randn(2, 3, 64, 64)
    maps = MaskedStem(backbone)(backbone, pixels, Visible(torch.ones(2, 2, 2, dtype=torch.bool), 4))
    assert all(torch.equal(one, other) for one, other in zip(maps, backbone(pixels).values(), strict=True))


def test_the_mode_of_the_backbone_is_not_changed():
    backbone = build_backbone("test_resnet")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    MaskedStem(backbone)
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_visible_patches_reach_masked_positions():
    """Dense convolutions: a change in a visible patch reaches the masked positions of later maps."""
    backbone = build_backbone("test_resnet").eval()
    masked = MaskedStem(backbone)
    pixels = torch.randn(2, 3, 128, 128)
    other = pixels.clone()
    other[0, :, :64, :64] += 1.0
    for depth, (one, two) in enumerate(zip(*(masked(backbone, x, VISIBLE) for x in (pixels, other)), strict=True)):
        hidden = ~spread(PATCHES, one.shape[-1])[:1].expand(1, one.shape[1], -1, -1)
        assert bool((one[:1][hidden] != two[:1][hidden]).any()) == (depth > 0)


def test_a_sparse_encoder_passes_nothing_across_masked_patches_and_has_a_token_in_each_map():
    backbone = build_backbone("test_resnet").eval()
    masked = MaskedStages(backbone)
    pixels = torch.randn(2, 3, 64, 64)
    other = pixels.clone()
    other[0, :, :32, :32] += 1.0
    for one, two, token in zip(*(masked(backbone, x, VISIBLE) for x in (pixels, other)), masked.tokens, strict=True):
        seen = spread(PATCHES, one.shape[-1]).expand_as(one)
        assert torch.equal(one[~seen], token.view(1, -1, 1, 1).expand_as(one)[~seen])
        assert torch.equal(one[~seen], two[~seen]) and not torch.equal(one[seen], two[seen])
    assert (masked.channels, masked.strides) == (MaskedStem(backbone).channels, (2, 4, 8, 16, 32))


@pytest.mark.parametrize("name", ["regnetx_002", "test_convnext"])
def test_a_stem_ends_after_a_max_pool_only_where_there_is_one(name):
    with pytest.raises(UserError, match=rf"{name} has no max-pool after its stem.*--method\.stem after_pool"):
        MaskedStem(build_backbone(name), "after_pool")


def test_a_network_that_has_no_sparse_form_is_refused():
    with pytest.raises(UserError, match="no sparse form"):
        MaskedStages(build_backbone("regnety_002"))
