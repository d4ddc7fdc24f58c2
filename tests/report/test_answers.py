"""The answers of classifiers, models of slides, probes and segmenters on their pages."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from densepath.report.answers import read_answers
from densepath.report.blocks import Table
from densepath.report.comparison import compare_runs
from densepath.report.embedded import below
from densepath.report.runs import read_run
from densepath.report.verb import write_report
from densepath.transfer.mil.models import models_named
from densepath.transfer.segment.volume_slices import read_slices, write_slices
from tests.report.conftest import save_picture
from tests.report.test_report import Page

pytest.importorskip("plotly")
CLASSES = ("a", "<b>")
_PROBE = ("image", "label", "patient", "fold", "knn", "logistic")
# Image, class, probability of <b>, fold.
CASES = (("1.png", 0, 0.2, 0), ("2.png", 0, 0.7, 0), ("3.png", 1, 0.9, 0), ("4.png", 1, 0.4, 1), ("5.png", 0, 0.1, 1))


def write_table(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def tables(folder: Path) -> dict[str, Path]:
    """The same answers as three verbs write them."""
    classify = [[n, "p", f"fold_{f}", CLASSES[t], CLASSES[int(p > 0.5)], 1 - p, p] for n, t, p, f in CASES]
    mil = [[n, CLASSES[t], CLASSES[int(p > 0.5)], 1 - p, p, f] for n, t, p, f in CASES]
    probe = [[n, CLASSES[t], "", f, CLASSES[0], CLASSES[int(p > 0.5)], 0.5, 0.5, 1 - p, p] for n, t, p, f in CASES]
    heads = {
        "predictions.csv": ["image", "patient", "run", "label", "predicted", "p a", "p <b>"],
        "patient-preds.csv": ["PATIENT", "kind", "pred", "kind_a", "kind_<b>", "fold"],
        "probe.csv": [
            *["image", "label", "patient", "fold", "knn", "logistic"],
            "knn a",
            "knn <b>",
            "logistic a",
            "logistic <b>",
        ],
    }
    rows = {"predictions.csv": classify, "patient-preds.csv": mil, "probe.csv": probe}
    return {name: write_table(folder / name, head, rows[name]) for name, head in heads.items()}


def test_the_answers_of_three_verbs_are_read_alike(tmp_path: Path) -> None:
    for path in tables(tmp_path).values():
        found = read_answers(path)
        assert found is not None and found.exclusive and tuple(found.classes) == CLASSES
        assert found.names == [name for name, *_ in CASES] and found.folds.tolist() == [0, 0, 0, 1, 1]
        np.testing.assert_allclose(found.chances[:, 1], [p for _, _, p, _ in CASES])
        assert found.truth.argmax(1).tolist() == [t for _, t, _, _ in CASES]
        assert found.confusion().tolist() == [[2, 1], [1, 1]]
        assert [found.names[k] for k, _ in found.worst()][:2] == ["2.png", "4.png"]


def test_the_predicted_classes_are_those_of_the_run(tmp_path: Path) -> None:
    """A threshold other than 1 / K, and a tie of rounded probabilities."""
    heads = {
        "patient-preds.csv": ["PATIENT", "kind", "pred", "kind_a", "kind_b", "fold"],
        "probe.csv": ["image", "label", "patient", "fold", "logistic", "logistic a", "logistic b"],
    }
    rows = {"patient-preds.csv": ["1", "a", "b", 0.58, 0.42, 0], "probe.csv": ["x", "a", "", 0, "b", 0.5, 0.5]}
    for name, chance in (("patient-preds.csv", "42%"), ("probe.csv", "50%")):
        found = read_answers(write_table(tmp_path / name, heads[name], [rows[name]]))
        assert found is not None and found.confusion().tolist() == [[0, 1], [0, 0]]
        assert found.worst() == [(0, f"a, predicted b ({chance})")]


def test_the_target_of_a_model_of_slides_may_have_any_name(tmp_path: Path) -> None:
    for target in ("label", "patient", "run"):
        head = ["PATIENT", target, "pred", f"{target}_a", f"{target}_b", "fold"]
        found = read_answers(write_table(tmp_path / "patient-preds.csv", head, [["1", "b", "a", 0.75, 0.25, 0]]))
        assert found is not None and found.classes == ["a", "b"] and found.confusion().tolist() == [[0, 0], [1, 0]]


def test_labels_that_are_unknown_are_left_out(tmp_path: Path) -> None:
    head = ["image", "patient", "run", "label x", "label y", "p x", "p y"]
    found = read_answers(write_table(tmp_path / "predictions.csv", head, [["1", "p", "r", 1, "", 0.5, 0.25]] * 3))
    assert found is not None and not found.exclusive
    assert [len(each.chance) for each in found.ranked()] == [3, 0]


def test_a_classifier_shows_curves_confusion_and_its_worst_images(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    tables(run)
    save_picture(tmp_path / "images" / "2.png")
    options = {"data": str(tmp_path / "images"), "labels": "folders", "freeze": True, "seed": 0}
    (run / "config.yaml").write_text(yaml.safe_dump(options))
    scores = {
        "macro_auc": {"value": 83.25, "low": 70.0, "high": 91.5},
        "auc_<b>": {"value": None, "low": None, "high": None},
    }
    (run / "metrics.json").write_text(json.dumps({"scale": "percent", "scores": scores, "runs": {}}))
    save_picture(run / "pictures" / "roc.png")
    write_report([str(run)], out=tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "83.2" in page.text and "Slides" not in page.text and "70.0 to 91.5" in page.text
    confusion = next(each["data"][0] for each in page.data if each["data"][0]["type"] == "heatmap")
    assert confusion["customdata"] == [[2, 1], [1, 1]] and confusion["y"] == ["a", "&lt;b&gt;"]
    assert confusion["z"][0] == [66.67, 33.33]
    assert {"ROC", "Precision over recall", "Calibration"} <= {each.get("aria-label") for each in page.of("div")}
    assert {"2.png: a, predicted <b> (70%)"} == {each["alt"] for each in page.of("img")} - {""}


def test_images_of_all_formats_are_shown_as_the_network_gets_them(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    (data := tmp_path / "data").mkdir()
    Image.fromarray(np.full((24, 24), 2048, np.uint16)).save(data / "a.png")  # half of 12 bits
    Image.fromarray(np.full((24, 24), 1024, np.uint16)).save(data / "b.tif")
    (data / "c.png").write_bytes(b"broken")
    head = ["image", "patient", "run", "label", "predicted", "p a", "p b"]
    names = ["a.png", "b.tif", "c.png", "d.png"]
    write_table(run / "predictions.csv", head, [[name, "p", "r", "a", "b", 0.2, 0.8] for name in names])
    options = {"data": str(data), "labels": "folders", "freeze": True}
    (run / "config.yaml").write_text(yaml.safe_dump(options))
    write_report([run], out=tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    shown = {each["alt"]: each["src"] or "" for each in page.of("img") if each["alt"]}
    assert list(shown) == ["a.png: a, predicted b (80%)", "b.tif: a, predicted b (80%)"]
    for uri, shade in zip(shown.values(), (127, 64), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
        assert abs(float(pixels.mean()) - shade) < 3
    assert f"1 of them are not found in {data}; 1 of them are not readable in {data}" in page.text


def mil_folder(folder: Path, options: dict[str, object], scores: dict[str, dict[str, object]]) -> Path:
    """A run of ``mil`` with models in folders of their own, each with a fold."""
    for name, own in scores.items():
        (folder / name / "fold_0").mkdir(parents=True)
        (folder / name / "fold_0" / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.25\n")
        (folder / name / "scores.json").write_text(json.dumps({"scale": "percent", "scores": own}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": "feats", "folds": 1, **options}))
    return folder


def test_models_of_slides_have_their_scores_curves_and_states(tmp_path: Path) -> None:
    scores = {"concordance": {"value": 61.25, "low": float("nan"), "high": float("nan")}}
    run = mil_folder(tmp_path / "run", {"model": "all"}, dict.fromkeys(("max", "mean"), scores))
    assert read_run(run).state == "stopped"  # without the other models
    write_report([run], out=tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.rows[:3] == [["model", "concordance"], ["max", "61.2"], ["mean", "61.2"]]
    assert "stopped" not in page.text and "nan to" not in page.text
    losses = [each for each in page.data if each["data"][0]["y"] == [0.5, 0.25]]
    assert len(losses) == 2 and losses[0]["data"][0]["name"] == "fold_0"
    whole = mil_folder(tmp_path / "whole", {"model": "all"}, dict.fromkeys(models_named("all"), scores))
    assert read_run(whole).state == "complete"


def test_answers_for_patients_have_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    tables(run := mil_folder(tmp_path / "run", {"model": "mean"}, {}))["predictions.csv"].unlink()
    notes = {"test_slides_in_pretraining": 3, "test_patients_in_pretraining": 2}
    (run / "scores.json").write_text(json.dumps({"scale": "percent", "scores": {}, **notes}))
    write_report([run], out=tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "pre-trained on 3 test slides and on slides of 2 test patients, as --allow_pretraining_slides" in page.text
    assert "The cases whose class" in page.text and "the folder in which the run was started" not in page.text
    assert ["case", "class"] in page.rows and ["image", "class"] not in page.rows


def test_no_picture_from_outside_of_the_data_is_shown(tmp_path: Path) -> None:
    save_picture(tmp_path / "data" / "in" / "1.png")
    outside = save_picture(tmp_path / "outside.png")
    assert below(tmp_path / "data", "in/1.png") == tmp_path / "data" / "in" / "1.png"
    (run := tmp_path / "run").mkdir()
    head = ["image", "patient", "run", "label", "predicted", "p a", "p b"]
    names = ["in/1.png", "../outside.png", "in/../../outside.png", str(outside)]
    write_table(run / "predictions.csv", head, [[name, "p", "r", "a", "b", 0.2, 0.8] for name in names])
    options = {"data": str(tmp_path / "data"), "labels": "folders", "freeze": True}
    (run / "config.yaml").write_text(yaml.safe_dump(options))
    write_report([str(run)], out=tmp_path / "page.html")
    shown = [each["alt"] or "" for each in Page(tmp_path / "page.html").of("img") if each["alt"]]
    assert shown == ["in/1.png: a, predicted b (80%)"]


def test_a_segmenter_shows_dice_failures_and_its_worst_images(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("p1", "p2"):
        save_picture(run / "fold_0" / "pictures" / f"{name}.png")
    options = {"data": "scans", "labels": "masks", "freeze": False, "oversample": 0.3, "head": "unet", "model": None}
    (run / "config.yaml").write_text(yaml.safe_dump(options))
    rows = [["p1", "liver", 90.0], ["p2", "liver", 40.0], ["p1", "<i>", 80.0], ["p2", "<i>", ""]]
    write_table(run / "cases.csv", ["image", "region", "dice"], rows)
    scores = {
        name: {"value": value, "low": 1.0, "high": 99.0} for name, value in (("mean_dice", 71.5), ("dice_<i>", 80.0))
    }
    failures = {"<i>": {"present": 12, "missed": 7, "false": 0, "absent": 1}}
    (run / "metrics.json").write_text(json.dumps({"scale": "percent", "scores": scores, "failures": failures}))
    write_report([str(run)], out=tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "segmenter" in page.text and "71.5" in page.text
    assert ["<i>", "80.0 (1.0 to 99.0)", "–", "–", "12", "7", "0"] in page.rows
    boxes = next(each["data"] for each in page.data if each["data"][0]["type"] == "box")
    assert [(box["name"], box["y"]) for box in boxes] == [("liver", [90.0, 40.0]), ("&lt;i&gt;", [80.0])]
    assert [each["alt"] for each in page.of("img") if each["alt"]] == ["p2: Dice 40.0", "p1: Dice 85.0"]


def test_the_picture_of_a_case_is_that_of_its_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name, shade in (("seed_0", 20), ("seed_1", 200)):
        save_picture(run / name / "pictures" / "x.png", shade=shade)
        (run / name / "metrics.csv").write_text("step,loss\n1,0.5\n")
    options = {"data": "scans", "labels": "masks", "freeze": False, "oversample": 0.3, "head": "unet", "model": None}
    (run / "config.yaml").write_text(yaml.safe_dump(options))
    write_table(
        run / "cases.csv",
        ["image", "run", "region", "dice"],
        [["x.jpg", "seed_1", "g", 90], ["x.jpg", "seed_0", "g", 10]],
    )
    write_report([run], out=tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    shown = {each["alt"]: each["src"] or "" for each in page.of("img") if each["alt"]}
    assert list(shown) == ["x.jpg (seed_0): Dice 10.0", "x.jpg (seed_1): Dice 90.0"]
    for uri, shade in zip(shown.values(), (20, 200), strict=True):
        assert abs(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))).mean() - shade) < 3
    curves = [each["data"] for each in page.data if each["data"][0]["type"] == "scatter"]
    assert [[trace["name"] for trace in each] for each in curves] == [["seed_0", "seed_1"]]


def test_a_segmented_volume_has_three_sliders_of_bounded_size(tmp_path: Path) -> None:
    shape = (40, 300, 30)
    truth = np.zeros(shape, np.uint8)
    truth[30, 200:210, 5:20] = 2
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    run = tmp_path / "run"
    save_picture(run / "fold_0" / "pictures" / "v1.png")
    write_slices(run / "fold_0" / "pictures" / "v1.npz", image, {"truth": truth, "prediction": truth * 0}, 0)
    kept = read_slices(run / "fold_0" / "pictures" / "v1.npz")
    assert kept.image.shape == (40, 100, 30) and list(kept.maps) == ["truth", "prediction"]
    np.testing.assert_array_equal(kept.maps["truth"], truth[:, ::3])
    options = {"data": "scans", "labels": "masks", "freeze": False, "oversample": 0.3, "head": "unet", "model": None}
    (run / "config.yaml").write_text(yaml.safe_dump(options))
    write_table(run / "cases.csv", ["image", "region", "dice"], [["v1", "liver", 90.0]])
    write_report([str(run)], out=tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    sliders = [each for each in page.of("input") if each.get("type") == "range"]
    assert [each["aria-label"] for each in sliders] == [
        f"v1, {plane}: truth, prediction" for plane in ("axial", "coronal", "sagittal")
    ]
    captions = [json.loads(each["data-captions"] or "") for each in sliders]
    assert [len(own) for own in captions] == [24, 24, 24]
    assert captions[0][0] == "slice 1 of 40" and captions[1][-1] == "slice 298 of 300"
    started = [own[int(each["value"] or 0)] for own, each in zip(captions, sliders, strict=True)]
    assert abs(int(started[0].split()[1]) - 31) <= 2  # where the largest structure is
    assert (tmp_path / "page.html").stat().st_size < 8e6
    (run / "fold_0" / "pictures" / "v1.npz").write_bytes(b"PK broken")
    write_report([str(run)], out=tmp_path / "page.html")
    assert [each["alt"] for each in Page(tmp_path / "page.html").of("img") if each["alt"]] == ["v1: Dice 90.0"]


def test_probes_of_images_differ_by_the_features_that_they_had(tmp_path: Path) -> None:
    asked = {"labels": "l.csv", "data": "D", "pool": "auto", "seed": 0, "scale": "percent", "knn_accuracy": 50.0}
    for name, own in (("a", {"stage": 3, "pool": "mean"}), ("b", {"stage": 4, "pool": "cls"})):
        encoding = {"weights": "random", "data": "D", "backbone": "vit", "size": 64, **own}
        (tmp_path / f"{name}.json").write_text(json.dumps({**asked, "encoding": encoding}))
    runs = {name: read_run(tmp_path / f"{name}.json") for name in "ab"}
    (options,) = compare_runs(runs)[-1].blocks
    assert isinstance(options, Table) and options.rows == [["pool", "mean", "cls"], ["stage", "3", "4"]]


def test_probes_are_compared_by_their_scores_and_options(tmp_path: Path) -> None:
    options = {"backbone": "resnet18", "data": "D", "seed": 0, "fraction": 1.0, "l2": 5e-05, "scale": "percent"}
    for name, score in (("random", 41.5), ("run", 62.25)):
        record = {"weights": name, **options, "mean_iou": score, "train_images": 3, "seconds": 2.5}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    write_report([str(tmp_path / f"{name}.json") for name in ("random", "run")], out=tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.rows[0] == ["run", "state", "step", "mean IoU"] and page.rows[1][3] == "62.2"
    assert ["weights", "random", "run"] in page.rows
