"""The result of a verb is a mapping of scores, and a path."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest
from PIL import Image

import densepath
from densepath.core.errors import UserError
from densepath.core.paths import as_path, as_texts
from densepath.core.result import Result


def test_a_result_is_its_scores_and_its_path(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5)).save(tmp_path / "curves.png")
    files = {"weights": tmp_path / "w.safetensors", "curves": tmp_path / "curves.png"}
    result = Result(tmp_path, {"mask_ap": 12.3456}, files, ("densepath predict run",))
    assert result["mask_ap"] == 12.3456 and dict(result) == {"mask_ap": 12.3456} == result
    assert Path(result) == tmp_path and os.path.isdir(result) and str(result) == str(tmp_path)
    assert result.plot().size == result.plot("curves").size == (7, 5)
    assert getattr(result.plot(), "fp", None) is None  # closed
    for text in (str(tmp_path), "mask_ap: 12.35", "weights: ", "next: densepath predict run"):
        assert text in repr(result)
    with pytest.raises(UserError, match="views was not drawn; there are: curves"):
        result.plot("views")


def test_a_result_without_scores_or_files_is_still_something() -> None:
    assert Result(None) and repr(Result(None, {"a": 1})) == str(Result(None, {"a": 1})) == "  a: 1"
    with pytest.raises(TypeError):
        os.fspath(Result(None))


def test_a_result_is_a_path(tmp_path: Path) -> None:
    result = Result(tmp_path, {"mask_ap": 12.3456})
    assert as_texts([result]) == as_texts((tmp_path,)) == [str(tmp_path)]
    assert as_path(result) == tmp_path and as_path("random") == "random" and as_path(None) is None


def test_public_functions_are_typed_to_take_results() -> None:
    """Type checkers of users' code accept a result where one is passed on."""
    inputs = ("data", "weights", "run", "runs", "predictions", "features", "cells", "points", "test_data")
    taken = {
        f"{name}({parameter.name})": parameter.annotation
        for name in densepath.__all__
        if name.islower() and name not in ("__version__", "benchmark_table")  # its data are NAME=PATH
        for parameter in inspect.signature(getattr(densepath, name)).parameters.values()
        if parameter.name in inputs or (name.startswith(("load_", "read_")) and parameter.name == "path")
    }
    assert "predict(run)" in taken and "load_detector(path)" in taken
    assert {
        where for where, annotation in taken.items() if "AnyPath" not in annotation and annotation != "bool"
    } == set()
