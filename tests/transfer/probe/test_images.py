"""The probe of images: classifiers and scores against other implementations, folds by patient, labels, files."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from densepath.annotations.classes import Classes
from densepath.cli import main
from densepath.core.errors import UserError
from densepath.transfer.embed.feature_file import Features, Shape, write_features
from densepath.transfer.probe.classifiers import STRENGTHS, logistic_regression, nearest_neighbors
from densepath.transfer.probe.folds import make_folds
from densepath.transfer.probe.images import probe_images
from densepath.transfer.probe.labelled import Labels, label
from densepath.transfer.probe.metrics import evaluate
from densepath.transfer.probe.probe import probe
from densepath.transfer.probe.stratified import stratified_group_folds


def random_case(seed: int = 0, n: int = 60, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Classes, and probabilities with ties."""
    rng = np.random.default_rng(seed)
    truth = np.append(np.arange(k), rng.integers(0, k, n - k))
    chances = rng.integers(1, 5, (n, k)) + 2.0 * (truth[:, None] == np.arange(k)) * rng.integers(0, 2, (n, 1))
    return truth, chances / chances.sum(1, keepdims=True)


@pytest.mark.parametrize("k", [2, 3])
def test_scores_are_those_of_scikit_learn(k: int) -> None:
    truth, chances = random_case(k=k)
    found = evaluate(truth, chances, np.zeros(60, int), np.arange(60), seed=0, repeats=20)
    area = roc_auc_score(truth, chances if k > 2 else chances[:, 1], multi_class="ovr", average="macro")
    assert found["accuracy"].value == pytest.approx(100 * accuracy_score(truth, chances.argmax(1)))
    assert found["balanced_accuracy"].value == pytest.approx(100 * balanced_accuracy_score(truth, chances.argmax(1)))
    assert found["macro_auc"].value == pytest.approx(100 * area)


def test_only_images_of_one_fold_are_compared() -> None:
    """Two classifiers that are both perfect, on different scales."""
    truth = np.array([0, 1, 0, 1])
    positive = np.array([0.1, 0.2, 0.8, 0.9])
    chances = np.stack([1 - positive, positive], axis=1)
    areas = [
        evaluate(truth, chances, np.array(folds), np.arange(4), 0, 10)["macro_auc"].value
        for folds in ([0, 0, 1, 1], [0, 0, 0, 0])
    ]
    assert areas == [100, 75]


def test_the_interval_is_that_of_patients() -> None:
    """Copies of an image of one patient do not narrow it; those of others do."""
    truth, chances = random_case(n=40)
    four = [np.repeat(x, 4, axis=0) for x in (truth, chances)]
    once = evaluate(truth, chances, np.zeros(40, int), np.arange(40), 0)
    copied = evaluate(*four, np.zeros(160, int), np.repeat(np.arange(40), 4), 0)
    independent = evaluate(*four, np.zeros(160, int), np.arange(160), 0)
    for metric, score in once.items():
        assert copied[metric] == pytest.approx(score) or str(copied[metric]) == str(score)
        width = independent[metric].high - independent[metric].low
        assert width < 0.7 * (score.high - score.low)
    # By the normal approximation of a share.
    p = once["accuracy"].value / 100
    assert once["accuracy"].high - once["accuracy"].low == pytest.approx(392 * (p * (1 - p) / 40) ** 0.5, rel=0.15)


def test_neighbors_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    train, test, truth = rng.normal(1, 1, (50, 6)), rng.normal(1, 1, (20, 6)), rng.integers(0, 3, 50)
    found = nearest_neighbors(train, truth, test, 4, 7).chances
    for row, x in zip(found, test, strict=True):
        a = x - train.mean(0)
        similarity = [float(a @ (b - train.mean(0)) / np.linalg.norm(b - train.mean(0))) for b in train]
        nearest = sorted(range(50), key=lambda i: -similarity[i])[:7]
        assert row.tolist() == [sum(truth[i] == c for i in nearest) / 7 for c in range(4)]


