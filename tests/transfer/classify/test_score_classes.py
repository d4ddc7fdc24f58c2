"""Predictions of a classifier are scored like the test images of its training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest

from densepath.core import output_names
from densepath.core.csv_files import read_rows
from densepath.core.errors import UserError
from densepath.core.result import Result
from densepath.transfer.predict import predict
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
    assert "only the 12 images of the split test, not 12 of other splits" in capsys.readouterr().err


def test_all_trainings_of_a_run_are_scored_as_there(
    data: Path, classify: Callable[..., Result], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"data": data / "images", "labels": data / "labels.csv"}
    trained = classify(**given, epochs=1, folds=2, seeds=2)
    assert dict(score(**given, predictions=tmp_path / "run")) == dict(trained)


@pytest.mark.parametrize("folders", [False, True])
def test_only_images_of_the_split_are_scored(folders: bool, data: Path, tmp_path: Path) -> None:
    names = [row["file"] for row in read_rows(data / "labels.csv", "")]
    parts = ["test" if k % 3 == 0 else "train" for k in range(24)]
    labels: Path | str = "folders"
    if folders:
        for part, name in zip(parts, names, strict=True):
            (new := tmp_path / "parts" / part / name).parent.mkdir(parents=True, exist_ok=True)
            (data / "images" / name).rename(new)
        names = [f"{part}/{name}" for part, name in zip(parts, names, strict=True)]
    else:
        rows = [[name, name[0], part] for part, name in zip(parts, names, strict=True)]
        labels = write_table(data / "split.csv", ["file", "label", "split"], rows)
    right = [float((name.split("/")[-2] == "a") == (part == "test")) for part, name in zip(parts, names, strict=True)]
    found = write_predictions(tmp_path / "P", names, {"a": right, "b": [1 - each for each in right]})
    given: dict[str, Any] = {"data": tmp_path / "parts" if folders else data / "images", "labels": labels}
    assert score(predictions=found, **given)["accuracy"] == 100
    assert score(predictions=found, **given, split="train")["accuracy"] == 0


@pytest.mark.parametrize("several", [False, True])
def test_predict_records_whether_an_image_may_have_several_labels(
    several: bool, data: Path, classify: Callable[..., Result], tmp_path: Path
) -> None:
    names = [row["file"] for row in read_rows(data / "labels.csv", "")]
    rows = [[name, name[0], k % 2, k // 2 % 2] for k, name in enumerate(names)]
    labels = write_table(data / "both.csv", ["file", "label", "x", "y"], rows)
    classify(data=data / "images", labels=labels, targets=("x", "y") if several else (), epochs=1, folds=2)
    predict(tmp_path / "run", data=data / "images", out=tmp_path / "P", devices="cpu")
    chances = [0.1, 0.9] * 12 if several else [0.1, 0.3] * 12
    heads = ("x", "y") if several else ("a", "b")
    rows = [[name, p, (1 if several else 0.9) - p] for name, p in zip(names, chances, strict=True)]
    write_table(tmp_path / "P/predictions.csv", ["image", *(f"p {head}" for head in heads)], rows)
    done = score(data=data / "images", labels=labels, predictions=tmp_path / "P")
    assert f"auc_{heads[0]}" in done


def test_labels_and_columns_without_a_partner_are_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [row["file"] for row in read_rows(data / "labels.csv", "")]
    found = write_predictions(tmp_path / "P", names, {"Mass": np.linspace(0, 1, 24), "Edema": [0.6] * 24})
    rows = [[name, k % 2, k // 2 % 2, k, 1, "0,0"] for k, name in enumerate(names)]
    lines = [["file", "Mass", "Oedema", "age", "case", "Cyst"], *rows]
    (labels := data / "typo.csv").write_text("".join(f"{';'.join(map(str, line))}\n" for line in lines))
    done = score(data=data / "images", labels=labels, predictions=found)
    assert done["macro_auc"] == done["auc_Mass"] and "auc_Edema" not in done
    said = capsys.readouterr().err
    assert f"left out of the scores, as {labels} has no column of this name: Edema\n" in said
    assert f"columns of 0 and 1 in {labels} that are not labels of the classifier: Oedema, Cyst\n" in said


def test_a_table_of_several_labels_with_a_quote_that_is_not_closed_is_refused(data: Path, tmp_path: Path) -> None:
    names = [row["file"] for row in read_rows(data / "labels.csv", "")]
    found = write_predictions(tmp_path / "P", names, {"Mass": np.linspace(0, 1, 24), "Edema": [0.6] * 24})
    (labels := data / "open.csv").write_text(f'file,Mass,Edema\n{names[0]},1,"0\n')
    with pytest.raises(UserError, match=r"open\.csv is not a table of labels \(line 2 has a quote that is not closed"):
        score(data=data / "images", labels=labels, predictions=found)


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
    refused(r"labels: only for predictions of a classifier \(.*images has no pred", predictions=data / "images")
    refused("nothing does not exist; check --predictions", predictions="nothing")
    refused("out is .*s.json; name a new folder", out=tmp_path / "s.json")
    trained = [[name, name[0], "train"] for name in names]
    split = write_table(data / "split.csv", ["file", "label", "split"], trained)
    both = write_predictions(tmp_path / "B", names, {"a": [0.5] * 24, "b": [0.5] * 24})
    refused("split: only for labels with splits", split="train", predictions=both)
    refused("no image is of the split test in .*; choose the other one with --split", labels=split, predictions=both)
    refused(
        r"has none of the images", predictions=write_predictions(tmp_path / "Q", ["x.png"], {"a": [0.1], "b": [0.9]})
    )
    several = write_predictions(tmp_path / "R", names, {"Mass": [0.9] * 24, "Edema": [0.9] * 24})
    refused("has several labels of an image .*; name the table's columns of them with --targets", predictions=several)
    wrong = write_predictions(tmp_path / "W", names[:1], {"a": ["x"], "b": [0.9]})
    refused("has probabilities that are not numbers from 0 to 1", predictions=wrong)


def test_names_that_each_folder_has_are_not_compared_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of a hundred slides may have the same name; comparing all pairs took minutes for 20,000 images."""
    names = [f"slide_{slide}/tile_{tile}.png" for slide in range(20) for tile in range(3)]
    others = [*(f"predicted/{name}" for name in names), "tile_1.png", names[4]]
    made: list[str] = []
    monkeypatch.setattr(output_names, "PurePath", lambda name: made.append(name) or PurePath(name))
    places = output_names.alike_names(names, others)
    assert places[:5] == [[0], [1, 60], [2], [3], [61]] and places[-1] == [59]
    assert len(made) <= len(names) + len(others)
