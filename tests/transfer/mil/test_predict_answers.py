"""``densepath predict`` with a run of ``densepath mil``: new slides, files of features, resume, what does not fit."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.weights.saving import save_backbone
from densepath.sources.slides.open import open_slide
from densepath.synthetic.slide import write_slide
from densepath.transfer.embed.embed import embed
from densepath.transfer.embed.slide_features import read_slide_features
from densepath.transfer.mil.feature_files import find_features
from densepath.transfer.mil.mil import mil
from densepath.transfer.mil.model_file import load_model
from densepath.transfer.predict import predict

CPU: dict[str, Any] = {"devices": "cpu", "precision": "32"}
DIM = 12  # of the shared study
SMALL: dict[str, Any] = {"folds": 2, "epochs": 2, "attention": 0, **CPU}


@pytest.fixture(scope="module")
def run(shared_study: Path) -> Path:
    out = shared_study / "run"
    with pytest.MonkeyPatch.context() as patched:  # pictures are most of the time of a small run
        patched.setattr("densepath.transfer.mil.mil.draw_pictures", lambda *_: {"roc": None})
        mil(data=shared_study / "features", table=shared_study / "table.csv", out=out, lr=[3e-3], **SMALL)
    return out


def write_new(folder: Path) -> dict[str, torch.Tensor]:
    """Two slides of a patient, one of another, and a damaged one."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    bags = {name: torch.from_numpy(rng.standard_normal((n, DIM), np.float32)) for name, n in (("x", 9), ("y", 5))}
    bags["TCGA-AA-0001-01Z-00-DX1"] = torch.from_numpy(rng.standard_normal((7, DIM), np.float32))
    for name, tiles in bags.items():
        torch.save(tiles, folder / f"{name}.pt")
    (folder / "damaged.pt").write_bytes(b"PK")
    (folder / "manifest.csv").write_text("file,patient\nx.svs,P\ny.svs,P\n")
    return bags


def rows_of(path: Path, key: str) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row[key]: row for row in csv.DictReader(file)}