@pytest.mark.parametrize(("dim", "seed"), [(5, 0), (90, 2**63 - 1)])  # fewer and more features than images
def test_logistic_regression_is_that_of_scikit_learn(dim: int, seed: int) -> None:
    rng = np.random.default_rng(0)
    truth = np.tile([0, 1, 2], 20)
    train = rng.normal(size=(60, dim)) * rng.uniform(0.1, 10, dim) + truth[:, None]
    test = rng.normal(size=(30, dim)) + 1
    fitted = logistic_regression(train, truth, test, 3, np.arange(60), seed)
    assert fitted.strength in STRENGTHS
    mean, std = train.mean(0), train.std(0)
    model = LogisticRegression(C=fitted.strength, tol=1e-8, max_iter=10000).fit((train - mean) / std, truth)
    assert np.allclose(fitted.chances, model.predict_proba((test - mean) / std), atol=2e-3)


def features(values: np.ndarray, names: list[str]) -> Features:
    return Features(names, values.astype(np.float32), {})


def named(labels: np.ndarray, patients: int = 10) -> list[str]:
    """Names of images: the class, then the patient."""
    return [f"c{label}/P{number % patients}_{number}.png" for number, label in enumerate(labels)]


BY_FOLDER = Labels("folders", patient_regex=r"(P\d+)_")


def test_constant_features_are_chance_and_separable_ones_perfect() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 120)
    constant = probe_images(features(np.full((120, 4), 3.7), named(labels)), BY_FOLDER)
    separable = probe_images(
        features(np.eye(3)[labels] + 0.01 * np.random.default_rng(1).normal(size=(120, 3)), named(labels)), BY_FOLDER
    )
    for name in ("knn", "logistic"):
        assert constant.scores[name]["macro_auc"].value == 50
        assert constant.scores[name]["balanced_accuracy"].value < 45
        assert {str(score) for score in separable.scores[name].values()} == {"100.0 (100.0 to 100.0)"}
    assert separable.confusion("knn").tolist() == np.diag(np.bincount(labels)).tolist()


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 15)), min_size=20, max_size=60), st.integers(2, 4))
def test_folds_share_no_patient(images: list[tuple[int, int]], count: int) -> None:
    labels, patients = np.array(images).T
    classes = Classes(("a", "b"), torch.from_numpy(labels.astype(np.int32)))
    few = min(len(set(patients[labels == c])) for c in (0, 1)) < count
    try:
        folds = make_folds(classes, np.unique(patients, return_inverse=True)[1], count, seed=0)
    except UserError as error:
        assert few or "cannot be divided" in str(error)
        return
    assert not few
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(len(images)))
    for fold in folds:
        assert not set(patients[fold.train]) & set(patients[fold.test])
        assert sorted([*fold.train, *fold.test]) == list(range(len(images)))
        assert len(set(labels[fold.train])) == 2


def test_two_folds_that_cannot_be_made_are_not_to_be_fewer() -> None:
    classes = Classes(("a", "b"), torch.tensor([1, 0, 0, 1], dtype=torch.int32))
    with pytest.raises(UserError, match="by patient; use another --seed, or leave this class out"):
        make_folds(classes, np.array([0, 1, 2, 2]), 2, seed=0)


def test_folds_are_stratified_and_the_same_with_every_scikit_learn() -> None:
    """The folds of scikit-learn from 1.8; earlier ones counted the images of a group, then shuffled the groups."""
    groups = np.repeat(np.arange(12), [1, 4, 2, 3, 1, 2, 4, 1, 3, 2, 1, 2])
    folds = stratified_group_folds((groups % 3 == 0).astype(np.int64), groups, 3, seed=7)
    assert [folds[groups == group][0] for group in range(12)] == [0, 0, 1, 2, 0, 1, 1, 0, 2, 0, 1, 2]
    patients = np.repeat(np.arange(40), 2)
    classes = Classes(("a", "b"), torch.from_numpy((patients % 4 == 0).astype(np.int32)))
    for seed in (0, 2**40):
        for fold in make_folds(classes, patients, 5, seed):
            assert np.bincount(classes.labels.numpy()[fold.test]).tolist() == [12, 4]


