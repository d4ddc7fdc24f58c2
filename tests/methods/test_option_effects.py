"""Options that others turn off are named, whatever the method; those of recipes all have an effect."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from densepath.methods import METHODS
from densepath.methods.option_effects import Needed, With, one_of, without_effect
from densepath.training.recipes import all_options, load_recipe, recipe_names


@pytest.mark.parametrize(
    ("method", "given", "lines"),
    [
        ("swav", {"queue_epoch": 15, "local_crops": 0}, ["queue_epoch: no effect with queue_size 0"]),
        ("swav", {"queue_epoch": 15, "queue_size": 64, "local_size": 0.5}, []),
        ("swav", {"local_crops": 0, "local_size": 0.3}, ["local_size: no effect with local_crops 0"]),
        (
            "dino",
            {"centering": "sinkhorn", "center_momentum": 0.5},
            ["center_momentum: no effect with centering"],
        ),
        ("ibot", {"teacher_temperature_start": 0.02}, ["teacher_temperature_start: no effect with teacher_temp"]),
        ("ibot", {"teacher_temperature_start": 0.02, "teacher_temperature": 0.02}, []),
        ("concl", {"concepts": "grid", "num_concepts": 4}, ["num_concepts: no effect with concepts grid"]),
        ("concl", {"concepts": "grid", "num_concepts": 8, "grid_size": 4}, []),  # 8 is the default
        ("concl", {"num_concepts": 4, "stage": 3}, []),
        ("concl", {"num_concepts": 1, "stage": 3}, ["stage: no effect with num_concepts 1"]),
        (
            "concl",
            {"concepts": "grid", "grid_size": 2, "concept_weight": 0.0},
            ["concepts: no", "grid_size: no"],
        ),
        ("concl", {"warmup": 1.0, "concept_weight": 0.5}, ["concept_weight: no effect with warmup 1.0"]),
        ("concl", {"warmup": 0.5, "concept_weight": 0.5, "keys_per_image": 2}, []),
        ("concl", {"warmup": 0.5, "concept_weight": 0}, ["warmup: no effect with concept_weight 0"]),
        ("pcl_v2", {"warmup": 1.0, "num_clusters": (4,)}, ["num_clusters: no effect with warmup 1.0"]),
        (
            "pcrl",
            {"min_iou": 0.5, "attention_rank": 8},
            ["attention_rank: no effect", "min_iou: no effect"],
        ),
        ("pcrl", {"min_iou": 0.5, "windows": ((32, 32),), "attention": "factored", "attention_rank": 8}, []),
        ("pcrl", {"attention": "none", "contrast": "before"}, ["contrast: no effect with attention none"]),
        ("pcrl_released", {"border": (4, 4)}, ["border: no effect without windows"]),
        ("conv_mim", {"masking": "sparse", "stem": "after_pool"}, ["stem: no effect with masking sparse"]),
        ("dirl_byol", {"interactions": False, "shared_block": False}, ["shared_block: no effect without interactions"]),
        ("dirl", {"interaction_weight": 0.0, "interaction_prototypes": 8}, ["interaction_prototypes: no effect with"]),
        ("densecl", {"dense_weight": 0, "match": "geometry"}, ["match: no effect with dense_weight 0"]),
        ("moco_v2", {"dim": 8}, []),
    ],
)
def test_options_that_others_turn_off_are_named(method: str, given: Mapping[str, Any], lines: list[str]) -> None:
    found = without_effect(METHODS[method], all_options(method, given))
    assert len(found) == len(lines)
    assert all(line.startswith(f"method.{start}") for line, start in zip(found, lines, strict=True)), found


class _OfArrays:
    needed_options: ClassVar[Needed] = {"scale": (With("weights"),), "weights": (With("mode", one_of("own")),)}

    def __init__(self, mode: str = "none", weights: Any = None, scale: Any = (1.0, 1.0)) -> None: ...


@pytest.mark.parametrize("array", [list, np.array, torch.tensor])
def test_an_option_may_be_a_list_or_an_array(array: Callable[[Any], Any]) -> None:
    scale, weights = array([1.0, 2.0]), array([0.0, 0.0])
    assert without_effect(_OfArrays, {"mode": "own", "weights": weights, "scale": scale}) == []
    assert without_effect(_OfArrays, {"mode": "own", "weights": None, "scale": array([1.0, 1.0])}) == []
    assert without_effect(_OfArrays, {"mode": "own", "weights": None, "scale": scale}) == [
        "method.scale: no effect without weights"
    ]
    assert without_effect(_OfArrays, {"mode": "none", "weights": weights}) == [
        "method.weights: no effect with mode none"
    ]


def test_options_that_need_others_are_those_of_the_method() -> None:
    for name, method in METHODS.items():
        parameters = inspect.signature(method).parameters
        for cls in method.__mro__:
            for option, needed in vars(cls).get("needed_options", {}).items():
                names = {option, *(each.option for each in needed), *(each.equal for each in needed if each.equal)}
                assert names <= parameters.keys() or (cls is not method and not names & parameters.keys()), name


@pytest.mark.parametrize("recipe", recipe_names())
def test_all_options_of_recipes_have_an_effect(recipe: str) -> None:
    options = load_recipe(recipe)
    method = options["method"]
    assert without_effect(METHODS[method], all_options(method, options.get("method_options"))) == []