def expected(run: Path, tiles: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (F, K), attention (K, N) and thresholds (F, K) of the folds' models, without the ensemble."""
    values, attention, thresholds = [], [], []
    for fold in range(2):
        model, notes = load_model(run / f"fold_{fold}" / "model.safetensors")
        with torch.no_grad():
            outputs, found = model(tiles.half().float())
        values.append(outputs.sigmoid().double().numpy())
        attention.append(found.double().numpy())
        thresholds.append(notes.thresholds)
    return np.array(values), np.array(attention), np.array(thresholds)


def test_patients_get_the_answers_of_all_folds(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags = write_new(tmp_path / "new")
    result = predict(run, data=tmp_path / "new", out=tmp_path / "out", **CPU)
    assert (result["slides"], result["damaged"], result["patients"]) == (4, 1, 2)
    assert "the patient of 1 slide is unknown (damaged), so each is a case of its own" in capsys.readouterr().err
    rows = rows_of(tmp_path / "out" / "patient-preds.csv", "PATIENT")
    joined = torch.cat([bags["x"], bags["y"]])
    for patient, tiles, slides in (("P", joined, 2), ("TCGA-AA-0001", bags["TCGA-AA-0001-01Z-00-DX1"], 1)):
        values, attention, thresholds = expected(run, tiles)
        row = rows[patient]
        assert (int(row["slides"]), int(row["tiles"])) == (slides, len(tiles))
        for k, name in enumerate(("benign", "tumour")):
            assert [float(row[f"label_{name}_fold_{fold}"]) for fold in range(2)] == pytest.approx(values[:, k], 1e-4)
            assert float(row[f"label_{name}"]) == pytest.approx(values[:, k].mean(), 1e-4)
            assert float(row[f"label_{name}_sd"]) == pytest.approx(abs(np.diff(values[:, k])[0]) / 2**0.5, 1e-3)
        assert row["pred"] == ("benign", "tumour")[(values - thresholds).mean(0).argmax()]
        if patient == "P":  # its attention is that in both slides together
            own = rows_of(tmp_path / "out" / "attention" / "y.csv", "tile")
            shown = [[float(row[f"attention_{name}"]) for row in own.values()] for name in ("benign", "tumour")]
            np.testing.assert_allclose(shown, attention.mean(0)[:, len(bags["x"]) :], rtol=1e-4)
    slides_rows = rows_of(tmp_path / "out" / "slides.csv", "slide")
    assert float(slides_rows["x"]["label_tumour"]) == pytest.approx(expected(run, bags["x"])[0][:, 1].mean(), 1e-4)
    assert "not a torch file" in slides_rows["damaged"]["problem"] and slides_rows["damaged"]["pred"] == ""


def test_more_slides_of_known_patients_belong_to_their_cases(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where they come first, and where a patient is called as a slide."""
    folder, out, lines = tmp_path / "new", tmp_path / "out", ["file,patient"]
    folder.mkdir()
    for names in ("xy", "ab"):
        lines += [f"{name}.svs,{patient}" for name, patient in zip(names, ("x", "Q"), strict=True)]
        (folder / "manifest.csv").write_text("\n".join(lines))
        for name in names:
            torch.save(torch.randn(4, DIM), folder / f"{name}.pt")
        assert predict(run, data=folder, out=out, **CPU)["patients"] == 2
    told = capsys.readouterr().err
    assert "unknown" not in told and "not in the data" not in told
    assert told.count("densepath: 2 cases, 0 done before\n") == 2  # of two slides, then of four
    assert f"removed the results of 2 former cases from {out}: x, y" in told
    assert {row["slides"] for row in rows_of(out / "patient-preds.csv", "PATIENT").values()} == {"2"}
    assert len(list((out / "attention").glob("*.csv"))) == 4
    (folder / "b.pt").unlink()
    predict(run, data=folder, out=out, **CPU)
    assert f"{out} keeps files of 1 slide not in the data: b" in capsys.readouterr().err
    shutil.copytree(folder, tmp_path / "others", ignore=lambda *_: {"a.pt", "x.pt", "y.pt"})
    torch.save(torch.randn(4, DIM), tmp_path / "others" / "z.pt")
    with pytest.raises(UserError, match=r"holds results of other slides \(a, b, x and 1 more\); use another folder"):
        predict(run, data=tmp_path / "others", out=out, **CPU)


def test_slides_are_joined_in_the_order_of_training(
    shared_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, whatever the order of the folder; TransMIL lays tiles out in theirs."""
    given: dict[str, Any] = {"model": "transmil", **SMALL, "epochs": 1}
    monkeypatch.setattr("densepath.transfer.mil.mil.draw_pictures", lambda *_: {"roc": None})
    mil(data=shared_study / "features", table=shared_study / "table.csv", out=tmp_path / "run", **given)
    write_new(tmp_path / "new")
    predict(tmp_path / "run", data=tmp_path / "new", out=tmp_path / "out", **CPU)
    turned = dict(reversed(find_features(tmp_path / "new").items()))
    monkeypatch.setattr("densepath.transfer.mil.new_slides.find_features", lambda data: turned)
    predict(tmp_path / "run", data=tmp_path / "new", out=tmp_path / "turned", **CPU)
    one, other = (rows_of(tmp_path / out / "patient-preds.csv", "PATIENT")["P"] for out in ("out", "turned"))
    assert one == other


def test_the_same_command_continues(run: Path, tmp_path: Path) -> None:
    bags = write_new(tmp_path / "new")
    out = tmp_path / "out"
    predict(run, data=tmp_path / "new", out=out, **CPU)
    before = {path: path.stat().st_mtime_ns for path in (out / "attention").iterdir()}
    torch.save(bags["x"] * 2, tmp_path / "new" / "TCGA-AA-0001-01Z-00-DX1.pt")
    torch.save(bags["y"], tmp_path / "new" / "damaged.pt")
    assert predict(run, data=tmp_path / "new", out=out, **CPU)["damaged"] == 0
    assert {path.stem for path, time in before.items() if path.stat().st_mtime_ns != time} == {
        "TCGA-AA-0001-01Z-00-DX1"
    }
    rows = rows_of(out / "patient-preds.csv", "PATIENT")
    assert float(rows["TCGA-AA-0001"]["label_tumour"]) == pytest.approx(
        expected(run, bags["x"] * 2)[0][:, 1].mean(), 1e-3
    )
    assert rows["damaged"]["tiles"] == "5"
    with pytest.raises(UserError, match="begun with --precision 32; use that"):
        predict(run, data=tmp_path / "new", out=out, **{**CPU, "precision": "bf16-mixed"})
    config = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(config.replace("precision: '32'\n", ""))  # of a version that did not note it
    predict(run, data=tmp_path / "new", out=out, **CPU)
    other = shutil.copytree(run, tmp_path / "other")
    shutil.copyfile(run / "fold_0" / "model.safetensors", other / "fold_1" / "model.safetensors")
    with pytest.raises(UserError, match="other values of models"):
        predict(other, data=tmp_path / "new", out=out, **CPU)


def test_slides_that_are_named_later_are_drawn(run: Path, tmp_path: Path) -> None:
    def write_features(seed: int) -> None:
        with h5py.File(tmp_path / "new" / "s.h5", "w") as file:
            file["features"] = np.random.default_rng(seed).standard_normal((4, DIM), np.float32)
            file["coords"] = np.array([[0, 0], [64, 0], [0, 64], [64, 64]])
            file["coords"].attrs["patch_size_level0"] = 64

    (tmp_path / "new").mkdir()
    write_features(0)
    out, given = tmp_path / "out", {"data": tmp_path / "new", "out": tmp_path / "out", **CPU}
    table = {"s.csv", "s.geojson"}
    pictures = [out / "attention" / name for name in ("s.png", "s.tif", "s_tiles.png")]

    def drawn_at(**options: Any) -> list[int]:
        predict(run, **given, **options)
        return [path.stat().st_mtime_ns for path in pictures]

    predict(run, **given)
    write_slide(tmp_path / "slides" / "other.tiff", size=(128, 128), levels=(1, 2), tile=64)
    predict(run, **given, slides=tmp_path / "slides")
    assert {path.name for path in (out / "attention").iterdir()} == table
    answered = (out / "attention" / "s.csv").stat().st_mtime_ns
    predict(run, **given, slides=tmp_path / "slides")
    assert answered == (out / "attention" / "s.csv").stat().st_mtime_ns  # without its slide nothing is left to draw
    write_slide(tmp_path / "slides" / "s.tiff", size=(128, 128), levels=(1, 2), tile=64)
    first = drawn_at(slides=tmp_path / "slides")
    assert first == drawn_at() == drawn_at(slides=tmp_path / "slides", pictures=0)
    write_slide(tmp_path / "slides" / "s.tiff", size=(144, 128), levels=(1, 2), tile=64)  # another slide
    assert not set(first).intersection(drawn_at(slides=tmp_path / "slides"))
    write_features(1)
    predict(run, **given, pictures=0)  # pictures of the former features would be wrong
    assert {path.name for path in (out / "attention").iterdir()} == table


@pytest.mark.parametrize("grouping", ["averaged", "single"])
def test_slides_are_grouped_as_in_the_training(grouping: str, run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("grouping: joined", f"grouping: {grouping}"))
    bags = write_new(tmp_path / "new")
    predict(other, data=tmp_path / "new", out=tmp_path / "out", pictures=0, **CPU)
    own = {name: expected(run, bags[name])[0][:, 1].mean() for name in ("x", "y")}
    if grouping == "averaged":
        row = rows_of(tmp_path / "out" / "patient-preds.csv", "PATIENT")["P"]
        assert float(row["label_tumour"]) == pytest.approx((own["x"] + own["y"]) / 2, 1e-4) and row["tiles"] == "14"
    else:
        rows = rows_of(tmp_path / "out" / "patient-preds.csv", "SLIDE")
        assert {name: float(rows[name]["label_tumour"]) for name in own} == pytest.approx(own, 1e-4)
        assert {rows[name]["PATIENT"] for name in own} == {"P"}


def test_numbers_have_no_class(shared_study: Path, tmp_path: Path) -> None:
    """A run of regression; patients are named by a table and never become paths."""
    lines = (shared_study / "table.csv").read_text().splitlines()
    rows = [line.split(",")[:2] for line in lines[1:]]
    table = ["case_id,slide_id,age", *(f"{row[0]},{row[1]},{n}" for n, row in enumerate(rows))]
    (tmp_path / "table.csv").write_text("\n".join(table))
    given: dict[str, Any] = {"task": "regression", "target": "age", "model": "abmil", **SMALL}
    mil(data=shared_study / "features", table=tmp_path / "table.csv", out=tmp_path / "run", **given)
    write_new(tmp_path / "new")
    (tmp_path / "new" / "manifest.csv").write_text("file,patient\nx.svs,../../P\ny.svs,../../P\n")
    predict(tmp_path / "run", data=tmp_path / "new", out=tmp_path / "out", **CPU)
    row = rows_of(tmp_path / "out" / "patient-preds.csv", "PATIENT")["../../P"]
    folds = [float(row[f"age_predicted_fold_{fold}"]) for fold in range(2)]
    assert float(row["age_predicted"]) == pytest.approx(np.mean(folds), rel=1e-4) and "pred" not in row
    assert "attention" in rows_of(tmp_path / "out" / "attention" / "x.csv", "tile")["0"]
    assert not list(tmp_path.glob("P*"))


def test_what_does_not_fit_is_refused(run: Path, tmp_path: Path) -> None:
    torch.save(torch.zeros(4, DIM + 1), tmp_path / "wide.pt")
    idle: dict[str, Any] = {"score": 0.4, "overlap": 0.5}  # of detectors
    idle |= {"weights": "random", "exclude": ["a"], "shard": "1/2"}  # of slides
    for name, value in idle.items():
        with pytest.raises(UserError, match=f"{name}: only for"):
            predict(run, data=tmp_path, out=tmp_path / "out0", **{name: value}, **CPU)
    with pytest.raises(UserError, match=f"wide has {DIM + 1} features for each tile, the run was trained on {DIM}"):
        predict(run, data=tmp_path, out=tmp_path.with_name("out1"), **CPU)
    other = shutil.copytree(run, tmp_path.with_name("other"))
    (other / "features.json").write_text(json.dumps({"mpp": 0.5, "tile": 64}))
    (tmp_path / "wide.pt").unlink()
    with h5py.File(tmp_path / "wide.h5", "w") as file:
        file["features"], file["coords"] = np.zeros((1, DIM), np.float32), np.zeros((1, 2))
        file["coords"].attrs.update({"mpp": 1.0, "patch_size": 64})
    with pytest.raises(UserError, match=r"tiles with 1 µm per pixel instead of 0\.5 in the training; tile the slides"):
        predict(other, data=tmp_path, out=tmp_path.with_name("out1"), **CPU)
    for damage in ({"mpp": "0.5"}, {"tile": [64]}, {"size": -1}, {"weights": 7}, {"pool": None}, {"stage": "2"}):
        (other / "features.json").write_text(json.dumps(damage))
        with pytest.raises(UserError, match=r"features\.json cannot be read \(.*: .* is not a valid value\)"):
            predict(other, data=tmp_path, out=tmp_path.with_name("out1"), **CPU)
    with pytest.raises(UserError, match="nowhere does not exist; give slides"):
        predict(run, data=tmp_path / "nowhere", out=tmp_path.with_name("out1"), **CPU)
    write_slide(tmp_path / "slides" / "a.tiff", size=(128, 128), levels=(1, 2), tile=64)
    with pytest.raises(UserError, match=r"does not record what made its features .*--weights"):
        predict(run, data=tmp_path / "slides", out=tmp_path / "out2", **CPU)
    with pytest.raises(UserError, match="--mpp, and their side"):
        predict(run, data=tmp_path / "slides", out=tmp_path / "out2", weights="random", **CPU)
    (unfinished := shutil.copytree(run, tmp_path / "unfinished") / "scores.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        predict(unfinished.parent, data=tmp_path, out=tmp_path / "out3", **CPU)
    several = tmp_path / "several"
    shutil.copytree(run, several / "dsmil")
    shutil.copyfile(run / "config.yaml", several / "config.yaml")
    with pytest.raises(UserError, match=r"several models; name one of them, such as .*several/dsmil"):
        predict(several, data=tmp_path, out=tmp_path / "out4", **CPU)


def test_a_new_slide_is_tiled_and_embedded_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training on features of densepath records what made them; a damaged slide does not stop the others."""
    monkeypatch.setattr("densepath.transfer.mil.mil.draw_pictures", lambda *_: {"roc": None})
    network: dict[str, Any] = {"weights": "random", "backbone": "test_vit", "seed": 3, **CPU}
    write_slide(tmp_path / "new" / "a.tiff", size=(576, 640), levels=(1, 4))
    embed(data=tmp_path / "new", out=tmp_path / "F", mpp=0.7, tile_size=64, **network)
    made = next((tmp_path / "F").glob("features_*/a.h5"))
    rng, lines = np.random.default_rng(0), ["case_id,slide_id,label"]
    (tmp_path / "train").mkdir()
    for number in range(8):
        shutil.copyfile(made, tmp_path / "train" / f"t{number}.h5")
        with h5py.File(tmp_path / "train" / f"t{number}.h5", "r+") as file:
            file["coords"].attrs["name"] = f"t{number}"
            file["features"][:] += rng.standard_normal(file["features"].shape)
        lines.append(f"t{number},t{number},{'ab'[number % 2]}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    mil(data=tmp_path / "train", table=tmp_path / "table.csv", out=tmp_path / "run", **SMALL)
    (tmp_path / "new" / "0.tiff").write_bytes((tmp_path / "new" / "a.tiff").read_bytes()[:900])
    out = tmp_path / "out"
    assert predict(tmp_path / "run", data=tmp_path / "new", out=out, **CPU)["damaged"] == 1
    assert "the patient of 1 slide is unknown (a), so" in capsys.readouterr().err  # and 0 has no answer
    tiles = read_slide_features(made)
    values, attention, _ = expected(tmp_path / "run", torch.from_numpy(tiles.features))
    rows = rows_of(out / "slides.csv", "slide")
    assert float(rows["a"]["label_b"]) == pytest.approx(values[:, 1].mean(), 2e-3) and rows["0"]["problem"]
    shown = json.loads((out / "attention" / "a.geojson").read_text())["features"]
    assert len(shown) == len(tiles) == int(rows["a"]["tiles"])
    corners = [feature["geometry"]["coordinates"][0][0] for feature in shown]
    np.testing.assert_allclose(corners, tiles.corners)
    got = [feature["properties"]["measurements"]["attention_a"] for feature in shown]
    np.testing.assert_allclose(got, attention.mean(0)[0], rtol=1e-2)
    heat_map, slide = open_slide(out / "attention" / "a.tif"), open_slide(tmp_path / "new" / "a.tiff")
    assert heat_map.size[0] * heat_map.mpp[0] == pytest.approx(slide.size[0] * slide.mpp[0], abs=4)
    out2 = tmp_path / "out2"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("a.*") if path.suffix in (".h5", ".tif", ".csv")}
    assert predict(tmp_path / "run", data=tmp_path / "new", out=out, **CPU)["patients"] == 1
    assert before == {path: path.stat().st_mtime_ns for path in before}
    save_backbone(tmp_path / "other.safetensors", build_backbone("test_vit"))
    with pytest.raises(UserError, match="other weights than those of the features"):
        predict(tmp_path / "run", data=out / "tiles", out=out2, weights=str(tmp_path / "other.safetensors"), **CPU)
    assert predict(tmp_path / "run", data=out / "tiles", out=out2, **CPU)["patients"] == 1
    write_slide(tmp_path / "others" / "c.tiff", size=(128, 128), levels=(1, 2), tile=64)
    with pytest.raises(UserError, match=r"holds results of other slides \(0, a\); use another folder"):
        predict(tmp_path / "run", data=tmp_path / "others", out=out2, **CPU)
    assert not (out2 / "tiles").exists()
    with pytest.raises(UserError, match=r"--mpp is 0\.5, but the run was trained on tiles with 0\.7"):
        predict(tmp_path / "run", data=tmp_path / "new", out=tmp_path / "out3", mpp=0.5, **CPU)