def test_no_strength_is_chosen_by_test_images() -> None:
    """The classifiers of a fold are the same whatever its test images are."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 40)
    values = rng.normal(size=(80, 5)) + labels[:, None]
    test = [f"{'test' if number % 4 < 2 else 'train'}/c{label}/{number}.png" for number, label in enumerate(labels)]
    one = probe_images(features(values, test), Labels("folders"))
    changed = values.copy()
    changed[one.folds[0].test[1:]] += 100
    two = probe_images(features(changed, test), Labels("folders"))
    for name in ("knn", "logistic"):
        assert one.chances[name][0].tolist() == two.chances[name][0].tolist()
    assert one.strengths == two.strengths


def table(path: Path, rows: list[tuple[str, ...]], header: str) -> Labels:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return Labels(str(path))


def test_a_table_gives_labels_patients_and_the_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels, names = np.tile([0, 1], 20), [f"{number}.png" for number in range(40)]
    values = features(rng.normal(size=(40, 4)) + 3 * labels[:, None], names)
    rows = [(f"{i}.png", f"L{y}", f"p{i // 4}", "train" if i % 8 > 3 else "val") for i, y in enumerate(labels)]
    split = probe_images(values, table(tmp_path / "t.csv", rows, "File,label tumour,Patient ID,split"))
    assert len(split.folds) == 1 and split.folds[0].test.tolist() == [i for i in range(40) if i % 8 < 4]
    assert split.images.by_patient.startswith("patient_id in") and len(split.images.patient_names) == 10
    folds = probe_images(values, table(tmp_path / "u.csv", [row[:3] for row in rows], "image,class,who"), folds=2)
    assert len(folds.folds) == 2 and folds.images.by_patient == "" and folds.images.classes.names == ("L0", "L1")
    how = Labels(str(tmp_path / "u.csv"), patient="Who")
    assert len(probe_images(values, how, folds=2).images.patient_names) == 10
    gaps = table(
        tmp_path / "g.csv", [(*row[:2], "nan" if row[2] == "p9" else row[2]) for row in rows], "file,label,case"
    )
    found = probe_images(values, gaps, folds=2).images
    assert found.by_patient == "" and len(found.patient_names) == 9 + 4
    with pytest.raises(UserError, match=r"images without a case in .*: 36\.png, .* and 1 more; fill it in"):
        probe_images(values, replace(gaps, patient="case"))
    with pytest.raises(UserError, match="has no column nobody; its header names image, class, who"):
        probe_images(values, Labels(str(tmp_path / "u.csv"), patient="nobody"))
    with pytest.raises(UserError, match="give one of them"):
        probe_images(values, Labels("folders", "a", "b"))


def test_patients_of_training_and_test_images_have_one_spelling() -> None:
    train, test = (features(np.ones((2, 3)), [f"a/{name}_1.png", f"b/{name}_2.png"]) for name in ("7", "007"))
    with pytest.raises(UserError, match="patients that differ in capitals, spaces or zeros: 007, 7; spell each one"):
        probe_images(train, Labels("folders", patient_regex=r"/(\d+)_"), test_features=test)


def test_too_few_patients_are_refused(capfd: Any) -> None:
    labels = np.repeat([0, 1], [40, 10])
    values = np.random.default_rng(0).normal(size=(50, 3))
    few = [
        f"c{label}/P{number % (10 if label == 0 else 2)}x{label}_{number}.png" for number, label in enumerate(labels)
    ]
    how = Labels("folders", patient_regex=r"(P\d+x\d)_")
    with pytest.raises(UserError, match="c1 has images of 2 patients, fewer than the 5 folds; use --folds 2"):
        probe_images(features(values, few), how)
    assert len(probe_images(features(values, few), how, folds=2).folds) == 2
    assert "patients are unknown" not in capfd.readouterr().err
    probe_images(features(values, few), Labels("folders"))
    assert "patients are unknown" in capfd.readouterr().err


def test_neighbors_are_compared_with_the_training_images_of_the_fraction(capfd: Any) -> None:
    values = features(np.random.default_rng(0).normal(size=(100, 3)), [f"c{n % 2}/{n}.png" for n in range(100)])
    for fraction, images in ((1.0, None), (0.3, 24)):
        probe_images(values, Labels("folders"), fraction=fraction)
        line = f"20 neighbors are more than half of {images} training images; use fewer --neighbors"
        assert (line in capfd.readouterr().err) == (images is not None)


def write_tiles(folder: Path, classes: str, count: int, seed: int) -> None:
    """Dark and light tiles."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8) + (120 if name == "b" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"P{number}_{seed}.png")


