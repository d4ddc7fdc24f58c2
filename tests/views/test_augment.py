"""Options of views that change nothing are named."""

import pytest

from densepath.training.config import PretrainConfig
from densepath.training.recipes import load_recipe, own_augment, recipe_names
from densepath.training.resolve import resolve
from densepath.transfer.classify.config import ClassifyConfig, Crops
from densepath.transfer.segment.config import Patches, SegmentConfig
from densepath.views.augment import Augment, idle_options


@pytest.mark.parametrize(
    ("augment", "lines"),
    [
        (Augment(), []),
        (Augment(jitter=0.0, blur=0.0), []),  # the strengths are not given
        (Augment(jitter=0.0, hue=0.2), ["augment.hue: no effect without augment.jitter"]),
        (Augment(jitter=0.5, hue=0.2), []),
        (Augment(rotation_axes="all"), ["augment.rotation_axes: no effect without augment.rotation"]),
        (Augment(noise=0.5, noise_std=(0.0, 0.0)), ["augment.noise: no effect with augment.noise_std [0.0, 0.0]"]),
        (Augment(noise_std=(0.0, 0.2)), ["augment.noise_std: no effect without augment.noise"]),
        (Augment(stain=0.5, stain_strength=0.0), ["augment.stain: no effect with augment.stain_strength 0.0"]),
        (Crops(brightness=0.2), ["augment.brightness: no effect without augment.jitter"]),
        (Patches(blur_sigma=(1.0, 3.0)), ["augment.blur_sigma: no effect without augment.blur"]),
        (Patches(blur=0.5, blur_sigma=(1.0, 3.0)), []),
    ],
)
def test_options_without_effect_are_named(augment, lines):
    assert idle_options(augment) == lines


def test_an_option_named_so_changes_no_view():
    for name, value in {
        "hue": 0.2,
        "gamma_power": (2.0, 2.0),
        "blur_sigma": (1.0, 3.0),
        "noise_std": (0.1, 0.2),
    }.items():
        off = {"jitter": 0.0, "gamma": 0.0, "blur": 0.0, "noise": 0.0}
        assert idle_options(Augment(**off, **{name: value}))
        assert Augment(**off, **{name: value}).random_view() == Augment(**off).random_view()


def test_of_the_strengths_of_a_method_none_is_named_that_nobody_gave():
    strengths = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    assert own_augment("simclr").items() >= strengths.items()
    given = Augment(**{**strengths, "jitter": 0.0, "hue": 0.3})
    assert idle_options(given, own_augment("simclr")) == ["augment.hue: no effect without augment.jitter"]


@pytest.mark.parametrize("verb", ["", "classify", "segment"])
def test_recipes_have_no_such_options(verb):
    schema = {"": PretrainConfig, "classify": ClassifyConfig, "segment": SegmentConfig}[verb]
    for name in recipe_names(verb):
        if load_recipe(name, verb).get("augment"):
            needed = {"data": "D", "out": "R", "labels": "folders"} | ({"weights": "random"} if verb else {})
            given = {option: value for option, value in needed.items() if option not in load_recipe(name, verb)}
            assert idle_options(resolve(schema, name, given, verb).augment) == [], name
