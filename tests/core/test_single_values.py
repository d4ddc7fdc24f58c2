"""Single values where lists are meant: the public functions take them as the command line does."""

import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import densepath
from densepath.core.errors import UserError
from densepath.core.paths import AnyPath
from densepath.core.result import Result
from densepath.core.single_values import take_single_values
from densepath.datasets.volumes.nodules import NodulesConversion
from densepath.training.config import PretrainConfig
from densepath.training.optimizers import Optimizer
from densepath.transfer.classify.config import ClassifyConfig
from densepath.transfer.detection.config import DetectConfig
from densepath.transfer.mil.config import MilConfig
from densepath.transfer.segment.config import Patches, SegmentConfig
from densepath.views.augment import Augment


@take_single_values
def _given(
    texts: Sequence[str] = (),
    numbers: Sequence[int] | None = None,
    either: str | Path | Sequence[str] = "",
    words: tuple[str, ...] = (),
    kinds: Sequence[Literal["a", "b"]] = (),
    pair: tuple[float, float] | None = None,
    size: int | tuple[int, ...] = 1,
    switch: bool = False,
    number: int | None = None,
    share: float | None = None,
    choice: Literal["a", "b"] | None = None,
    path: AnyPath = ".",
    runs: Sequence[AnyPath] = (),
    sources: AnyPath | Sequence[AnyPath] | None = None,
    devices: int | str = "",
    pictures: int | Literal["all"] = 1,
    flags: Sequence[int | bool] = (),
    points: Sequence[tuple[int, float]] = (),
) -> dict[str, Any]:
    return {name: value for name, value in locals().items() if value not in ((), None, "", 1, False, ".")}


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("texts", "abc", ("abc",)),
        ("texts", Path("a/b"), ("a/b",)),
        ("texts", Result(Path("run"), {"loss": 1.0}), ("run",)),
        ("texts", [Result(Path("run"), {"loss": 1.0}), "x"], ("run", "x")),
        ("texts", ["x", "y"], ["x", "y"]),
        ("numbers", 4, (4,)),
        ("words", "abc", ("abc",)),
        ("kinds", "a", ("a",)),
        ("either", "abc", "abc"),
        ("either", Path("a"), Path("a")),
        ("pair", "ab", "ab"),
        ("size", 5, 5),
        ("number", np.int64(4), 4),
        ("number", 4.0, 4),
        ("choice", "b", "b"),
        ("path", Path("a"), Path("a")),
        ("runs", (each for each in ("a", Path("b"))), ("a", "b")),
        ("sources", ["a"], ["a"]),
        ("devices", np.int64(4), 4),
        ("devices", "0,1", "0,1"),
        ("pictures", "all", "all"),
        ("flags", [False, 2], [False, 2]),
        ("points", [(1, 0.5)], [(1, 0.5)]),
    ],
)
def test_a_single_value_is_a_list_of_one(name: str, value: Any, taken: Any) -> None:
    assert _given(**{name: value}) == {name: taken}