def test_images_become_scores_and_files(tmp_path: Path, capsys: Any) -> None:
    write_tiles(tmp_path / "train", "ab", 6, 0)
    write_tiles(tmp_path / "other", "ab", 3, 1)
    out = tmp_path / "scores.json"
    words = ["probe", "--data", tmp_path / "train", "--labels", "folders", "--backbone", "test_resnet", "--devices=cpu"]
    assert (
        main([*map(str, words), "--patient_regex", r"(P\d+)_", "--folds", "3", "--neighbors=3", "--out", str(out)]) == 0
    )
    record = json.loads(out.read_text())
    assert record["scale"] == "percent" and record["knn_accuracy"] == record["logistic_macro_auc"] == 100
    assert record["logistic_accuracy_interval"] == [100, 100] and record["patients"] == 6
    assert record["classes"] == {"a": 6, "b": 6} and len(record["logistic_c"]) == 3
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert sorted(row["image"] for row in rows) == sorted(f"{c}/P{n}_0.png" for c in "ab" for n in range(6))
    assert all(row["label"] == row["knn"] == row["logistic"] for row in rows)
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > picture.height > 100
    printed = capsys.readouterr()
    assert "3 folds by patient: 12 images, 6 patients" in printed.out
    assert printed.err.splitlines()[-2].startswith("densepath: done in ")
    assert printed.err.splitlines()[-1] == f"densepath: scores: {out}"
    options: dict[str, Any] = {"labels": "folders", "backbone": "test_resnet", "devices": "cpu", "neighbors": 3}
    tested = probe(data=tmp_path / "train", test_data=tmp_path / "other", **options)
    assert tested.plot().width > 100 and "knn: accuracy 100.0 (100.0 to 100.0)" in repr(tested)
    assert len(tested.tested) == 6 and tested.scores["knn"]["accuracy"].value == 100
    written = probe(data=tmp_path / "train", test_data=tmp_path / "other", out=out, **options)
    table = [[float(row[f"logistic {c}"]) for c in "ab"] for row in csv.DictReader(out.with_suffix(".csv").open())]
    np.testing.assert_allclose(table, written.chances["logistic"], rtol=1e-8)


def test_labels_are_checked_before_features_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densepath.transfer.probe.images.encode_all", None)
    for part in ("train", "other"):
        write_tiles(tmp_path / part, "ab", 2, 0)
    names = [f"{c}/P{n}_0.png" for c in "ab" for n in range(2)]
    rows = [(f"{part}/{name}", name[0]) for part in ("train", "other") for name in names]
    given: dict[str, Any] = {"data": tmp_path / "train", "test_data": tmp_path / "other", "backbone": "test_resnet"}
    for number in (1, 5):  # of a training and of a test image
        gaps = [(file, "" if n == number else c) for n, (file, c) in enumerate(rows)]
        how = table(tmp_path / "t.csv", gaps, "file,Mass")
        with pytest.raises(UserError, match=rf"line {number + 2} of .* has no mass; fill it in, or take the image out"):
            probe(labels=how.labels, target="Mass", **given)
    how = table(tmp_path / "t.csv", [row for row in rows if row[0] != "other/b/P1_0.png"], "file,Mass")
    with pytest.raises(UserError, match=r"1 of 4 images have no mass in .*, the first is .*other/b/P1_0.png"):
        probe(labels=how.labels, target="Mass", **given)
    with pytest.raises(UserError, match="'Q' does not match the name"):
        probe(labels="folders", patient_regex="Q", **given)
    how = table(
        tmp_path / "t.csv", [(*row, "train" if row[0][0] == "t" else "Prüfung") for row in rows], "file,l,split"
    )
    with pytest.raises(UserError, match="has the split 'prüfung'"):
        probe(labels=how.labels, target="l", **given)


def test_damaged_images_need_no_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiles(tmp_path / "d", "ab", 4, 0)
    names = [f"{c}/P{n}_0.png" for c in "ab" for n in range(4)]
    how = table(tmp_path / "t.csv", [(name, name[0], name[2:4]) for name in names], "file,label,patient")
    (tmp_path / "d/a/damaged.png").write_bytes(b"x")
    given: dict[str, Any] = {"data": tmp_path / "d", "labels": how.labels, "backbone": "test_resnet", "devices": "cpu"}
    probe(**given, patient="patient", folds=2, neighbors=1)
    assert "1 damaged image passed over" in capsys.readouterr().err
    write_tiles(tmp_path / "d", "c", 1, 0)
    with pytest.raises(UserError, match=r"1 of 9 images have no label in .*, the first is .*c/P0_0"):
        probe(**given)


