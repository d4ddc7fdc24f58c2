"""Several crops of each image in one view, views of other sizes, and exact turns of other views."""

from dataclasses import replace

import pytest
import torch

from densepath.core.affine import apply, between, compose, identity
from densepath.core.errors import UserError
from densepath.core.random import uniform
from densepath.options import options_of
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.training.config import PretrainConfig
from densepath.transfer.classify.config import ClassifyConfig, Crops
from densepath.transfer.segment.config import Patches, SegmentConfig
from densepath.views.appearance import Appearance
from densepath.views.augment import Augment
from densepath.views.color import Grayscale
from densepath.views.crops import Crop
from densepath.views.declarations import Cover, RandomView, Turned, view_sizes, without_color
from densepath.views.geometry import quarter_turns
from densepath.views.intensity import GaussianBlur, GaussianNoise, IntensityJitter
from densepath.views.maker import ViewMaker
from densepath.views.turns import indicator

GREY = PixelSpec(2, 1, mean=(0.5,), std=(0.25,))
VOLUME = PixelSpec(3, 2, (-1000.0, 1000.0), (0.5, 0.4), (0.25, 0.2))


def images(count: int = 5, spec: PixelSpec | None = None) -> ImageBatch:
    spec = spec or PixelSpec()
    size = (60, 72) if spec.ndim == 2 else (20, 28, 24)
    generator = torch.Generator().manual_seed(0)
    if spec.ndim == 2:
        pixels = torch.randint(0, 256, (count, *size, spec.channels), generator=generator, dtype=torch.uint8)
    else:
        pixels = torch.randint(-1200, 1200, (count, *size, spec.channels), generator=generator, dtype=torch.int16)
    return ImageBatch(pixels, torch.tensor([size] * count), torch.arange(3, 3 + count))


@pytest.mark.parametrize("rotation", [0.0, 20.0])
@pytest.mark.parametrize("spec", [PixelSpec(), VOLUME], ids=["2D", "3D"])
def test_local_crops_are_one_view_each_by_random_numbers_of_its_own(spec, rotation):
    """Row k * B + b is the single view with number 1 + (k << 8) of image b."""
    local = replace(Augment(rotation=rotation).random_view(96 / 224, 4), appearance=(GaussianBlur(0.5, (0.1, 1.0)),))
    maker = ViewMaker({"global": RandomView(), "local": local}, 28, 0, spec)
    assert maker.sizes() == {"global": (28,) * spec.ndim, "local": (12,) * spec.ndim}
    batch = images(spec=spec)
    views = maker(batch)
    assert views["local"].pixels.shape == (20, spec.channels, *[12] * spec.ndim)
    assert views["local"].map.shape == (20, spec.ndim, spec.ndim + 1)
    assert len(views["local"].map.flatten(1).unique(dim=0)) == 20
    numbers = maker.draw(batch.index, batch.sizes).views["local"].draw
    single = ViewMaker({"global": RandomView(), "local": replace(local, count=1)}, 28, 0, spec)
    plan = single.draw(batch.index, batch.sizes)
    for crop in range(4):
        rows = slice(5 * crop, 5 * crop + 5)
        assert torch.equal(numbers.take(rows)(3), uniform(0, 0, batch.index, 1 + (crop << 8), 3))
        planned = replace(plan.views["local"], map=views["local"].map[rows], draw=numbers.take(rows))
        alone = single.make(batch, replace(plan, views={**plan.views, "local": planned}))
        torch.testing.assert_close(alone["local"].pixels, views["local"].pixels[rows])
    torch.testing.assert_close(single(batch)["local"].pixels, views["local"].pixels[:5])


