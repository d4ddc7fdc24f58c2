"""``densepath mil``: from features and a table to answers; the test cases do not touch training; exact resume."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from densepath.cli import main
from densepath.core.errors import UserError
from densepath.report.runs import read_sessions
from densepath.runs.signals import Interrupted
from densepath.transfer.mil import bag_task
from densepath.transfer.mil.attention import AttentionFiles
from densepath.transfer.mil.bags import Bag
from densepath.transfer.mil.cohort import Cohort
from densepath.transfer.mil.config import MilConfig
from densepath.transfer.mil.extractor_record import ExtractorRecord
from densepath.transfer.mil.fold import balanced
from densepath.transfer.mil.mil import mil
from densepath.transfer.mil.model_file import load_model, save_model
from densepath.transfer.mil.models.dsmil import DSMIL
from densepath.transfer.mil.objectives import Classification

Study = Callable[..., Path]
SMALL: dict[str, Any] = {"folds": 2, "epochs": 4, "devices": "cpu", "precision": "32"}


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are most of the time of a small run; one test looks at them."""
    if request.function is not test_a_planted_signal_is_found_and_written:
        monkeypatch.setattr("densepath.transfer.mil.mil.draw_pictures", lambda *_: {"roc": None})


def run(folder: Path, out: str = "run", **options: Any) -> Any:
    return mil(MilConfig(folder / "features", folder / "table.csv", folder / out, **{**SMALL, **options}))


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "patient-preds.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_planted_signal_is_found_and_written(study: Study, capsys: Any) -> None:
    folder = study(signal=15.0)
    options = ["--folds", "2", "--epochs", "15", "--lr", "0.003", "--devices", "cpu", "--precision", "32"]
    command = ["mil", "--data", f"{folder}/features", "--table", f"{folder}/table.csv", "--out", f"{folder}/run"]
    before = torch.get_rng_state()
    assert main([*command, *options]) == 0
    assert torch.equal(torch.get_rng_state(), before)  # the generators are the caller's
    out = folder / "run"
    printed = capsys.readouterr()
    shown = dict(line.split() for line in printed.out.splitlines())
    following = f"densepath: next: densepath predict {out} --data SLIDES --out {out}_answers"
    assert printed.err.splitlines()[-1] == following
    scores = json.loads((out / "scores.json").read_text())
    assert scores["scores"]["auc_tumour"]["value"] > 90 and float(shown["macro_auc"]) > 90
    assert len(scores["folds"]) == 2 and scores["scale"] == "percent"
    rows = predictions(out)
    assert list(rows[0]) == ["PATIENT", "label", "pred", "label_benign", "label_tumour", "fold"]
    assert sorted(row["PATIENT"] for row in rows) == [f"P{n:02d}" for n in range(24)]
    splits = json.loads((out / "splits.json").read_text())["folds"]
    assert all(row["PATIENT"] in splits[int(row["fold"])]["test"] for row in rows)
    right = sum(row["label"] == row["pred"] for row in rows)
    assert scores["scores"]["accuracy"]["value"] == pytest.approx(100 * right / 24)
    for name in ("roc", "precision_recall", "confusion", "calibration"):
        assert Image.open(out / f"{name}.png").width > 300
    tables = sorted((out / "attention").glob("*.csv"))
    assert len(tables) == 8
    tumour = next(table for table in tables if int(table.stem[1:3]) % 2)
    with tumour.open() as file:
        attention = np.array([float(row["attention_tumour"]) for row in csv.DictReader(file)])
    tiles = torch.load(folder / "features" / f"{tumour.stem}.pt", weights_only=True)
    assert attention.sum() == pytest.approx(1, abs=1e-4) and len(attention) == len(tiles)
    shifted = np.arange(len(tiles)) < len(tiles) // 5
    assert attention[shifted].mean() > attention[~shifted].mean()
    assert main([*command, *options]) == 2 and "already holds a run" in capsys.readouterr().err