def test_of_images_without_labels_one_that_can_be_read_is_named(tmp_path: Path) -> None:
    write_tiles(tmp_path / "d", "ab", 4, 0)
    names = [f"{c}/P{n}_0.png" for c in "ab" for n in range(4)]
    rows = [(name, name[0], "" if name == names[0] else name[2:4]) for name in names]
    how = table(tmp_path / "t.csv", rows, "file,label,patient")
    (tmp_path / "d/a/damaged.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"images without a patient in .*: a/P0_0\.png"):
        probe(data=tmp_path / "d", labels=how.labels, patient="patient", backbone="test_resnet", devices="cpu")


def test_a_list_from_a_pipe_is_read_once(tmp_path: Path) -> None:
    write_tiles(tmp_path / "d", "ab", 4, 0)
    pipe = tmp_path / "list.txt"
    os.mkfifo(pipe)
    lines = "".join(f"{path}\n" for path in sorted((tmp_path / "d").rglob("*.png")))

    def write() -> None:
        pipe.write_text(lines)
        pipe.unlink()  # to open it again is an error

    Thread(target=write, daemon=True).start()
    found = probe(data=pipe, labels="folders", folds=2, neighbors=1, backbone="test_resnet", devices="cpu")
    assert len(found.images) == 8


@pytest.mark.parametrize(
    "values",
    [
        ("0", "1", "-1"),
        ("0.0", "1.0", "-1.0"),
        ("0,0", "1,0", "-1,0"),
        ("0", "1", "2"),
        ("-1", "1", "1"),
        ("0", "1", "1"),
    ],
)
def test_uncertain_labels_are_said_to_be_a_class(values: tuple[str, ...], tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "t.csv").write_text(
        "file;Edema;patient\n" + "".join(f"{n}.png;{values[n % 3]};p{n}\n" for n in range(30))
    )
    how = Labels(str(tmp_path / "t.csv"), target="Edema")
    probe_images(features(np.ones((30, 2)), [f"{n}.png" for n in range(30)]), how, folds=2, neighbors=3)
    said = f"the classes are {', '.join(sorted({*values}))}; if -1 means that a label is uncertain"
    assert (said in capfd.readouterr().err) == values[2].startswith("-1")


def test_folders_of_splits_are_honoured(tmp_path: Path) -> None:
    write_tiles(tmp_path / "d" / "train", "ab", 5, 0)
    write_tiles(tmp_path / "d" / "test", "ab", 2, 1)
    found = probe(data=tmp_path / "d", labels="folders", backbone="test_resnet", devices="cpu", neighbors=3)
    assert found.images.classes.names == ("a", "b")
    assert sorted(found.images.names[p] for p in found.tested) == [f"test/{c}/P{n}_1.png" for c in "ab" for n in (0, 1)]


def test_a_file_of_features_is_probed_and_options_of_the_other_task_are_refused(tmp_path: Path) -> None:
    labels = np.tile([0, 1], 15)
    names = named(labels)
    values = (np.random.default_rng(0).normal(size=(30, 4)) + 5 * labels[:, None]).astype(np.float32)
    path = tmp_path / "f.safetensors"
    write_features(path, [(names, values)], Shape(30, 4, "float32", sum(map(len, names))), {"weights": "mine"})
    found = probe(features=path, labels="folders", folds=3, neighbors=3, fraction=0.5)
    assert found.notes["weights"] == "mine" and found.scores["knn"]["accuracy"].value > 90
    for options, match in (
        ({"features": path}, "--features needs --labels"),
        ({}, "--data must be given"),
        ({"labels": "folders"}, "--data must be given, or --features"),
        ({"data": tmp_path / "f.h5", "labels": "folders"}, "is a file of features; give it with --features"),
        ({"features": path, "labels": "folders", "l2": 1.0}, "--l2 has no effect"),
        ({"features": path, "labels": "folders", "weights": "run"}, "--weights has no effect with --features"),
        ({"features": path, "labels": "folders", "test_data": path}, "--test_data has no effect with --features"),
        ({"features": path, "labels": "folders", "backbone": "resnet50"}, "--backbone has no effect"),
        ({"features": path, "labels": "folders", "stages": [3]}, "--stages has no effect"),
        ({"features": path, "labels": "folders", "pool": "cls"}, "--pool has no effect"),
        ({"features": path, "labels": "folders", "size": 512}, "--size has no effect"),
        ({"data": tmp_path, "labels": "folders", "stages": (3, 4)}, "give one"),
        ({"features": path, "labels": "folders", "out": "x.csv"}, r"ends in \.json"),
        ({"features": path, "labels": "folders", "folds": 1}, "folds is 1"),
        ({"features": path, "labels": "folders", "neighbors": 0}, "neighbors is 0"),
    ):
        with pytest.raises(UserError, match=match):
            probe(**options)
    for name in ("f.png", "labels.csv", "mine.csv", "mine.json"):
        (tmp_path / name).write_text("mine")
    for asked, out, kept in (
        ({"labels": tmp_path / "labels.csv"}, "labels.json", "labels.csv"),
        ({"labels": "folders"}, "f.json", "f.png"),
        ({"labels": "folders"}, "mine.json", "mine.csv"),
    ):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError, match=f"{kept}.* replace"):
            probe(features=path, out=tmp_path / out, **asked)
        assert (tmp_path / kept).read_text() == "mine" and sorted(tmp_path.iterdir()) == before


