"""The verb: folds, seeds, several labels, official splits, resuming, and what it refuses."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import densepath
from densepath.core.errors import UserError
from densepath.core.result import Result
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights
from densepath.report.runs import read_sessions
from densepath.runs.signals import Interrupted
from densepath.sources import decode, image_files, patience
from densepath.sources.corrupt import LARGEST_SHARE, CorruptImage
from densepath.sources.open import find_source
from densepath.sources.packing import pack
from densepath.training.recipes import recipe_names
from densepath.training.resolve import resolve
from densepath.transfer.classify import training
from densepath.transfer.classify.cohort import Pool, read_pool
from densepath.transfer.classify.config import ClassifyConfig, Crops
from densepath.transfer.classify.splits import Study, only_listed
from densepath.transfer.classify.trained import load_classifier
from densepath.transfer.classify.training import answers_of, keep_answers, kept_answers
from densepath.transfer.trainings import check_same
from densepath.verbs import VERBS

from .conftest import write_images, write_table

Classify = Callable[..., Result]
CommandLine = Callable[..., subprocess.Popen[str]]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_folds_by_patient_test_each_image_once(data: Path, classify: Classify, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = classify(data=data / "images", labels=data / "labels.csv", folds=2, seeds=2, epochs=1)
    predictions = rows(out / "predictions.csv")
    assert sorted(row["image"] for row in predictions if row["run"].startswith("seed_0")) == sorted(
        row["file"] for row in rows(data / "labels.csv")
    )
    owners = {row["file"]: row["patient"] for row in rows(data / "labels.csv")}
    for split in json.loads((out / "splits.json").read_text())["seed_1"]:
        parts = [{owners[name] for name in split[part]} for part in ("train", "validation", "test")]
        assert all(parts) and not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    (session,) = read_sessions(out)
    assert session["folder"] == os.getcwd() and session["data"] == {"images": 24}
    record = json.loads((out / "metrics.json").read_text())
    assert record["labels"] == {"a": 12, "b": 12} and record["test_images"] == 24  # each once, not for each seed
    each = [run["macro_auc"] for run in record["runs"].values()]
    assert len(each) == 4 and record["scores"]["macro_auc"]["mean"] == pytest.approx(np.mean(each))
    assert result["macro_auc_spread"] == pytest.approx(np.std(each, ddof=1))
    backbone = build_backbone("test_resnet")
    assert f"tensors from {out / 'exported/classifier.safetensors'}" in load_weights(backbone, out)
    # The exported classifier is one of the four, and not chosen by the test
    exported, best = (load_file(out / part / "exported/classifier.safetensors") for part in ("", record["exported"]))
    assert all(torch.equal(exported[name], best[name]) for name in best)
    assert result.plot().size[0] > 100 and (out / "pictures/confusion.png").is_file()
    written = load_file(densepath.export(result, tmp_path / "timm.safetensors", layout="timm"))
    assert all(torch.equal(written[name], value) for name, value in backbone.net.state_dict().items())
    card = (tmp_path / "timm.safetensors.md").read_text()
    assert f"| macro_auc | {result['macro_auc']:.2f} |" in card


def test_folds_of_the_official_training_set_are_all_tested_on_the_official_test_set(
    data: Path, classify: Classify, tmp_path: Path
) -> None:
    table = rows(data / "labels.csv")
    split = [[*row.values(), "test" if row["patient"] in ("P00", "P10") else "train"] for row in table]
    labels = write_table(data / "split.csv", ["file", "label", "patient", "split"], split)
    classify(data=data / "images", labels=labels, folds=2, epochs=1, freeze=True)
    splits = json.loads((tmp_path / "run/splits.json").read_text())["seed_0"]
    tested = {row[0] for row in split if row[3] == "test"}
    assert [set(part["test"]) for part in splits] == [tested, tested]
    held = [set(part["validation"]) for part in splits]
    assert not held[0] & held[1] and held[0] | held[1] == {row[0] for row in split if row[3] == "train"}
    split[0][3] = "train"  # an image of a test patient
    write_table(labels, ["file", "label", "patient", "split"], split)
    with pytest.raises(UserError, match="leak: patients with train and test images: P00"):
        classify(data=data / "images", labels=labels, out=tmp_path / "leak")


def test_the_brightness_of_grey_images_is_changed(data: Path, classify: Classify) -> None:
    """The part of the color jitter that needs no colors."""
    for path in (data / "images").rglob("*.png"):
        Image.open(path).convert("L").save(path)
    jitter = Crops(jitter=1.0, saturation=0.0, hue=0.0)
    result = classify(data=data / "images", labels=data / "labels.csv", validation=0.5, epochs=1, augment=jitter)
    assert 0 <= result["accuracy"] <= 100


def test_smaller_fractions_are_parts_of_larger_ones(data: Path, classify: Classify, tmp_path: Path) -> None:
    test = write_images(tmp_path / "test", patients=2, each=1, seed=1, letter="Q")
    used = []
    for share in (0.5, 0.8):
        out = tmp_path / f"run{share}"
        given = {"test_data": test / "images", "fraction": share, "epochs": 1, "patient_regex": r"([PQ]\d+)_"}
        classify(data=data / "images", out=out, freeze=True, **given)
        (split,) = json.loads((out / "splits.json").read_text())["seed_0"]
        used.append({*split["train"], *split["validation"]})
    assert used[0] < used[1] and len(used[1]) < 24


def test_only_listed_images_are_trained_on(
    data: Path, classify: Classify, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = write_images(tmp_path / "test", patients=2, each=1, seed=1, letter="Q")
    given = {"test_data": test / "images", "epochs": 1, "patient_regex": r"([PQ]\d+)_", "freeze": True}
    paths = sorted(str(path) for path in (data / "images").glob("*/P?[0-3]_*.png"))
    owners = [f"P{k}{p}" for k in range(2) for p in range(4)]
    for number, lines in enumerate((paths, owners, [path.replace("/", "\\") for path in paths])):
        text = "\r\n".join([*lines, "", "elsewhere.png"])
        encoding = ("utf-8-sig", "utf-16", "utf-8")[number]  # as Windows writes it
        (tmp_path / "left.txt").write_bytes(text.encode(encoding))
        out = tmp_path / f"run{number}"
        classify(data=data / "images", out=out, train_images=tmp_path / "left.txt", **given)
        said = f"no training image for 1 line of {len(lines) + 1} in {tmp_path / 'left.txt'}: elsewhere.png"
        assert said in capsys.readouterr().err
        (split,) = json.loads((out / "splits.json").read_text())["seed_0"]
        used = {*split["train"], *split["validation"]}
        assert used == {str(Path(path).relative_to(data / "images")) for path in paths}
        assert len(split["test"]) == 4
    (tmp_path / "left.txt").write_text("\n".join(sorted(str(path) for path in (data / "images").glob("*/*.png"))))
    with pytest.raises(UserError, match=r"divided in another way than in .*splits\.json \(another --train_images"):
        classify(data=data / "images", out=out, train_images=tmp_path / "left.txt", resume=True, **given)
    assert json.loads((out / "splits.json").read_text())["seed_0"] == [split]
    (tmp_path / "left.txt").write_text("elsewhere.png")
    with pytest.raises(UserError, match=r"none of the training images is in .*left\.txt"):
        classify(data=data / "images", out=tmp_path / "no", train_images=tmp_path / "left.txt", **given)
    (tmp_path / "left.txt").write_bytes(b"a\0b")
    with pytest.raises(UserError, match="none of the training images is in"):
        classify(data=data / "images", out=tmp_path / "no", train_images=tmp_path / "left.txt", **given)
    with pytest.raises(UserError, match="--train_images needs official test images"):
        classify(data=data / "images", out=tmp_path / "no", train_images=tmp_path / "left.txt")
    with pytest.raises(UserError, match="cannot be read"):
        classify(data=data / "images", out=tmp_path / "no", train_images=tmp_path / "absent.txt", **given)


def test_a_listed_name_with_a_backslash_is_not_that_of_another_folder(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "images/a/P00_0.png", data / "images/a\\P00_0.png")
    labels = data / "labels.csv"
    labels.write_text(labels.read_text() + "a\\P00_0.png,b,P10\n")
    images = data / "images"
    pool = read_pool(ClassifyConfig(data=images, labels=labels, out=""), find_source(images), images, labels)
    study = Study(pool, pool, np.arange(len(pool)), np.array([], np.int64), np.arange(1))
    for line, expected in (("a\\P00_0.png", "a\\P00_0.png"), ("a\\P00_1.png", "a/P00_1.png")):
        (tmp_path / "list.txt").write_text(line)
        assert [pool.names[p] for p in only_listed(study, tmp_path / "list.txt").fit] == [expected]


def test_test_images_of_one_class_are_said_before_the_training(
    data: Path, classify: Classify, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rows(data / "labels.csv")
    split = [[*row.values(), "test" if row["patient"] == "P00" else "train"] for row in table]
    labels = write_table(data / "split.csv", ["file", "label", "patient", "split"], split)
    with warnings.catch_warnings(action="error"):
        classify(data=data / "images", labels=labels, epochs=1, freeze=True)
    said = capsys.readouterr().err
    assert "all test images are a, so AUC and average precision are undefined" in said.partition("random weights")[0]
    assert "undefined, as the test images lack a class: macro_auc" in said and "nan" not in said
    with pytest.raises(UserError, match="use a larger batch_size, or a larger view_size"):
        classify(data=data / "images", labels=labels, out=tmp_path / "lonely", batch_size=1)


def test_several_labels_with_unknown_ones(data: Path, classify: Classify, tmp_path: Path) -> None:
    listed = list(enumerate(rows(data / "labels.csv")))
    table = [[r["file"], int(r["label"] == "a"), "" if i % 5 == 0 else i % 2, r["patient"]] for i, r in listed]
    linear: dict[str, Any] = {"freeze": True, "epochs": 10, "optimizer": {"lr": 0.1}}
    labels = write_table(data / "many.csv", ["Image Index", "Mass", "Edema", "Patient ID"], table)
    result = classify(data=data / "images", labels=labels, targets=("Mass", "Edema"), folds=2, **linear)
    assert result["auc_Mass"] > 60 and {"auc_Edema", "macro_f1", "balanced_accuracy"} <= {*result}
    first = rows(tmp_path / "run/predictions.csv")[0]
    assert {"label Mass", "label Edema", "p Mass", "p Edema"} <= first.keys()
    parts = ("Mass|Edema", "Mass", "No Finding", "No Finding")
    lists = [[r["file"], parts[2 * (r["label"] == "b") + i % 2]] for i, r in listed]
    labels = write_table(data / "lists.csv", ["Image Index", "Finding Labels"], lists)
    given: dict[str, Any] = {"target": "Finding Labels", "separator": "|", "patient_regex": r"(P\d+)_"}
    classify(data=data / "images", labels=labels, out=tmp_path / "lists", folds=2, epochs=1, freeze=True, **given)
    assert json.loads((tmp_path / "lists/metrics.json").read_text())["labels"] == {"Edema": 6, "Mass": 12}


def test_a_stopped_run_resumes_to_the_same_bits(
    data: Path, classify: Classify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from densepath.transfer.classify.task import ClassifyTask

    given = {"data": data / "images", "labels": data / "labels.csv", "folds": 2, "epochs": 3, "patience": 1}
    classify(**given)
    steps, plain = [], ClassifyTask.after_step

    def stop(task: ClassifyTask) -> None:
        plain(task)
        steps.append(1)
        if len(steps) in (2, 6):
            raise KeyboardInterrupt

    monkeypatch.setattr(ClassifyTask, "after_step", stop)
    again = {**given, "out": tmp_path / "again", "save_every_steps": 1}
    for _ in range(2):
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            classify(**again, resume=True)
    classify(**again, resume=True)
    for name in ("predictions.csv", "scores.csv"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "again" / name).read_text()
    weights = [load_file(tmp_path / run / "exported/classifier.safetensors") for run in ("run", "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(UserError, match="was started with other values of folds"):
        classify(**{**again, "folds": 3}, resume=True)
    for path in (tmp_path / "again/splits.json", tmp_path / "again/fold_0/answers.json"):
        path.write_text(path.read_text()[:200])  # cut when the machine went down
        with pytest.raises(UserError, match=rf"{path.name} is not JSON .*; give a whole copy, or remove it"):
            classify(**again, resume=True)
        path.unlink()
    classify(**again, resume=True)
    assert (tmp_path / "run/predictions.csv").read_text() == (tmp_path / "again/predictions.csv").read_text()


def test_a_trained_classifier_answers_as_in_its_test(
    data: Path,
    classify: Classify,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from densepath.transfer.predict import predict

    opened = decode._open

    def failing(path: Any) -> Any:
        if Path(path).name == names[3]:
            raise OSError(errno.EIO, "Input/output error")
        return opened(path)

    names = sorted(path.name for path in (data / "images").rglob("*.png"))
    result = classify(data=data / "images", labels=data / "labels.csv", folds=2, epochs=2)
    folds = json.loads((tmp_path / "run/metrics.json").read_text())
    tested = {row["image"]: row for row in rows(tmp_path / "run/predictions.csv") if row["run"] == folds["exported"]}
    (data / "images" / "broken.png").write_bytes(b"no image")
    (data / "images" / "scan.nii.gz").touch()
    given: dict[str, Any] = {"data": data / "images", "out": tmp_path / "new", "devices": "cpu", "precision": "32"}
    with monkeypatch.context() as patched, pytest.raises(UserError, match="Input/output error"):
        patched.setattr(patience, "PAUSES", ())
        patched.setattr(decode, "_open", failing)
        predict(result, **given)
    assert not (tmp_path / "new/predictions.csv").exists()  # without an image it would look complete
    done = predict(result, **given)
    assert (done["images"], done["damaged"]) == (25, 1)
    assert "25 images; passed over: 1 .gz file" in capsys.readouterr().err
    new = {row["image"]: row for row in rows(tmp_path / "new/predictions.csv")}
    for name, row in tested.items():
        assert new[name]["predicted"] == row["predicted"]
        assert float(new[name]["p b"]) == pytest.approx(float(row["p b"]), abs=1e-4)
    name, row = next(iter(tested.items()))
    classifier = load_classifier(tmp_path / "run")
    found = classifier.predict(data / "images" / name)
    assert found["b"] == pytest.approx(float(row["p b"]), abs=1e-4) and sum(found.values()) == pytest.approx(1)
    with Image.open(data / "images" / name) as picture, warnings.catch_warnings(action="error"):
        for same in (picture, np.asarray(picture), np.asarray(picture).astype(np.uint16) * 257):
            assert classifier.predict(same) == found
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(data / "images" / name, other / "new.png")
    before = (tmp_path / "new/predictions.csv").read_text()
    with pytest.raises(UserError, match=r"new holds results of other images .*; use another folder"):
        predict(result, data=other, out=tmp_path / "new", devices="cpu", precision="32")
    assert (tmp_path / "new/predictions.csv").read_text() == before
    predict(result, data=data / "images" / "a", out=tmp_path / "a", devices="cpu", precision="32")
    shutil.copy(next((data / "images" / "a").iterdir()), other)
    predict(result, data=other, out=tmp_path / "a", devices="cpu", precision="32")
    assert "predictions.csv loses the lines of 11 images not in the data" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"gone\.png: the file is missing"):
        classifier.predict("gone.png")
    for idle in ({"score": 0.3}, {"pictures": 2}):
        with pytest.raises(UserError, match=f"{next(iter(idle))}: only for detectors"):
            predict(result, data=data / "images", out=tmp_path / "no", **idle)  # type: ignore[arg-type]


def test_what_cannot_be_learned_is_refused_in_one_line(data: Path, classify: Classify, tmp_path: Path) -> None:
    table = [[*row.values()] for row in rows(data / "labels.csv")]
    heads = ["file", "label", "patient"]

    def refused(message: str, changed: list[list[Any]] | None = None, **options: Any) -> None:
        labels = data / "labels.csv" if changed is None else write_table(data / "changed.csv", heads, changed)
        with pytest.raises(UserError, match=message):
            classify(**{"data": data / "images", "labels": labels, "out": tmp_path / "no", **options})
        assert not (tmp_path / "no").exists()

    refused("all images are of one class in .*, a;", [[f, "a", p] for f, _, p in table])
    refused("fewer than the 7 folds; use --folds 6", folds=7)
    refused("whose label in .* is empty or NaN: a/P00_0.png", [[table[0][0], "NaN", "P00"], *table[1:]])
    refused("1 image without a label in .*: a/P00_0.png; .*--unmatched skip", table[1:])
    refused("1 label of an unknown image in .*: line 26", [*table, ["new.png", "a", "P9"]])
    refused("images without a patient in .*: a/P00_0.png", [[*table[0][:2], ""], *table[1:]], patient="patient")
    refused("has no column sex", target="sex")
    refused("labels in .* that are not 0, 1, -1 or empty: a/P00_0.png \\(label 'a'\\)", targets=("label",))
    refused("there are no test images", folds=0)
    refused("a fraction of 0.1 of the training images lacks", fraction=0.1, folds=2)
    refused("folds is 1;", folds=1)
    for folds in (2, 5):  # none has training, validation and test images of two patients
        pair = [row for row in table if row[1] == "b" or row[2] in ("P00", "P01")]
        refused("a has images of 2 patients, and .* need those of 3; add", pair, unmatched="skip", folds=folds)
    devices: dict[str, Any] = {"devices": "cpu:3", "folds": 2}
    refused("batch_size is 8, which cannot be divided among 3 processes; make it a multiple of 3", **devices)
    refused("batch_size is 1, which cannot be divided among 3", **devices, batch_size=1)
    parts = [[f, "new" if p[2] == "5" else k, p, "test" if p[2] == "5" else "train"] for f, k, p in table]
    labels = write_table(data / "parts.csv", [*heads, "split"], parts)
    refused("classes that the training images lack: new;", labels=labels)
    parts = [[f, k, p, "train" if p[2] in "01" else "test"] for f, k, p in table]
    few = write_table(data / "few.csv", [*heads, "split"], parts)
    refused("4 training images cannot be divided among 5 devices", labels=few, devices="cpu:5", batch_size=5)
    refused("give the table with --labels", labels="folders", target="label")
    refused("view_size has 3 sides, and the images have 2 dimensions; give as many", view_size=(32, 32, 32))
    classify(
        data=data / "images",
        labels=write_table(data / "changed.csv", heads, [*table[1:], ["x.png", "a", "P9"]]),
        unmatched="skip",
        folds=2,
        epochs=1,
        freeze=True,
    )
    assert len(rows(tmp_path / "run/predictions.csv")) == 23
    shutil.rmtree(tmp_path / "run")


def test_options_of_the_optimizer_without_effect_are_reported(
    data: Path, classify: Classify, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*given: Any) -> None:
        raise UserError("the start is enough")

    monkeypatch.setattr("densepath.transfer.classify.classify.fit", stop)
    with pytest.raises(UserError, match="the start is enough"):
        classify(data=data / "images", labels=data / "labels.csv", folds=2, optimizer={"clip": "tensor"})
    assert "densepath: optimizer.clip: no effect without clip_norm\n" in capsys.readouterr().err


def test_two_processes_are_one(data: Path, classify: Classify, tmp_path: Path, command_line: CommandLine) -> None:
    test, out = write_images(tmp_path / "test", patients=2, each=2, seed=1, letter="Q"), tmp_path / "two"
    given = {"data": data / "images", "test_data": test / "images", "patient_regex": r"([PQ]\d+)_"}
    classify(**given, optimizer={"lr": 1e-3})
    words = " ".join(f"--{name} {value}" for name, value in given.items())
    small = f"--out {out} --devices cpu:2 --workers 0 --epochs 2 --backbone test_resnet --view_size 32 --batch_size 8"
    process = command_line(f"classify {words} {small} --lr 1e-3 --precision 32", tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    one, two = ([float(row["p b"]) for row in rows(run / "predictions.csv")] for run in (tmp_path / "run", out))
    np.testing.assert_allclose(two, one, atol=2e-3)


@pytest.mark.parametrize("name", recipe_names("classify"))
def test_recipes_are_options_of_the_verb(name: str) -> None:
    given = VERBS["classify"].command("classify").parse(["--config", name, "--data", "d", "--out", "o"])
    assert given["optimizer"]["lr"] > 0
    assert resolve(ClassifyConfig, name, {"data": "d", "out": "o"}, "classify").epochs == given["epochs"]


def test_damaged_validation_images_are_left_out(
    data: Path, classify: Classify, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = [[*row.values(), ("train", "test", "val")[i % 3]] for i, row in enumerate(rows(data / "labels.csv"))]
    heads = ["file", "label", "person", "split"]
    labels = write_table(data / "split.csv", heads, table)
    whole = (data / "images" / table[2][0]).read_bytes()
    (data / "images" / table[2][0]).write_bytes(whole[: len(whole) // 2])  # a header that can be read
    classify(data=data / "images", labels=labels, epochs=1, freeze=True, cache="none")
    said = "".join(capsys.readouterr())
    assert f"1 damaged validation image is left out: {table[2][0]}" in said
    assert len(rows(tmp_path / "run/predictions.csv")) == 8


def test_a_damaged_image_moves_no_other_into_another_part(
    data: Path, classify: Classify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LARGEST_SHARE, 2, 0.5)
    damaged = data / "images/a/P00_0.png"
    damaged.write_bytes(damaged.read_bytes()[:-1000])  # its header can be read
    classify(data=data / "images", labels=data / "labels.csv", folds=2, epochs=1, freeze=True, cache="ram")
    answered = rows(tmp_path / "run/predictions.csv")
    for number, split in enumerate(json.loads((tmp_path / "run/splits.json").read_text())["seed_0"]):
        tested = {row["image"] for row in answered if row["run"] == f"fold_{number}"}
        assert tested == set(split["test"]) - {"a/P00_0.png"}


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_a_damaged_test_image_that_is_replaced_gets_its_own_answer(
    cache: str, data: Path, classify: Classify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LARGEST_SHARE, 2, 0.5)
    labels = [[*row.values(), ("test", "train")[i % 2]] for i, row in enumerate(rows(data / "labels.csv"))]
    table = write_table(data / "split.csv", ["file", "label", "person", "split"], labels)
    given: dict[str, Any] = {"data": data / "images", "labels": table, "epochs": 1, "freeze": True}
    damaged = data / "images" / labels[0][0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1000])  # its header can be read
    classify(**given, cache=cache)
    before = {row["image"]: row for row in rows(tmp_path / "run/predictions.csv")}
    damaged.write_bytes(whole)
    asked: list[int] = []
    monkeypatch.setattr(training, "answers_of", lambda *a: asked.extend(a[-1]) or answers_of(*a))  # type: ignore[func-returns-value]
    classify(**given, cache="none", resume=True)
    assert len(asked) == 1  # the answers for the others are kept
    after = {row["image"]: row for row in rows(tmp_path / "run/predictions.csv")}
    assert after.keys() - before.keys() == {labels[0][0]}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(("part", "cache"), [("test", "none"), ("test", "ram"), ("val", "none")])
def test_no_score_lacks_images_that_a_later_attempt_may_read(
    part: str, cache: str, data: Path, classify: Classify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LARGEST_SHARE, 2, 0.5)
    labels = [
        [*row.values(), ("test", "val", "train", "train")[i // 2 % 4]]
        for i, row in enumerate(rows(data / "labels.csv"))
    ]
    table = write_table(data / "split.csv", ["file", "label", "person", "split"], labels)
    given: dict[str, Any] = {"data": data / "images", "labels": table, "epochs": 1, "freeze": True, "cache": cache}
    lost, read = next(row[0] for row in labels if row[-1] == part), image_files.read_image

    def failing(path: Any, *given: Any) -> Any:
        if str(path).endswith(lost):
            raise CorruptImage(str(path), "cannot be read") from PermissionError(errno.EACCES, "Permission denied")
        return read(path, *given)

    with monkeypatch.context() as patched, pytest.raises(UserError, match=f"1 image cannot be read now: .*{lost}"):
        patched.setattr(image_files, "read_image", failing)
        classify(**given)
    assert not (tmp_path / "run/metrics.json").exists()
    asked: list[int] = []
    monkeypatch.setattr(training, "answers_of", lambda *a: asked.extend(a[-1]) or answers_of(*a))  # type: ignore[func-returns-value]
    classify(**given, resume=True)
    tested = {row["image"] for row in rows(tmp_path / "run/predictions.csv")}
    assert tested == {row[0] for row in labels if row[-1] == "test"}
    assert len(asked) == (1 if (part, cache) == ("test", "none") else len(tested))


def test_a_damaged_digest_of_the_images_is_that_of_others(data: Path, tmp_path: Path) -> None:
    config = ClassifyConfig(data=data / "images", labels=data / "labels.csv", out=tmp_path)
    pool = read_pool(config, find_source(config.data), config.data, config.labels)
    study: Any = SimpleNamespace(train=pool, test=pool)
    for _ in range(2):
        check_same(tmp_path, study)
    (tmp_path / "study.txt").write_bytes(b"\xff" + (tmp_path / "study.txt").read_bytes()[1:])
    with pytest.raises(UserError, match=r"the images or the labels of the run in .* have changed"):
        check_same(tmp_path, study)


def test_answers_are_compared_with_image_files_or_with_the_pixels_of_a_store(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = data / "images", tmp_path / "answers.json"
    store = pack(folder, tmp_path / "store.safetensors")

    def pool_of(source: Path) -> Pool:
        config = ClassifyConfig(data=source, labels=data / "labels.csv", out=tmp_path / "run")
        pool = read_pool(config, find_source(source), source, config.labels)
        return pool.take(np.array([1, 3]))

    changed = folder / pool_of(folder).names[1]
    monkeypatch.chdir(folder)  # where the names in the store are paths
    for source in (folder, store):
        path.unlink(missing_ok=True)
        keep_answers(path, pool_of(source), {0: [0.5], 1: [0.25]})
        Image.open(changed).rotate(90).resize((30, 30)).save(changed)
        if source == store:
            assert kept_answers(path, pool_of(source)) == ({0: [0.5], 1: [0.25]}, [])
            store.unlink()
            pack(folder, store)  # with the changed file
        with pytest.raises(UserError, match=f"test images .* have changed: {pool_of(source).names[1]};"):
            kept_answers(path, pool_of(source))


def test_a_damaged_image_among_those_whose_sizes_are_sampled(data: Path, classify: Classify) -> None:
    """The command line reports it, and does not call it a bug."""
    (data / "images" / rows(data / "labels.csv")[0]["file"]).write_bytes(b"")
    with pytest.raises(UserError, match=r"damaged.*the file is empty"):
        classify(data=data / "images", labels=data / "labels.csv", folds=2, epochs=1)
    for row in rows(data / "labels.csv"):
        (data / "images" / row["file"]).write_bytes(b"")
    with pytest.raises(UserError, match="the file is empty"):
        classify(data=data / "images", labels=data / "labels.csv", folds=2, epochs=1)
