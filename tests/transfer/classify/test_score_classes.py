"""Predictions of a classifier are scored like the test images of its training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densepath.core.csv_files import read_rows
from densepath.core.errors import UserError
from densepath.core.result import Result
from densepath.transfer.score import score

from .conftest import write_table


def write_predictions(out: Path, names: list[str], chances: dict[str, Any]) -> Path:
    out.mkdir()
    rows = [[name, *each] for name, *each in zip(names, *chances.values(), strict=True)]
    write_table(out / "predictions.csv", ["image", *(f"p {label}" for label in chances)], rows)
    return out


def test_predictions_get_the_scores_of_a_training_that_tests_them(
    data: Path, classify: Callable[..., Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The single training tests its official test images: their rows are its predictions."""
    table = read_rows(data / "labels.csv", "")
    rows = [[*row.values(), ("train", "test")[int(row["patient"][2]) % 2]] for row in table]
    labels = write_table(data / "split.csv", ["file", "label", "patient", "split"], rows)
    trained = classify(data=data / "images", labels=labels, epochs=1)
    done = score(data=data / "images", labels=labels, predictions=tmp_path / "run/predictions.csv", out=tmp_path / "S")
    assert dict(done) == dict(trained)
    one, other = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("run", "S"))
    assert one["scores"] == other["scores"] and other["patients"] == 6 and other["test_images"] == 12
    columns = ["image", "patient", "label", "predicted", "p a", "p b"]
    said = [
        [tuple(row[c] for c in columns) for row in read_rows(tmp_path / run / "predictions.csv", "")] for run in "S"
    ]
    assert sorted(said[0]) == sorted(
        tuple(row[c] for c in columns) for row in read_rows(tmp_path / "run/predictions.csv", "")
    )
    assert done.plot().size[0] > 100 and (tmp_path / "S/pictures/confusion.png").is_file()
    assert "left out: 12 images without a prediction in" in capsys.readouterr().err


def test_several_labels_and_what_is_left_out(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = read_rows(data / "labels.csv", "")
    names = [row["file"] for row in table]
    rng = np.random.default_rng(0)
    chances = {"Mass": rng.random(23).tolist(), "Edema": rng.random(23).tolist()}
    found = write_predictions(tmp_path / "P", [*(f"images/{name}" for name in names[:22]), "gone.png"], chances)
    rows = [[name, k % 2, "" if k == 3 else int(k % 3 == 0)] for k, name in enumerate(names)]
    labels = write_table(data / "many.csv", ["file", "Mass", "Edema"], rows[1:])
    given: dict[str, Any] = {"data": data / "images", "labels": labels, "patient_regex": r"(P\d+)_"}
    done = score(predictions=found, **given)
    truth = [row[1] for row in rows[1:22]]
    right = np.mean([(c >= 0.5) == t for c, t in zip(chances["Mass"][1:22], truth, strict=True)])
    alone = score(predictions=found, **given, targets=("Mass",))
    assert alone["accuracy"] == pytest.approx(100 * right)
    assert alone["auc_Mass"] == done["auc_Mass"] and "auc_Edema" in done and "auc_Edema" not in alone
    said = capsys.readouterr().err
    assert f"left out: 1 image without a label in {labels}: {names[0]}" in said
    assert f"left out: 2 images without a prediction in {found / 'predictions.csv'}: {names[22]}, {names[23]}" in said
    assert f"that {data / 'images'} lacks: gone.png" in said


def test_what_cannot_be_scored_is_refused(data: Path, tmp_path: Path) -> None:
    names = [row["file"] for row in read_rows(data / "labels.csv", "")]
    found = write_predictions(tmp_path / "P", names, {"a": [0.5] * 24, "c": [0.5] * 24})

    def refused(message: str, **options: Any) -> None:
        given = {"data": data / "images", "labels": data / "labels.csv", "predictions": found, **options}
        with pytest.raises(UserError, match=message):
            score(**given)

    refused("holds predictions of a classifier; give the true labels with --labels", labels=None)
    refused(r"labels of test images that .*predictions\.csv lacks: b; name them alike")
    refused("score: only for objects and classes of pixels", score=0.5)
    refused("labels: only for predictions of a classifier", predictions=data / "images")
    refused(
        r"has none of the images", predictions=write_predictions(tmp_path / "Q", ["x.png"], {"a": [0.1], "b": [0.9]})
    )
    several = write_predictions(tmp_path / "R", names, {"Mass": [0.9] * 24, "Edema": [0.9] * 24})
    refused("has several labels of an image .*; name the table's columns of them with --targets", predictions=several)
    wrong = write_predictions(tmp_path / "W", names[:1], {"a": ["x"], "b": [0.9]})
    refused("has probabilities that are not numbers from 0 to 1", predictions=wrong)
