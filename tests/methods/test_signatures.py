"""Hyper-parameters that a method takes from the one that it builds on."""

import inspect
import math
from typing import Any, TypedDict, Unpack, get_type_hints

import numpy as np
import pytest
import torch

from densepath.core.errors import UserError
from densepath.methods import (
    DINO,
    PCLV2,
    Cellback,
    ConCL,
    DenseCL,
    Method,
    MoCoV1,
    MoCoV2,
    SemanticGenesis,
    SwAV,
)
from densepath.methods.moco_v2 import MoCoOptions
from densepath.nets.backbones import Backbone, build_backbone
from densepath.options import options_of
from densepath.training.recipes import all_options

SHARED = ("dim", "hidden_dim", "temperature", "queue_size", "momentum", "standardize", "shuffle")


def test_the_typed_dictionary_is_the_constructor_of_moco():
    hints = get_type_hints(MoCoV2.__init__)
    assert get_type_hints(MoCoOptions) == {name: hints[name] for name in SHARED}
    assert set(inspect.signature(MoCoV2).parameters) == {"backbone", *SHARED}


@pytest.mark.parametrize("method", [ConCL, DenseCL, PCLV2])
def test_what_builds_on_moco_has_its_options_and_defaults(method):
    base = inspect.signature(MoCoV2).parameters
    own = inspect.signature(method).parameters
    assert {name: own[name].default for name in SHARED} == {name: base[name].default for name in SHARED}
    assert "moco" not in own


def test_moco_v1_has_no_hidden_layer_and_a_temperature_of_its_own():
    assert all_options("moco_v1", {}) == {
        "dim": 128,
        "temperature": 0.07,
        "queue_size": 16384,
        "momentum": 0.999,
        "standardize": False,
        "shuffle": True,
    }
    with pytest.raises(TypeError, match="hidden_dim"):
        MoCoV1(build_backbone("test_resnet"), hidden_dim=3)


@pytest.mark.parametrize("method", [MoCoV1, ConCL, DenseCL, PCLV2])
def test_inherited_options_are_typed_and_explained_on_the_command_line(method):
    shown = {option.key: option for option in options_of(method, skip=["backbone"])}
    assert shown["queue_size"].annotation is int and shown["queue_size"].help == "number of keys kept as negatives."
    assert shown["shuffle"].annotation is bool and shown["shuffle"].help.startswith("whether keys are shuffled")
    assert all(option.help for option in shown.values())


def test_they_are_given_by_name_in_python():
    method = ConCL(build_backbone("test_resnet"), num_concepts=6, queue_size=48, dim=8, concept_queue_size=64)
    assert (method.source.num_concepts, method.queue.size, method.concept_queue.rows.shape) == (6, 48, (65, 8))
    with pytest.raises(UserError, match="temperature must be positive"):
        ConCL(build_backbone("test_resnet"), temperature=0)
    with pytest.raises(TypeError, match="queue_length"):
        ConCL(build_backbone("test_resnet"), queue_length=48)


class Mixin:
    """What a user may derive a method from as well."""


def test_a_method_from_elsewhere_inherits_as_it_likes():
    class Plain(MoCoV2):
        def __init__(self, backbone, extra: int = 1) -> None:
            super().__init__(backbone)

    class Everything(ConCL):
        def __init__(self, backbone, dim: int = 7, **rest: Any) -> None:
            super().__init__(backbone, dim=dim, **rest)

    class Untyped(Mixin, ConCL):
        def __init__(self, backbone, dim=7, **rest) -> None:
            super().__init__(backbone, dim=dim, **rest)

    class Same(Plain):
        pass

    assert (
        list(inspect.signature(Plain).parameters) == list(inspect.signature(Same).parameters) == ["backbone", "extra"]
    )
    everything = inspect.signature(Everything).parameters
    assert everything["dim"].default == 7 and everything["queue_size"].default == 16384
    assert everything.keys() == inspect.signature(ConCL).parameters.keys()
    assert inspect.signature(Untyped).parameters.keys() == everything.keys()


def test_an_option_that_the_base_class_lacks_is_a_mistake_of_the_programmer():
    with pytest.raises(TypeError, match="Wrong passes colour to MoCoV2, which does not take it"):

        class Wrong(MoCoV2):
            def __init__(self, backbone, **rest: Unpack[Options]) -> None: ...


class Options(TypedDict):
    colour: int


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (ConCL, {"temperature": math.nan}, "temperature is nan; give a finite number"),
        (ConCL, {"concept_weight": math.nan}, "concept_weight is nan; give a finite number"),
        (MoCoV2, {"temperature": np.float32("inf")}, "temperature is inf; give a finite number"),
        (Cellback, {"region_weight": -0.5}, "region_weight is -0.5; give 0 or more"),
        (SwAV, {"prototypes": -1}, "two prototypes or more, not -1"),
        (DINO, {"prototypes": 1}, "two prototypes or more, not 1"),
        (Cellback, {"region_weight": -(10**400)}, "region_weight is -1000*; give 0 or more"),
        (SemanticGenesis, {"classification_weight": -1}, "classification_weight is -1; give 0 or more"),
    ],
)
def test_numbers_with_which_nothing_can_be_trained_are_refused(method, options, message):
    with pytest.raises(UserError, match=message):
        method(build_backbone("test_resnet"), **options)


def test_a_method_of_the_user_may_have_such_defaults():
    class Own(Method):
        def __init__(self, backbone: Backbone, limit: float = math.inf, entropy_weight: float = -0.1) -> None:
            super().__init__()
            self.backbone, self.limit = backbone, limit

    assert Own(build_backbone("test_resnet"), limit=math.inf, entropy_weight=-0.1).limit == math.inf
    with pytest.raises(UserError, match="limit is nan"):
        Own(build_backbone("test_resnet"), limit=math.nan)


class Limited(Method):
    """Its defaults are numbers that are refused otherwise, and a number for what may also be an array."""

    def __init__(
        self,
        backbone: Backbone,
        limit: Any = math.nan,
        limits: Any = (math.inf, 1.0),
        class_weights: Any = None,
        scale: Any = 1.0,
        size: int = 1,
    ) -> None:
        super().__init__()
        self.backbone = backbone


@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": np.array([1.0, 2.0])},
        {"class_weights": [np.array([1.0, 2.0]), torch.ones(2)]},
        {"scale": torch.ones(2)},
        {"scale": np.ones((2, 2))},
        {"size": 10**400},
        {"size": -(10**400)},
        {"limit": float("nan")},
        {"limit": np.float32("nan")},
        {"limits": [math.inf, 1.0]},
    ],
)
def test_arrays_large_integers_and_numbers_of_the_default_are_taken(options):
    assert isinstance(Limited(build_backbone("test_resnet"), **options), Limited)


@pytest.mark.parametrize("options", [{"limits": (math.nan, 1.0)}, {"limit": math.inf}, {"class_weights": [math.inf]}])
def test_numbers_that_are_not_finite_are_refused_where_the_default_has_others(options):
    with pytest.raises(UserError, match="give a finite number"):
        Limited(build_backbone("test_resnet"), **options)


def test_what_a_method_passes_on_is_checked_by_its_base_class():
    class Own(Cellback):
        def __init__(self, backbone: Backbone, region_weight: float = -0.5, **rest: Any) -> None:
            super().__init__(backbone, region_weight=region_weight, **rest)

    with pytest.raises(UserError, match=r"region_weight is -0\.5; give 0 or more"):
        Own(build_backbone("test_resnet"))
