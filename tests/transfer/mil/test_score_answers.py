"""``densepath score`` of answers for slides that were not in the study."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from densepath.core.errors import UserError
from densepath.transfer.mil.mil import mil
from densepath.transfer.predict import predict
from densepath.transfer.score import score

CPU: dict[str, Any] = {"devices": "cpu", "precision": "32"}
SMALL: dict[str, Any] = {"folds": 2, "epochs": 2, "attention": 0, "lr": [3e-3], **CPU}


@pytest.fixture(scope="module")
def answers(shared_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of a run for twelve patients, two of whose slides are of one."""
    folder = tmp_path_factory.mktemp("answers")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("densepath.transfer.mil.mil.draw_pictures", lambda *_: {"roc": None})
        mil(data=shared_study / "features", table=shared_study / "table.csv", out=folder / "run", **SMALL)
    (shared_study / "features" / "manifest.csv").write_text("file,patient\nP00_0.svs,P00\nP02_0.svs,P00\n")
    predict(folder / "run", data=shared_study / "features", out=folder / "answers", pictures=0, **CPU)
    return folder / "answers"


def table(path: Path, rows: list[tuple[str, ...]], head: tuple[str, ...] = ("slide", "diagnosis")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def predicted(answers: Path) -> dict[str, dict[str, str]]:
    with (answers / "patient-preds.csv").open() as file:
        return {row["PATIENT"]: row for row in csv.DictReader(file)}


def truth(number: int) -> str:
    """Not that of the training: so the scores are not perfect."""
    return ("benign", "tumour")[(number // 2) % 2]


def test_scores_are_those_of_scikit_learn(answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [0, 2, *range(3, 12)]  # without that of P01; P00 and P02 are one patient
    rows = [(f"cohort/P{k:02d}_0.svs", truth(0 if k == 2 else k)) for k in numbers]
    labels = table(tmp_path / "labels.csv", [*rows, ("elsewhere.svs", "benign")])
    found = score(predictions=answers, labels=labels, target="diagnosis", out=tmp_path / "scores")
    told = capsys.readouterr().err
    assert "left out: 1 slide of" in told and "elsewhere.svs" in told
    assert "left out: 1 case of" in told and "P01" in told
    own = predicted(answers)
    cases = {("P00" if k < 3 else f"P{k:02d}_0"): truth(0 if k == 2 else k) for k in numbers}
    true = np.array([label == "tumour" for label in cases.values()])
    chances = np.array([float(own[name]["label_tumour"]) for name in cases])
    assert found["auc_tumour"] == pytest.approx(100 * roc_auc_score(true, chances))
    chosen = [own[name]["pred"] == "tumour" for name in cases]
    assert found["accuracy"] == pytest.approx(100 * accuracy_score(true, chosen))
    record = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert record["scores"]["macro_auc"]["value"] == pytest.approx(found["macro_auc"])
    assert len(list(csv.DictReader((tmp_path / "scores" / "patient-preds.csv").open()))) == len(cases)
    assert (tmp_path / "scores" / "roc.png").is_file()


def test_a_table_of_patients_needs_no_slides(answers: Path, tmp_path: Path) -> None:
    patients = list(predicted(answers))
    rows = [(name, "yes" if k % 3 else "no") for k, name in enumerate(patients)]
    labels = table(tmp_path / "clini.csv", rows, ("PATIENT", "MSI"))
    found = score(predictions=answers, labels=labels, target="MSI", classes=("tumour=yes", "benign=no"))
    chances = [float(row["label_tumour"]) for row in predicted(answers).values()]
    assert found["auc_tumour"] == pytest.approx(100 * roc_auc_score([k % 3 > 0 for k in range(len(rows))], chances))


def test_patients_of_the_table_own_answers_for_slides(
    answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The intervals of fewer patients are wider; the scores are the same."""
    rows = [(f"P{k:02d}_0", truth(0 if k == 2 else k), f"{max(k, 2) // 4}") for k in range(12)]
    labels = table(tmp_path / "labels.csv", rows, ("slide", "diagnosis", "patient"))
    bare = table(tmp_path / "bare.csv", [row[:2] for row in rows])
    outs = [tmp_path / "by_patient", tmp_path / "by_slide"]
    for out, each in zip(outs, (labels, bare), strict=True):
        score(predictions=answers, labels=each, target="diagnosis", out=out)
    assert "an answer for each slide" in capsys.readouterr().err
    by_patient, by_slide = (json.loads((out / "scores.json").read_text())["scores"]["accuracy"] for out in outs)
    assert by_patient["value"] == by_slide["value"]
    assert by_patient["high"] - by_patient["low"] != by_slide["high"] - by_slide["low"]


@pytest.mark.parametrize(
    "rows, options, message",
    [
        ([("P03_0", "sarcoma"), ("P04_0", "benign")], {}, "do not know: sarcoma; the classes are benign, tumour"),
        ([("other", "benign")], {}, "has none of the 12 slides"),
        ([("P03_0", "benign")], {"data": "."}, "data: only for images, not answers"),
        ([("P03_0", "benign")], {"score": 0.5}, "score: only for objects"),
        ([("P00_0", "benign"), ("P02_0", "tumour")], {}, "several values of diagnosis: P00"),
        ([("P03_0", "benign"), ("a/P03_0.svs", "benign")], {}, "mean the same slide P03_0"),
    ],
)
def test_what_does_not_fit_is_refused(
    answers: Path, tmp_path: Path, rows: list[tuple[str, ...]], options: dict[str, Any], message: str
) -> None:
    labels = table(tmp_path / "labels.csv", rows)
    with pytest.raises(UserError, match=message):
        score(predictions=answers, labels=labels, target="diagnosis", **options)


def test_the_table_of_answers_stands_for_its_folder(answers: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv", [(f"P{k:02d}_0", truth(0 if k == 2 else k)) for k in range(12)])
    how: dict[str, Any] = {"labels": labels, "target": "diagnosis"}
    found = score(predictions=answers / "patient-preds.csv", out=tmp_path / "scores", **how)
    assert dict(found) == dict(score(predictions=answers, **how))
    for folder in (answers.parent / "run", tmp_path / "scores"):
        for own in (folder, folder / "patient-preds.csv"):
            with pytest.raises(
                UserError, match=r"whose scores are in .*scores\.json; for other slides give the folder"
            ):
                score(predictions=own, **how)
    (alone := tmp_path / "alone").mkdir()
    (alone / "patient-preds.csv").write_bytes((answers / "patient-preds.csv").read_bytes())
    with pytest.raises(UserError, match=r"has no slides\.csv next to it"):
        score(predictions=alone / "patient-preds.csv", **how)


def test_answers_need_a_table_and_a_kind(answers: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the table of the true ones with --labels"):
        score(predictions=answers)
    old = tmp_path / "old"
    old.mkdir()
    for name in ("patient-preds.csv", "slides.csv"):
        (old / name).write_bytes((answers / name).read_bytes())
    labels = table(tmp_path / "labels.csv", [("P03_0", "benign")])
    with pytest.raises(UserError, match="predict with the same command again"):
        score(predictions=old, labels=labels, target="diagnosis")


def test_the_target_of_the_models_counts_if_no_other_is_named(
    answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The models answer ``label``; ``class`` is another usual name of a target, and comes first."""
    rows = [(f"P{k:02d}_0", truth(k + 2), truth(0 if k == 2 else k)) for k in range(12)]
    labels = table(tmp_path / "labels.csv", rows, ("slide", "class", "Label"))
    found = score(predictions=answers, labels=labels)
    assert "is compared with" not in capsys.readouterr().err
    assert dict(found) == dict(score(predictions=answers, labels=labels, target="label"))
    bare = table(tmp_path / "bare.csv", [(row[0], row[2]) for row in rows], ("slide", "class"))
    assert dict(score(predictions=answers, labels=bare)) == dict(found)
    assert f"label of the answers is compared with class of {bare}" in capsys.readouterr().err


def test_names_of_patients_are_not_slides(answers: Path, tmp_path: Path) -> None:
    patients = list(predicted(answers))
    rows = [(patient, f"Doe {k}", truth(k)) for k, patient in enumerate(patients)]
    named = table(tmp_path / "named.csv", rows, ("patient", "name", "label"))
    bare = table(tmp_path / "bare.csv", [(row[0], row[2]) for row in rows], ("patient", "label"))
    assert dict(score(predictions=answers, labels=named)) == dict(score(predictions=answers, labels=bare))


def test_survival_and_regression(study: Callable[..., Path], tmp_path: Path) -> None:
    data = study(patients=10)
    rows = [(f"P{k:02d}_0", str(10 + 7 * k % 11), str(k % 3 > 0)) for k in range(10)]
    listed = table(tmp_path / "table.csv", rows, ("slide", "months", "died"))
    for task, own in (("survival", {"event": "died"}), ("regression", {})):
        out = tmp_path / task
        mil(data=data / "features", table=listed, target="months", task=task, model="abmil", out=out, **own, **SMALL)
        predict(out, data=data / "features", out=tmp_path / f"{task}_answers", pictures=0, **CPU)
        with pytest.raises(UserError, match="classes: only for answers that are classes"):
            score(predictions=tmp_path / f"{task}_answers", labels=listed, classes=("5=10,17",), **own)
        found = score(predictions=tmp_path / f"{task}_answers", labels=listed, **own)
        own_rows = predicted(tmp_path / f"{task}_answers")
        values = [
            float(next(v for n, v in own_rows[f"P{k:02d}_0"].items() if n.startswith("months_"))) for k in range(10)
        ]
        months = [float(row[1]) for row in rows]
        if task == "regression":
            assert found["pearson"] == pytest.approx(100 * np.corrcoef(values, months)[0, 1], abs=1e-3)
        else:
            pairs = [
                (values[a] > values[b]) + 0.5 * (values[a] == values[b])
                for a in range(10)
                for b in range(10)
                if rows[a][2] == "True" and months[a] < months[b]
            ]
            assert found["concordance"] == pytest.approx(100 * np.mean(pairs))