def test_a_table_may_have_absolute_paths_or_the_folder_of_the_images(tmp_path: Path) -> None:
    data = tmp_path / "tiles"
    (data / "a").mkdir(parents=True)
    names = [f"a/{number}.png" for number in range(4)]
    values = np.zeros((4, 2), np.float32)
    for start in (data.as_posix(), "tiles", ""):
        table = tmp_path / "labels.csv"
        rows = [f"{Path(start, name)},{'xy'[number % 2]},{number // 2}" for number, name in enumerate(names)]
        table.write_text("\n".join(["file,label,patient", *rows]))
        for folder, known in ((data, {}), (None, {"data": str(data)})):
            found = label(Features(names, values, known), Labels(str(table)), folder)
            assert found.classes.labels.tolist() == [0, 1, 0, 1] and found.patients.tolist() == [0, 0, 1, 1]


def test_patients_are_those_of_the_images_that_features_were_made_of(tmp_path: Path) -> None:
    """In their names, or in the table next to them."""
    for folder, names in (("gone", ["00000003_001.png", "00000003_002.png"]), ("here", ["a.png", "b.png"])):
        if folder == "here":
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "manifest.csv").write_text("file,patient\na.png,P\nb.png,P\n")
        (tmp_path / "labels.csv").write_text(f"file,label\n{names[0]},x\n{names[1]},y\n")
        made = Features(names, np.zeros((2, 2), np.float32), {"data": str(tmp_path / folder)})
        found = label(made, Labels(str(tmp_path / "labels.csv")), None)
        assert found.patients.tolist() == [0, 0] and found.by_patient


def test_patients_of_a_list_whose_images_are_gone_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a/1.png\nb/2.png\n")
    made = Features(["a/1.png", "b/2.png"], np.zeros((2, 2), np.float32), {"data": str(tmp_path / "list.txt")})
    assert not label(made, Labels("folders"), None).by_patient
    with pytest.raises(UserError, match="do not exist"):
        label(made, Labels("folders"), tmp_path / "list.txt")


def test_scores_that_are_undefined_are_null(tmp_path: Path) -> None:
    """The AUC of test images of one class."""
    names = [f"{n}.png" for n in range(12)]
    rows = [f"{name},{'ab'[n % 2 if n < 8 else 0]},{'train' if n < 8 else 'test'}" for n, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *rows]))
    values = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    path = tmp_path / "f.safetensors"
    write_features(path, [(names, values)], Shape(12, 3, "float32", sum(map(len, names))), {})
    probe(features=path, labels=tmp_path / "labels.csv", neighbors=3, out=tmp_path / "s.json")
    written = json.loads((tmp_path / "s.json").read_text(), parse_constant=pytest.fail)
    assert written["knn_macro_auc"] is None and written["knn_macro_auc_interval"] == [None, None]


def test_validation_images_that_become_the_test_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.tile([0, 1], 12)
    names = [f"{'val' if n % 6 < 2 else 'train'}/c{label}/{n}.png" for n, label in enumerate(labels)]
    values = labels[:, None] + np.arange(24)[:, None] / 100
    found = probe_images(features(values, names), Labels("folders"))
    assert len(found.folds[0].test) == 8
    line = "no images are of the split test: the 8 validation images are the test"
    assert line in capsys.readouterr().err
    probe_images(features(values, [name.replace("val/", "test/") for name in names]), Labels("folders"))
    assert "are the test" not in capsys.readouterr().err