def test_crops_of_many_images_are_the_same_in_any_batch():
    maker = ViewMaker({"a": RandomView(count=3, appearance=(GaussianNoise(0.7),))}, 16, 1)
    whole = images(6)
    part = replace(whole, pixels=whole.pixels[2:5], sizes=whole.sizes[2:5], index=whole.index[2:5])
    views, of_part = maker(whole)["a"], maker(part)["a"]
    rows = torch.tensor([6 * crop + image for crop in range(3) for image in (2, 3, 4)])
    assert torch.equal(views.map[rows], of_part.map)
    torch.testing.assert_close(views.pixels[rows], of_part.pixels)


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("spec", [GREY, VOLUME], ids=["2D", "3D"])
def test_turned_views_are_exact_copies_and_their_indicator_says_how(spec, clean):
    views = {
        "input": RandomView(Crop(rotation=10.0, flip=(0.5, 0.5)), (IntensityJitter(1.0),), count=2),
        "target": Turned("input", clean=clean),
    }
    batch = images(24, spec)
    made = ViewMaker(views, 16, 0, spec)(batch)
    shown = made["input"].pixels
    if clean:  # the same crops, which no operation changes
        shown = ViewMaker({"input": replace(views["input"], appearance=())}, 16, 0, spec)(batch)["input"].pixels
        assert not torch.equal(shown, made["input"].pixels)
    how = indicator(made["input"].map, made["target"].map)
    assert how.shape == (48, spec.ndim + 4)
    for source, target, row in zip(shown, made["target"].pixels, how, strict=True):
        axes = [-1 - axis for axis in range(spec.ndim) if row[axis]]
        expected = torch.rot90(source.flip(axes), int(row[spec.ndim :].argmax()), (-2, -1))
        assert torch.equal(target, expected)
    assert len(how.unique(dim=0)) == 8 * (spec.ndim - 1)  # all that a square has, up and down


@pytest.mark.parametrize("d", [2, 3])
def test_each_flip_and_turn_has_one_indicator(d):
    seen = {}
    for code in range(2**d * 4):
        flips = torch.tensor([1.0 - 2 * (code >> axis & 1) for axis in range(d)])
        turns = torch.tensor([code >> d])
        turn = compose(torch.cat((torch.diag(flips), torch.zeros(d, 1)), 1).unsqueeze(0), quarter_turns(turns, d))
        row = tuple(indicator(identity(1, d), turn)[0].tolist())
        points = apply(turn, torch.eye(d).unsqueeze(0))
        assert torch.equal(seen.setdefault(row, points), points)
    assert len(seen) == 8 * 2 ** (d - 2)


def test_maps_that_are_not_turns_have_no_indicator():
    for wrong in (0.5 * identity(1), torch.tensor([[[0.8, -0.6, 0], [0.6, 0.8, 0]]]), identity(1) + 0.1):
        with pytest.raises(ValueError, match="not flips and quarter turns"):
            indicator(identity(1), wrong)


def test_a_view_can_cover_others_in_a_volume():
    made = ViewMaker({"a": RandomView(), "b": RandomView(), "c": Cover(("a", "b"))}, 12, 0, VOLUME)(images(8, VOLUME))
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    inside = [apply(between(made["c"].map, made[name].map), corners.expand(8, -1, -1)) for name in "ab"]
    reach = torch.cat(inside, 1)
    torch.testing.assert_close(reach.amax(1), torch.ones(8, 3))
    torch.testing.assert_close(reach.amin(1), -torch.ones(8, 3))