def test_test_cases_never_touch_training(study: Study) -> None:
    """Other features and labels of a fold's test cases change its test, and not one bit of its model."""
    folder = study()
    run(folder, attention=0, standardize=True)
    splits = folder / "run" / "splits.json"
    tested = set(json.loads(splits.read_text())["folds"][0]["test"])
    for name in tested:
        torch.save(torch.randn(9, 12), folder / "features" / f"{name}_0.pt")
    lines = (folder / "table.csv").read_text().splitlines()
    other = {"benign": "tumour", "tumour": "benign"}
    changed = [line.split(",") for line in lines]
    changed = [[p, s, other[c], h] if p in tested else [p, s, c, h] for p, s, c, h in changed]
    (folder / "table.csv").write_text("\n".join(map(",".join, changed)) + "\n")
    run(folder, "again", splits=splits, folds=5, attention=0, standardize=True)
    models = [load_file(folder / name / "fold_0" / "model.safetensors") for name in ("run", "again")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    notes = [load_model(folder / name / "fold_0" / "model.safetensors")[1] for name in ("run", "again")]
    assert notes[0] == notes[1]
    answers = [[r["label_tumour"] for r in predictions(folder / n) if r["fold"] == "0"] for n in ("run", "again")]
    assert answers[0] != answers[1]


@pytest.mark.parametrize("model", ["abmil", "knn", "dsmil_linear", "mean", "max"])
def test_standardized_features_have_no_scale(study: Study, model: str) -> None:
    """Features of an eighth of the size give the same answers, of the run and of its models in their files."""
    found = []
    for factor in (1.0, 0.125):
        folder = study()
        for path in (folder / "features").iterdir():
            torch.save(torch.load(path).half().float() * factor, path)
        run(folder, attention=0, model=model, standardize=True, epochs=None if model == "knn" else 4)
        found.append([float(row["label_tumour"]) for row in predictions(folder / "run")])
        if model != "knn":
            _check_standardized_answers(folder)
    assert found[0] == pytest.approx(found[1], rel=1e-5) and len(set(found[0])) > 2


def _check_standardized_answers(folder: Path) -> None:
    """The answers of a fold are those of its network for features that are standardized by hand."""
    fold = json.loads((folder / "run" / "splits.json").read_text())["folds"][0]
    tiles = {
        part: [torch.load(folder / "features" / f"{case}_0.pt").half().double() for case in fold[part]]
        for part in ("train", "test")
    }
    known = torch.cat(tiles["train"])
    network = load_model(folder / "run" / "fold_0" / "model.safetensors")[0]
    del network.standardization
    answers = {row["PATIENT"]: float(row["label_tumour"]) for row in predictions(folder / "run") if row["fold"] == "0"}
    for case, own in zip(fold["test"], tiles["test"], strict=True):
        outputs = network(((own - known.mean(0)) / known.std(0, correction=0)).float())[0]
        chances = outputs.softmax(0) if network.exclusive else outputs.sigmoid()
        assert chances[1].item() == pytest.approx(answers[case], abs=1e-5)


def test_standardization_is_that_of_all_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bag_task, "_READ", 7)
    bags = [Bag(str(n), (), (n,), (torch.randn(n, 5) * torch.tensor([1, 9, 0.1, 0, 3]) + 8).half()) for n in (3, 20, 9)]
    tiles = torch.cat([bag.tiles() for bag in bags]).double().numpy()
    found = bag_task.BagSet(bags, np.arange(3), np.zeros((3, 1))).standardization()
    np.testing.assert_allclose(found.mean, tiles.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.scale, [*tiles.std(0)[:3], 1, tiles.std(0)[4]], rtol=1e-6)
    prepared = found(torch.from_numpy(tiles)).double().numpy()
    np.testing.assert_allclose(prepared.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(prepared.std(0), [1, 1, 1, 0, 1], atol=1e-5)


def test_the_epoch_is_that_of_the_best_validation_score(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study(signal=1.0)
    run(folder, epochs=6, attention=0, model="mean")
    with (folder / "run" / "fold_1" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["validation_score"]]
    keys = [(float(row["validation_score"]), -float(row["validation_loss"])) for row in rows]
    notes = load_model(folder / "run" / "fold_1" / "model.safetensors")[1]
    assert len(keys) == 6 and notes.epoch == 1 + keys.index(max(keys)) and notes.score == pytest.approx(max(keys)[0])
    with monkeypatch.context() as patched:
        patched.setattr(Classification, "score", lambda *_: 1 / 3)
        run(folder, "third", epochs=1, attention=0, model="mean")
    assert load_model(folder / "third" / "fold_1" / "model.safetensors")[1].score == 1 / 3  # not rounded


def test_a_stopped_run_is_resumed_bit_for_bit(study: Study, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Stopped in the middle of an epoch of the second fold; with dropout, whose random numbers are restored."""
    folder = study()
    run(folder, "whole", model="clam", attention=0)
    seen = 0
    inputs = bag_task.BagTask.inputs

    def stopping(self: bag_task.BagTask, batch: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 60:
            raise Interrupted(2)
        return inputs(self, batch)

    monkeypatch.setattr("densepath.transfer.mil.fold.SAVE_EVERY", 7)
    monkeypatch.setattr(bag_task.BagTask, "inputs", stopping)
    with pytest.raises(Interrupted):
        run(folder, "parts", attention=0, model="clam")
    assert (folder / "parts" / "fold_0" / "answers.json").exists()
    assert not (folder / "parts" / "patient-preds.csv").exists()
    monkeypatch.setattr(bag_task.BagTask, "inputs", inputs)
    with pytest.raises(UserError, match="was started with other values of epochs"):
        run(folder, "parts", attention=0, model="clam", resume=True, epochs=5)
    run(folder, "parts", attention=0, model="clam", resume=True)
    assert "resuming" in capfd.readouterr().err
    for fold in ("fold_0", "fold_1"):
        whole, parts = (load_file(folder / name / fold / "model.safetensors") for name in ("whole", "parts"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert predictions(folder / "whole") == predictions(folder / "parts")
    answers = folder / "parts" / "fold_0" / "answers.json"
    whole_answers = answers.read_text()
    answers.write_text(whole_answers[:50])  # cut when the machine went down
    with pytest.raises(UserError, match=r"answers\.json is not JSON .*; give a whole copy, or remove it"):
        run(folder, "parts", attention=0, model="clam", resume=True)
    answers.write_text(whole_answers)
    damages = {"study.txt": "of the run in .*parts have changed", "splits.json": "splits.json is not JSON"}
    for name, message in damages.items():
        content = (folder / "parts" / name).read_bytes()
        (folder / "parts" / name).write_bytes(b"\xff" + content[1:])
        with pytest.raises(UserError, match=message):
            run(folder, "parts", attention=0, model="clam", resume=True)
        (folder / "parts" / name).write_bytes(content)
    # Models of other labels, or of other features, are not mixed with these.
    table, first = folder / "table.csv", folder / "features" / "P00_0.pt"
    before = table.read_text()
    table.write_text(before.replace("P00,P00_0,benign", "P00,P00_0,tumour"))
    with pytest.raises(UserError, match=r"the table or the features of the run in .*parts have changed"):
        run(folder, "parts", attention=0, model="clam", resume=True)
    table.write_text(before)
    values = torch.load(first, weights_only=True)
    values[-1, -1] += 1  # one number of one tile
    torch.save(values, first)
    with pytest.raises(UserError, match=r"the table or the features of the run in .*parts have changed"):
        run(folder, "parts", attention=0, model="clam", resume=True)
    assert (folder / "parts" / "fold_0" / "model.safetensors").exists()


def test_all_models_are_compared_on_the_same_folds(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from densepath.transfer.mil import models

    monkeypatch.setattr(models, "MODELS", {name: models.MODELS[name] for name in ("dsmil", "mean")})
    folder = study()
    result = run(folder, model="all", attention=0)
    assert {"dsmil_macro_auc", "mean_macro_auc", "knn_macro_auc"} <= set(result)
    assert f"predict {folder}/run/MODEL --data SLIDES" in result.next[0]
    with (folder / "run" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["other"]) for row in rows] == [("dsmil", "mean"), ("dsmil", "knn"), ("mean", "knn")]
    for _ in range(2):  # a run that is complete has no further session
        assert [session["folder"] for session in read_sessions(folder / "run")] == [os.getcwd()]
        run(folder, model="all", attention=0, resume=True)
    for row in rows:
        difference = result[f"{row['model']}_macro_auc"] - result[f"{row['other']}_macro_auc"]
        assert float(row["macro_auc_difference"]) == pytest.approx(difference, abs=0.01)
    tested = [
        [(row["PATIENT"], row["fold"]) for row in predictions(folder / "run" / name)] for name in ("dsmil", "knn")
    ]
    assert tested[0] == tested[1]


def test_a_model_that_fails_does_not_stop_the_others(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from densepath.transfer.mil import models
    from densepath.transfer.mil.models import MeanPooling

    class Broken(MeanPooling):
        def forward(self, tiles: torch.Tensor) -> Any:
            raise RuntimeError("no such kernel")

    known = {name: models.MODELS[name] for name in ("dsmil", "mean")}
    monkeypatch.setattr(models, "MODELS", known)
    monkeypatch.setattr("densepath.transfer.mil.fold.MODELS", {**known, "dsmil": Broken})
    folder = study()
    options = ["--folds", "2", "--epochs", "2", "--devices", "cpu", "--precision", "32", "--attention", "0"]
    command = ["mil", "--data", f"{folder}/features", "--table", f"{folder}/table.csv", "--out", f"{folder}/run"]
    assert main([*command, *options, "--model", "all"]) == 2
    said = capsys.readouterr().err
    assert "dsmil failed: a bug in densepath, please report it: RuntimeError: no such kernel" in said
    assert said.splitlines()[-1].startswith("densepath: error: dsmil failed (") and "--resume" in said
    assert "in answer" not in said and "Traceback" in (folder / "run" / "train.log").read_text()
    with (folder / "run" / "comparison.csv").open() as file:
        assert [(row["model"], row["other"]) for row in csv.DictReader(file)] == [("mean", "knn")]
    before = (folder / "run" / "mean" / "fold_0" / "model.safetensors").read_bytes()
    monkeypatch.setattr("densepath.transfer.mil.fold.MODELS", known)
    assert main([*command, *options, "--model", "all", "--resume"]) == 0
    with (folder / "run" / "comparison.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3
    assert (folder / "run" / "mean" / "fold_0" / "model.safetensors").read_bytes() == before
    monkeypatch.setattr("densepath.transfer.mil.mil._run", lambda *_: Broken.forward(None, None))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no such kernel"):  # of all models: the last one's error is that of the run
        run(folder, "none", model="all")


def test_slides_of_a_patient_are_joined_averaged_or_single(study: Study) -> None:
    folder = study(slides=2, signal=6.0, patients=12)
    for grouping, count in (("joined", 12), ("averaged", 12), ("single", 24)):
        run(folder, grouping, grouping=grouping, model="mean", attention=0, epochs=1)
        rows = predictions(folder / grouping)
        assert len(rows) == count and ("SLIDE" in rows[0]) == (grouping == "single")
        splits = json.loads((folder / grouping / "splits.json").read_text())["folds"]
        for fold in splits:
            owners = [{name[:3] for name in part} for part in fold.values()]
            assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
    # The mean of a patient's slides is the mean of the answers for each.
    path = folder / "averaged" / "fold_0" / "model.safetensors"
    case = next(row for row in predictions(folder / "averaged") if row["fold"] == "0")
    model = load_model(path)[0]
    slides = [torch.load(folder / "features" / f"{case['PATIENT']}_{n}.pt", weights_only=True).half() for n in (0, 1)]
    chances = torch.stack([model(slide.float())[0].softmax(0) for slide in slides]).mean(0)
    assert float(case["label_tumour"]) == pytest.approx(chances[1].item(), rel=1e-4)


def test_the_order_of_slides_in_the_table_does_not_matter(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to a model that lays tiles out in their order; a run that was begun in that of the table continues in it."""
    folder = study(slides=2, patients=8)
    options: dict[str, Any] = {"model": "transmil", "attention": 0, "epochs": 1}
    run(folder, "forward", **options)
    head, *rows = (folder / "table.csv").read_text().splitlines()
    (folder / "table.csv").write_text("\n".join([head, *reversed(rows)]))
    run(folder, "reversed", **options)
    key = itemgetter("PATIENT")
    assert sorted(predictions(folder / "forward"), key=key) == sorted(predictions(folder / "reversed"), key=key)
    with monkeypatch.context() as patched:
        patched.setattr(Cohort, "with_slides_by_name", lambda self: self)
        run(folder, "old", **options)
    assert predictions(folder / "old") != predictions(folder / "reversed")
    splits = json.loads((folder / "old" / "splits.json").read_text())
    assert splits.pop("slides_by") == "name"
    (folder / "old" / "splits.json").write_text(json.dumps(splits))
    before = predictions(folder / "old")
    (folder / "old" / "fold_1" / "answers.json").unlink()
    run(folder, "old", resume=True, **options)
    assert predictions(folder / "old") == before


def test_runs_of_earlier_versions_are_resumed(study: Study, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """They may have options without effect, and tiles of several kinds."""
    folder, options = study(patients=8), {"model": "mean", "attention": 0, "epochs": 1}
    run(folder, **options)
    config, splits = (folder / "run" / name for name in ("config.yaml", "splits.json"))
    config.write_text(config.read_text().replace("neighbors: 20", "neighbors: 7"))
    with pytest.raises(UserError, match="neighbors: only for knn"):
        run(folder, "other", resume=True, neighbors=7, **options)
    monkeypatch.setattr(ExtractorRecord, "tiles", lambda self: {"\u00b5m per pixel": float(id(self))})
    with pytest.raises(UserError, match=r"per pixel instead of .*; use tiles of one kind"):
        run(folder, resume=True, neighbors=7, **options)
    splits.write_text(splits.read_text().replace('"slides_by"', '"version"'))
    assert "macro_auc" in run(folder, resume=True, neighbors=7, **options)
    assert "warning: the study has tiles of several kinds: " in capfd.readouterr().err


def test_the_sweep_is_decided_by_the_validation_cases_and_sites_stay_together(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = study(), {"model": "mean", "attention": 0, "site": "hospital", "class_weights": "balanced"}
    options["lr"] = [1e-3, 1e-9]
    run(folder, **options)
    with (folder / "table.csv").open() as file:
        sites = {row["case_id"]: row["hospital"] for row in csv.DictReader(file)}
    for fold in json.loads((folder / "run" / "splits.json").read_text())["folds"]:
        train, validation, test = ({sites[name] for name in fold[part]} for part in ("train", "validation", "test"))
        assert not train & test and not validation & test and not train & validation
    for fold in ("fold_0", "fold_1"):
        tried = {
            lr: load_model(folder / f"run/{fold}/lr{lr}_wd0.0001/model.safetensors")[1] for lr in ("0.001", "1e-09")
        }
        chosen = load_model(path := folder / "run" / fold / "model.safetensors")[1]
        best = max((notes.score, -notes.loss) for notes in tried.values())
        assert (chosen.score, -chosen.loss) == best
    path.unlink()
    (folder / "run" / "fold_1" / "answers.json").unlink()
    with monkeypatch.context() as patched, pytest.raises(OSError, match="stopped"):  # the file is whole, or not there
        patched.setattr("densepath.transfer.mil.fold.shutil.copyfile", half_of)
        run(folder, resume=True, **options)
    run(folder, resume=True, **options)
    first = path.parent / "lr0.001_wd0.0001" / path.name
    model, notes = load_model(first)
    save_model(first, model, replace(notes, score=math.nan))  # is never better
    path.unlink()
    (path.parent / "answers.json").unlink()
    run(folder, resume=True, **options)
    assert load_model(path)[1] == tried["1e-09"]


def half_of(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes()[:100])
    raise OSError("stopped")


def test_the_attention_of_the_predicted_class_is_drawn(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the class whose probability exceeds its threshold by most, not the one with the highest."""
    folder, shown = study(), {}

    def write(self: AttentionFiles, name: str, tiles: Any, attention: Any, own: int) -> None:
        shown[name[:3]] = ("benign", "tumour")[own]

    monkeypatch.setattr(AttentionFiles, "write", write)
    monkeypatch.setattr("densepath.transfer.mil.fold.choose_thresholds", lambda *_: np.array([0.0, 1.0]))
    run(folder, attention="all", epochs=1)
    predicted = {row["PATIENT"]: row["pred"] for row in predictions(folder / "run")}
    assert shown == predicted and set(predicted.values()) == {"benign"}


def test_a_low_rate_of_the_user_does_not_rise() -> None:
    """The cosine of DSMIL ends at 5e-6."""
    bags = bag_task.BagSet([bag_task.Bag("a", (), (1,), torch.zeros(1, 2).half())], np.array([0]), np.array([[0.0]]))
    for lr, last in ((1e-6, 1e-6), (2e-4, 5e-6)):
        model = DSMIL(2, 2)
        task = bag_task.BagTask(model, Classification(2, False), replace(DSMIL.solver, lr=lr, epochs=4), bags, 1)
        factor = task.updates().schedule.lr_lambdas[0]  # type: ignore[union-attr]
        rates = [lr * factor(step) for step in range(5)]
        assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(last)


def test_what_later_versions_refuse_is_a_warning_in_a_resumed_run(
    study: Study, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, names = study(patients=12), ["7", "007", *(f"P{n:02d}" for n in range(2, 12))]
    lines = [f"{name},P{n:02d}_0,{n},{n // 6}" for n, name in enumerate(names)]
    (folder / "table.csv").write_text("\n".join(["case_id,slide_id,months,died", *lines]))
    fold = {"train": names[:5], "validation": names[6:9], "test": names[9:]}  # an event only from the sixth case
    (folder / "given.json").write_text(json.dumps({"folds": [fold]}))
    options: dict[str, Any] = {"target": "months", "event": "died", "task": "survival", "model": "mean", "epochs": 1}
    options |= {"attention": 0, "splits": folder / "given.json", "folds": MilConfig.folds}
    with monkeypatch.context() as earlier:
        earlier.setattr("densepath.transfer.mil.slide_table.check_spelling", lambda *_, **__: None)
        earlier.setattr("densepath.transfer.mil.splits._check_targets", lambda *_: None)
        run(folder, **options)
    capfd.readouterr()
    run(folder, resume=True, **options)
    err = capfd.readouterr().err
    assert "count as different ones: 007, 7; spell" in err and "have no event, from which survival is learned" in err
    with pytest.raises(UserError, match="patients that differ in capitals"):
        run(folder, "new", **options)


@pytest.mark.parametrize("task", ["regression", "survival"])
def test_numbers_and_survival(study: Study, task: str) -> None:
    folder = study(signal=20.0, patients=30)
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (folder / "table.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "slide_id", "months", "died"])
        for n, row in enumerate(rows):
            tumour = row["label"] == "tumour"
            writer.writerow(
                [row["case_id"], row["slide_id"], 5 + n % 3 if tumour else 40 + n % 5, int(tumour or n % 4 == 0)]
            )
    options = {"target": "months", "event": "died"} if task == "survival" else {"target": "months"}
    result = run(folder, task=task, model="mean", lr=[0.03], epochs=20, attention=0, **options)
    assert result["concordance" if task == "survival" else "pearson"] > 75
    with (folder / "run" / "patient-preds.csv").open() as file:
        first, *_, last = sorted(csv.DictReader(file), key=lambda row: float(row["months"]))
    if task == "survival":  # a higher risk for an earlier event
        assert float(first["months_risk"]) > float(last["months_risk"])
    else:
        assert float(first["months_predicted"]) < float(last["months_predicted"])
    with pytest.raises(UserError, match="clam answers classes only"):
        run(folder, "other", task=task, model="clam", **options)


def test_fewer_tiles_in_training_and_bags_of_other_sets(study: Study) -> None:
    folder = study(tiles=30)
    bags = bag_task.BagSet(
        [bag_task.Bag("a", (), (30,), torch.arange(30.0)[:, None].half())], np.array([0]), np.array([[1.0]])
    )
    drawn = [batch.tiles[0][:, 0].tolist() for batch in bag_task.BagBatches(bags, 1, 3, 0, most=10)]
    assert all(len(set(tiles)) == 10 and tiles == sorted(tiles) for tiles in drawn) and drawn[0] != drawn[1]
    run(folder, max_tiles=5, attention=0, epochs=1, model="mean")
    two = bag_task.BagSet(bags.bags * 4, np.array([0, 0, 0, 1]), np.array([[1.0], [0.0]]))
    assert balanced(two, 2).tolist() == [2, 4 / 6]  # the class of a case counts with each of its bags


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", "1"], "folds is 1; give 2 or more"),
        (["--folds", "20"], "benign has cases of 12 patients, fewer than the 20 folds; use --folds 12"),
        (["--model", "dsmill"], "no model is called 'dsmill'; did you mean dsmil or dsmil_linear?"),
        (["--target", "stage"], "has no column stage"),
        (["--task", "survival"], "survival needs --event"),
        (["--splits", "no.json"], "no.json does not exist"),
        (["--splits", "no.json", "--folds", "4"], "folds: only for folds that are drawn, not those of --splits"),
        (["--data", "nowhere"], "there is no folder of features at nowhere"),
        (["--validation", "0"], "validation is 0"),
        (["--event", "label"], "event: only for --task survival; leave that out"),
        (["--task", "regression", "--classes", "a=1,2"], "classes: only for classification; leave that out"),
        (["--task", "regression", "--class_weights", "balanced"], "class_weights: only for classification"),
        (["--model", "abmil", "--neighbors", "7"], "neighbors: only for knn; leave that out"),
        (
            ["--model", "knn", "--epochs", "3", "--lr", "0.1"],
            "epochs and lr: only for models that are trained, not knn; leave these out",
        ),
        (["--model", "knn", "--class_weights", "balanced"], "class_weights: only for models that are trained"),
        (["--model", "knn", "--max_tiles", "9"], "max_tiles: only for models that are trained, not knn"),
        (["--slides", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(study: Study, capfd: Any, options: list[str], message: str) -> None:
    folder = study()
    command = ["mil", "--data", f"{folder}/features", "--table", f"{folder}/table.csv", "--out", f"{folder}/run"]
    assert main([*command, "--devices", "cpu", *options]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("densepath: error: ") and message in error
    assert not (folder / "run").exists()


def test_tables_of_other_encodings(study: Study) -> None:
    folder = study(patients=12)
    text = (folder / "table.csv").read_text().replace("tumour", "b\u00f6se")
    (folder / "table.csv").write_text(text, encoding="utf-16")
    run(folder, model="mean", epochs=1, attention=1)
    assert "b\u00f6se" in (folder / "run" / "patient-preds.csv").read_text(encoding="utf-8")
    (folder / "table.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"line 3 of .*table\.csv is not UTF-8"):
        run(folder, "other", model="mean", epochs=1)


def test_hdf5_of_clam_trident_stamp_and_ours(study: Study, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    folder = study(patients=12)
    layouts = {0: ("features", "coords"), 1: ("feats", "coords"), 2: ("features", None)}
    for number, file in enumerate(sorted((folder / "features").glob("*.pt"))):
        values = torch.load(file, weights_only=True).numpy()
        key, coords = layouts[number % 3]
        with h5py.File(file.with_suffix(".h5"), "w") as opened:
            opened.create_dataset(key, data=values, chunks=(1, values.shape[1]))
            if coords:
                opened[coords] = np.stack((np.arange(len(values)) * 512, np.zeros(len(values), int)), 1)
                if key == "features":  # some files of "feats" say nothing about their coordinates
                    opened[coords].attrs["patch_size_level0"] = 512
            else:
                opened["metadata"] = [f"0_{row}_0_506.jpg".encode() for row in range(len(values))]
        file.unlink()
    run(folder, attention="all", model="mean", epochs=1)
    assert len(list((folder / "run" / "attention").glob("*.csv"))) == 12
    objects = json.loads(next((folder / "run" / "attention").glob("*.geojson")).read_text())
    ring = objects["features"][1]["geometry"]["coordinates"][0]
    assert ring[0] == [512, 0] and ring[2] == [1024, 512]


def test_values_that_are_none_are_refused_in_python(tmp_path: Path) -> None:
    for name in ("task", "grouping", "class_weights"):
        with pytest.raises(UserError, match=f"{name} is 'balance'; give .* or "):
            MilConfig(tmp_path, tmp_path, tmp_path, **{name: "balance"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"takes a MilConfig, or its options by name, such as data=.* of type str"):
        mil("features")  # type: ignore[arg-type]


def test_a_mistake_after_training_leaves_the_models(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("the disk is full")

    folder = study(patients=12)
    monkeypatch.setattr("densepath.transfer.mil.mil.write_results", refuse)
    with pytest.raises(UserError, match="the disk is full"):
        run(folder, model="mean", epochs=1)
    assert (folder / "run" / "fold_1" / "model.safetensors").exists()


def test_slides_of_pretraining_are_refused_by_any_file_or_recorded(study: Study, capfd: Any) -> None:
    folder = study(patients=12)
    h5py = pytest.importorskip("h5py")
    for n, file in enumerate(sorted((folder / "features").glob("*.pt"))):
        with h5py.File(file.with_suffix(".h5"), "w") as opened:
            opened["features"] = torch.load(file, weights_only=True).numpy()
            opened.attrs["densepath"] = json.dumps({"pretraining_slides": ["P03_0.svs"] if n == 8 else []})
        file.unlink()
    with pytest.raises(UserError, match=r"leak: 1 test slide is a slide .* pre-trained on: P03_0; pre-train"):
        run(folder)
    assert not (folder / "run").exists()
    run(folder, allow_pretraining_slides=True, model="mean", epochs=1)
    assert (
        "warning: the features' backbone was pre-trained on 1 test slide and on slides of 1" in capfd.readouterr().err
    )
    scores = json.loads((folder / "run" / "scores.json").read_text())
    assert (scores["test_slides_in_pretraining"], scores["test_patients_in_pretraining"]) == (1, 1)


def test_runs_of_versions_without_an_option_continue(study: Study) -> None:
    folder = study(patients=12)
    run(folder, model="mean", epochs=1)
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace("allow_pretraining_slides: false\n", ""))
    run(folder, model="mean", epochs=1, resume=True)
    with pytest.raises(UserError, match="other values of allow_pretraining_slides"):
        run(folder, model="mean", epochs=1, resume=True, allow_pretraining_slides=True)
