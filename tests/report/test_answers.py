"""The answers of classifiers, models of slides, probes and segmenters on their pages."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from densepath.report.answers import read_answers
from densepath.report.embedded import below
from densepath.report.verb import write_report
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
    probe = [[n, CLASSES[t], "", f, CLASSES[0], CLASSES[0], 0.5, 0.5, 1 - p, p] for n, t, p, f in CASES]
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


def test_probes_are_compared_by_their_scores_and_options(tmp_path: Path) -> None:
    options = {"backbone": "resnet18", "data": "D", "seed": 0, "fraction": 1.0, "l2": 5e-05, "scale": "percent"}
    for name, score in (("random", 41.5), ("run", 62.25)):
        record = {"weights": name, **options, "mean_iou": score, "train_images": 3, "seconds": 2.5}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    write_report([str(tmp_path / f"{name}.json") for name in ("random", "run")], out=tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.rows[0] == ["run", "state", "step", "mean IoU"] and page.rows[1][3] == "62.2"
    assert ["weights", "random", "run"] in page.rows
