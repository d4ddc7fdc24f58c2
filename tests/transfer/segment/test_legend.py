"""What label values mean, and which legends are refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densepath.core.errors import UserError
from densepath.transfer.segment.config import SegmentConfig
from densepath.transfer.segment.legend import IGNORED, Legend, legend_of, make_legend


def legend(found: tuple[int, ...], **options: Any) -> Legend:
    config = SegmentConfig(data="d", out="o", **options)
    return make_legend(config, {value: ["a.png"] for value in found}, {})


def test_values_become_classes() -> None:
    made = legend((0, 4, 7, 9), classes=("0:no", "7:b", "4:a"), ignore=(9,))
    labels = np.array([[0, 4, 7], [9, 7, 0]])
    np.testing.assert_array_equal(made.classes_of(labels), [[0, 1, 2], [IGNORED, 2, 0]])
    np.testing.assert_array_equal(made.values_of(made.classes_of(labels[:, :1] * 0 + 4)), [[4], [4]])
    # Of maps of instances each number is the class; ignored numbers are those of the map
    objects = legend((0, 1, 2, 70_000), objects="gland", ignore=(1,))
    np.testing.assert_array_equal(objects.classes_of(np.array([[0, 1, 2, 70_000]])), [[0, IGNORED, 1, 1]])
    assert objects.scored == ("gland",)


def test_an_ignored_number_may_be_large() -> None:
    made = legend((0, 4, 10**9), classes=("0:no", "4:a"), ignore=(10**9, -(10**9)))
    labels = np.array([[0, 4, 10**9], [-(10**9), 0, 4]], np.int32)
    tracemalloc.start()
    np.testing.assert_array_equal(made.classes_of(labels), [[0, 1, IGNORED], [IGNORED, 0, 1]])
    assert tracemalloc.get_traced_memory()[1] < 1e6  # no table of all numbers
    tracemalloc.stop()


def test_a_class_of_no_image_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    legend((0, 4), classes=("0:no", "4:a"))
    assert not capsys.readouterr().err
    legend((0, 4), classes=("0:no", "4:a", "7:b"))
    assert "warning: no label map has 7 (b); check --classes" in capsys.readouterr().err


def test_what_nnunet_calls_ignore_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "gland": 1, "ignore": 2}}))
    options: dict[str, Any] = {"classes": (str(tmp_path / "dataset.json"),)}
    config = SegmentConfig(data="d", out="o")
    of_a_store = make_legend(config, {value: ["a"] for value in (0, 1, 2)}, {0: "background", 1: "gland", 2: "ignore"})
    assert "the value 2 (ignore) counts neither in the loss nor in the scores" in capsys.readouterr().err
    files = legend((0, 1, 2), **options), legend((0, 1, 2), ignore=(2,), **options), legend_of(options["classes"])
    for made in (of_a_store, *files):
        assert made.names == ("background", "gland") and made.scored == ("gland",) and made.ignored == (2,)
        np.testing.assert_array_equal(made.classes_of(np.array([[0, 1, 2]])), [[0, 1, IGNORED]])
    capsys.readouterr()
    assert legend((0, 1, 2, 3), classes=("0:no", "1:a", "2:ignore", "3:ignore")).ignored == (2, 3)
    assert "the values 2, 3 (ignore) count neither in the loss" in capsys.readouterr().err
    assert legend((0, 1, 2), objects="ignore").scored == ("ignore",)  # the name of the objects


@pytest.mark.parametrize("classes", [("0:background", "1:ignore"), ("1:ignore",), ("0:background",)])
def test_classes_of_which_none_is_scored_are_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"^none of the classes .* is scored; name one besides 0 "):
        legend_of(classes)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    for message, options in {
        "4: both a class and to be ignored": {"classes": ("0:no", "4:a"), "ignore": (4,)},
        "the region A is named twice": {"regions": ("A=0", "A=4")},
        "give VALUE:NAME for each": {"classes": (str(tmp_path / "c.json"),)},
    }.items():
        (tmp_path / "c.json").write_text(json.dumps({"labels": ["a", "b"]}))
        with pytest.raises(UserError, match=message):
            legend((0, 4), **options)
    with pytest.raises(UserError, match=r"not a multiple of it.*give --validate_every 2,"):
        SegmentConfig(data="d", out="o", epochs=4, validate_every=6)
