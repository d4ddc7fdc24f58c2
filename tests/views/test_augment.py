"""Options of views that change nothing are named."""

from dataclasses import replace

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
        (Augment(jitter=0.0, hue=0.2, blur=0.0, blur_sigma=(1.0, 3.0)), []),  # turned off, of a recipe perhaps
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
    for name, value in {"gamma_power": (2.0, 2.0), "noise_std": (0.1, 0.2)}.items():
        assert idle_options(Augment(**{name: value}))
        assert Augment(**{name: value}).random_view() == Augment().random_view()


def test_an_operation_that_a_method_does_not_have_is_off_by_default():
    usual = own_augment("mae")
    assert usual["jitter"] == 0.0
    given = Augment(**{**usual, "scale": (0.5, 1.0), "hue": 0.3})
    assert idle_options(given, usual) == ["augment.hue: no effect without augment.jitter"]


@pytest.mark.parametrize("verb", ["", "classify", "segment"])
def test_recipes_have_no_such_options(verb):
    schema = {"": PretrainConfig, "classify": ClassifyConfig, "segment": SegmentConfig}[verb]
    for name in recipe_names(verb):
        if load_recipe(name, verb).get("augment"):
            needed = {"data": "D", "out": "R", "labels": "folders"} | ({"weights": "random"} if verb else {})
            given = {option: value for option, value in needed.items() if option not in load_recipe(name, verb)}
            config = resolve(schema, name, given, verb)
            usual = {} if verb else own_augment(config.method)
            assert idle_options(config.augment, usual) == [], name
            if not verb:  # the strengths of a recipe were not given by who turns an operation off
                assert idle_options(replace(config.augment, jitter=0.0, blur=0.0), usual) == [], name