@pytest.mark.parametrize(
    ("name", "value", "says"), [("numbers", "4", "numbers, not '4'"), ("texts", 4, "texts, not 4")]
)
def test_a_single_value_of_another_type_is_refused(name: str, value: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"{name} takes {says}"):
        _given(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("switch", "no", "'no'; give True or False"),
        ("switch", [True], r"\[True\]; give True or False"),
        ("number", 4.5, "4.5; give a whole number"),
        ("number", "4", "'4'; give a whole number"),
        ("share", "0.5", "'0.5'; give a number"),
        ("share", (0.5,), r"\(0.5,\); give a number"),
        ("share", True, "True; give a number instead of True or False"),
        ("number", True, "True; give a number"),
        ("devices", True, "True; give a number"),
        ("devices", np.True_, "True; give a number"),
        ("pictures", False, "False; give a number"),
        ("size", (True, 2), r"\(True, 2\); give a number"),
        ("numbers", [1, True], r"\[1, True\]; give a number"),
        ("numbers", True, r"\(True,\); give a number"),
        ("pair", [np.False_, 1.0], r"\[False, 1.0\]; give a number"),
        ("points", [(1, True)], r"\[\(1, True\)\]; give a number"),
        ("switch", None, "None; give a value, or leave it out"),
        ("texts", None, "None; give a value, or leave it out"),
        ("choice", "c", "'c'; give a or b"),
    ],
)
def test_a_value_that_is_not_a_switch_a_number_or_a_choice_is_refused(name: str, value: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"^{name} is {says}"):
        _given(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("path", None, "a path, not None"),
        ("path", b"a", "a path, not b'a'"),
        ("path", ["a"], "a path, not a value of type list"),
        ("path", np.zeros((2, 8, 8, 3)), "a path, not a value of type ndarray; .*write_store writes images to a file"),
        ("runs", None, "paths, not None"),
        ("runs", ["a", None], "paths, not None"),
        ("sources", 5, "paths, not 5"),
    ],
)
def test_what_is_not_a_path_is_refused(name: str, value: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"^{name} takes {says}$"):
        _given(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("path", ""), ("runs", ""), ("runs", ["a", ""]), ("sources", "")])
def test_an_empty_path_is_not_the_current_folder(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^an empty path does not exist; give {name} a path$"):
        _given(**{name: value})


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    given = _given(numbers=[np.int64(4), 3], size=np.int64(5), pair=np.float32(0.5))
    assert json.dumps(given) == '{"numbers": [4, 3], "pair": 0.5, "size": 5}'


def test_all_public_functions_take_single_values_and_check_paths() -> None:
    functions = [each for name in densepath.__all__ if inspect.isfunction(each := getattr(densepath, name))]
    lists = re.compile(r"Sequence\[|, \.\.\.\]|AnyPath|^str \| Path")
    taking = [
        f for f in functions if any(lists.search(str(p.annotation)) for p in inspect.signature(f).parameters.values())
    ]
    assert len(taking) > 40 and not [f.__name__ for f in taking if inspect.unwrap(f) is f]


def test_fields_of_options_take_single_values() -> None:
    assert densepath.Conversion("s", "d", exclude="a*").exclude == ("a*",)
    config = MilConfig("f", "t.csv", "o", lr=0.1, classes="bright3")  # type: ignore[arg-type]
    assert (config.lr, config.classes) == ((0.1,), ("bright3",))
    with pytest.raises(UserError, match="source takes a path, not None"):
        densepath.Conversion(None, "d")  # type: ignore[arg-type]
    for options in ({"folds": None, "splits": "s.csv"}, {"lr": None}, {"attention": None}):
        with pytest.raises(UserError, match=f"{next(iter(options))} is None; give a value, or leave it out"):
            MilConfig("f", "t.csv", "o", **options)  # type: ignore[arg-type]


NOT_NONE = [(PretrainConfig, "batch_size"), (ClassifyConfig, "validation"), (SegmentConfig, "freeze")]
NOT_NONE += [(DetectConfig, "train_size"), (Optimizer, "lr"), (Augment, "flip"), (Patches, "flip")]


@pytest.mark.parametrize(("kind", "name"), NOT_NONE)
def test_none_is_refused_where_an_object_of_options_needs_a_value(kind: Any, name: str) -> None:
    given = {"data": "d", "out": "o"} if "data" in kind.__dataclass_fields__ else {}
    kind(**given)
    with pytest.raises(UserError, match=f"{name} is None; give a value, or leave it out"):
        kind(**given, **{name: None})


def test_nodules_take_paths_and_a_size() -> None:
    with pytest.raises(UserError, match="source takes a path, not None"):
        NodulesConversion(None, "d")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="size is None; give a value"):
        NodulesConversion("s", "d", size=None)  # type: ignore[arg-type]
