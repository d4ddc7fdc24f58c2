"""The region stage of HIPT: windows of grids of features."""

from dataclasses import replace

import pytest
import torch

from densepath.core.errors import UserError
from densepath.methods import DINO, HIPTRegion
from densepath.nets.backbones import build_backbone
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker

SPEC = PixelSpec(2, 5, (-8.0, 8.0), (0.5,) * 5, (1 / 16,) * 5)  # the network sees the values themselves
SMALL = "vit_tiny_patch16_224(img_size=14, patch_size=1, embed_dim=16, depth=2, num_heads=2, patch_gelu=True)"


@pytest.fixture
def grids():
    """Three regions of features, other ones in each position."""
    features = torch.randn(3, 16, 16, 5, generator=torch.Generator().manual_seed(0))
    return ImageBatch(features, torch.full((3, 2), 16), torch.arange(3), progress=0.5)


def test_crops_are_exact_windows_at_all_places_in_both_directions(grids):
    maker, found = ViewMaker(HIPTRegion.views(), 14, seed=0, spec=SPEC), {14: set(), 6: set()}
    for epoch in range(12):
        batch = maker(replace(grids, epoch=float(epoch)))
        for view in batch.views.values():
            for row, crop in enumerate(view.pixels):
                whole, side = grids.pixels[row % 3].movedim(-1, 0), crop.shape[-1]
                windows = whole.unfold(1, side, 1).unfold(2, side, 1).permute(1, 2, 0, 3, 4)  # (top, left, C, h, w)
                same = [
                    (*place, flipped)
                    for flipped, window in enumerate((crop, crop.flip(-1)))
                    for place in ((windows - window).abs().amax((2, 3, 4)) < 1e-4).nonzero().tolist()
                ]
                assert len(same) == 1
                found[side].add(same[0])
    assert {place[:2] for place in found[14]} == {(top, left) for top in range(3) for left in range(3)}
    assert {place[2] for place in found[6]} == {0, 1} and len({place[:2] for place in found[6]}) > 90


def test_it_is_dino_on_features_and_overfits_one_batch(grids, losses_on):
    options = {"prototypes": 32, "hidden_dim": 32, "dim": 16, "local_crops": 3, "drop_path": 0.0, "momentum": 0.996}
    methods = []
    for kind in (HIPTRegion, DINO):
        torch.manual_seed(0)
        methods.append(kind(build_backbone(SMALL, 5), pool="cls", center_momentum=0.99, **options))
    views = ViewMaker(HIPTRegion.views(crops=3), 14, seed=0, spec=SPEC)
    batch = replace(views(grids), progress=1.0)
    assert torch.equal(methods[0](batch).total, methods[1](batch).total)
    history = losses_on(methods[0], batch, steps=25, lr=0.2)
    assert history[-1] < 0.95 * history[0]


def test_colors_of_features_are_not_augmented():
    with pytest.raises(UserError, match="leave out --augment"):
        HIPTRegion.views(Augment())
