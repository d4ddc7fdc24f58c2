"""Points follow the pixels of their views, and are counted where they lie."""

import pytest
import torch

from densepath.core.affine import identity, warp_points
from densepath.core.regions import Regions, point_counts
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.views.crops import Crop
from densepath.views.declarations import RandomView
from densepath.views.maker import ViewMaker

NAN = float("nan")


@pytest.mark.parametrize("d", [2, 3])
def test_counts_equal_a_loop(d):
    grid = (3, 4, 5)[:d]
    points = torch.rand(4, 200, d) * 2.4 - 1.2
    points[:, 150:] = NAN
    counts = point_counts(points, grid)
    for image in range(4):
        expected = torch.zeros(grid, dtype=torch.int64)
        for point in points[image, :150].tolist():
            place = [int((c + 1) / 2 * n // 1) for c, n in zip(reversed(point), grid, strict=True)]
            if all(0 <= p < n for p, n in zip(place, grid, strict=True)):
                expected[tuple(place)] += 1
        assert torch.equal(counts[image], expected)
    assert point_counts(torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]]), (2, 2)).tolist() == [[[1, 0], [0, 1]]]  # edges


def test_positions_with_points_and_without_are_two_regions():
    points = torch.tensor([[[-0.9, -0.9], [-0.8, -0.9], [0.9, 0.9]], [[NAN, NAN]] * 3])
    regions = Regions.of_points(points, (2, 2))
    assert regions.area.tolist() == [[2, 2], [0, 4]]
    assert regions.present().tolist() == [[True, True], [False, True]]
    features = torch.arange(4.0).view(1, 1, 2, 2).expand(2, -1, -1, -1)
    assert regions.pool(features)[0, :, 0].tolist() == [1.5, 1.5]
    assert regions.pool(features)[1, :, 0].tolist() == [0, 1.5]


def test_padding_stays_outside_in_every_view():
    points = torch.tensor([[[0.1, 0.2], [NAN, NAN]]])
    moved, inside = warp_points(points, identity(1), 0.5 * identity(1))
    torch.testing.assert_close(moved[0, 0], torch.tensor([0.2, 0.4]))
    assert moved[0, 1].isnan().all() and inside.tolist() == [[True, False]]


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize(("rotation", "quarter_turns"), [(0.0, False), (0.0, True), (25.0, True)])
def test_a_painted_dot_is_where_its_point_says(d, rotation, quarter_turns):
    """In every crop, flip and turn: the brightest pixel of a view lies in the position that its point is counted in."""
    count, side = 40, (48, 40, 44)[:d]
    images = torch.zeros(count, *side, 1, dtype=torch.uint8)
    points = torch.full((count, 3, d), NAN)
    generator = torch.Generator().manual_seed(d)
    for image in range(count):
        center = [int(torch.randint(3, n - 3, (), generator=generator)) for n in side]
        images[(image, *(slice(c - 1, c + 2) for c in center), 0)] = 100
        images[(image, *center, 0)] = 255
        points[image, 1] = torch.tensor([(2 * c + 1) / n - 1 for c, n in zip(center, side, strict=True)]).flip(0)
    spec = PixelSpec(d, 1, mean=(0.0,), std=(1.0,))
    crop = Crop(scale=(0.3, 1.0), flip=(0.5,) * d, rotation=rotation, rotation_axes="all", quarter_turns=quarter_turns)
    batch = ImageBatch(images, torch.tensor([side] * count), torch.arange(count))
    view = ViewMaker({"view": RandomView(crop, count=2)}, 32, 0, spec)(batch)["view"]
    moved, inside = warp_points(points.repeat(2, 1, 1), identity(2 * count, d), view.map)
    assert inside[:, [0, 2]].logical_not().all()
    seen = 0
    for row in range(2 * count):
        counts = point_counts(moved[row : row + 1], (32,) * d)[0]
        assert counts.sum() == inside[row, 1]
        if inside[row, 1] and moved[row, 1].abs().max() < 0.9:
            brightest = torch.tensor(torch.unravel_index(view.pixels[row, 0].argmax(), (32,) * d))
            place = torch.tensor(torch.unravel_index(counts.argmax(), (32,) * d))
            assert (brightest - place).abs().max() <= 1  # the dot may lie on the border of two
            seen += 1
    assert seen > count // 2