@pytest.mark.parametrize(
    ("views", "spec", "size", "message"),
    [
        ({"a": Augment().random_view()}, GREY, 32, "1 channel, not 3, cannot have ColorJitter and Grayscale; set "),
        ({"a": RandomView(Crop(quarter_turns=True))}, GREY, (32, 48), "48 x 32 px cannot be rotated by quarter turns"),
        ({"a": RandomView(), "b": Turned("a")}, VOLUME, (8, 32, 48), "cannot be rotated by quarter turns"),
        ({"a": RandomView(Crop(flip=(0.5, 0.5, 0.5)))}, GREY, 32, "2 dimensions cannot be flipped along z"),
        ({"a": RandomView()}, VOLUME, (32, 32), "view_size .* has 2 sides, and the images have 3 dimensions"),
        ({"a": RandomView(size=0.01)}, GREY, 32, "the view a would have 0 x 0 px"),
        ({"a": RandomView(count=0)}, GREY, 32, "1 to 128 crops of each image, not 0"),
        ({"b": Turned("a"), "a": RandomView()}, GREY, 32, "the view b refers to 'a', which must be declared before it"),
        ({"a": RandomView(count=2), "b": Cover(("a", "a"))}, GREY, 32, "can cover a only if that has one crop"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_run(views, spec, size, message):
    with pytest.raises(UserError, match=message):
        ViewMaker(views, size, 0, spec)


def test_images_without_colors_keep_what_makes_sense_of_a_methods_own_look():
    own = {"a": Augment(stain=0.5).random_view()}
    views, changed = without_color(own, own, GREY)
    assert views["a"].appearance == (IntensityJitter(0.8, 0.4, 0.4), GaussianBlur())
    assert changed == ("StainJitter", "ColorJitter", "Grayscale")
    ViewMaker(views, 16, 0, GREY)(images(2, GREY))
    assert without_color(own, own, PixelSpec()) == (own, ())
    asked = {"a": Augment(hue=0.3).random_view()}
    with pytest.raises(UserError, match=r"cannot have ColorJitter; set augment\.saturation, augment\.hue to 0"):
        ViewMaker(without_color(asked, own, GREY)[0], 16, 0, GREY)
    plain = {"a": Augment(brightness=0.7, saturation=0, hue=0).random_view()}
    assert IntensityJitter(0.8, 0.7, 0.4) in without_color(plain, own, GREY)[0]["a"].appearance


@pytest.mark.parametrize("kind", [kind for kind in Appearance.__subclasses__() if kind.channels is not None])
def test_an_operation_on_colors_names_the_options_that_turn_it_off(kind):
    options = [f"augment.{option}" for option in kind.turned_off_by]
    off = {"stain": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0}
    on = dict.fromkeys(kind.turned_off_by, 0.3)
    with pytest.raises(UserError, match=rf"cannot have {kind.__name__}; set {', '.join(options)} to 0"):
        ViewMaker(without_color({"a": Augment(**off | on).random_view()}, {}, GREY)[0], 16, 0, GREY)
    ViewMaker(without_color({"a": Augment(**off).random_view()}, {}, GREY)[0], 16, 0, GREY)
    for schema in (PretrainConfig, ClassifyConfig, SegmentConfig):
        made = [type(each) for each in _everything(schema).appearance]
        assert kind not in made or {*options} <= {option.key for option in options_of(schema)}


def test_a_users_own_operation_on_colors_is_to_be_left_out():
    class Swap(Appearance):
        channels = 3

        def apply(self, x, draw):
            return x.flip(1)

    for operations, advice in (((Swap(),), "leave it out"), ((Swap(), Grayscale(0.2)), "leave them out")):
        with pytest.raises(UserError, match=f"cannot have Swap.*; {advice}$"):
            ViewMaker({"a": RandomView(appearance=operations)}, 16, 0, GREY)


def _everything(schema):
    """The view of a verb with all operations that its options can turn on."""
    names = {option.key.removeprefix("augment.") for option in options_of(schema)}
    kind = {PretrainConfig: Augment, ClassifyConfig: Crops, SegmentConfig: Patches}[schema]
    return kind(**{name: 0.5 for name in ("stain", "jitter", "grayscale") if name in names}).random_view()


def test_options_of_the_command_line_describe_a_view_and_back():
    for options in ({}, {"jitter": 0.0, "noise": 0.3, "gamma": 0.2}, {"rotation": 5.0, "depth_flip": 0.5, "stain": 1}):
        assert Augment.of_view(Augment(**options).random_view()) == Augment(**options)
    assert view_sizes({"a": RandomView(size=96 / 224)}, (224, 112), 2) == {"a": (96, 48)}
