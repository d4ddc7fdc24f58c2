"""The verb: folds by patient, resuming, processes, volumes, predictions, and what it refuses."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
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
from densepath.sources.corrupt import LARGEST_SHARE, CorruptImage
from densepath.sources.pixel_source import PixelSpec
from densepath.synthetic.slide import write_slide
from densepath.training.recipes import recipe_names
from densepath.training.resolve import resolve
from densepath.transfer.classify.training import keep_answers, kept_answers
from densepath.transfer.predict import predict
from densepath.transfer.score import score
from densepath.transfer.segment import training
from densepath.transfer.segment.case_scores import dice, score_case
from densepath.transfer.segment.cohort import read_cases
from densepath.transfer.segment.config import SegmentConfig
from densepath.transfer.segment.legend import legend_of
from densepath.transfer.segment.segmenter import SegmenterNotes, read_segmenter, save_segmenter
from densepath.transfer.segment.task import SegmentTask
from densepath.transfer.segment.trained import load_segmenter
from densepath.verbs import VERBS

from .conftest import write_images, write_store

Segment = Callable[..., Result]
CommandLine = Callable[..., subprocess.Popen[str]]
CLASSES = ("0:background", "10:red", "20:blue")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_folds_by_patient_and_predictions_as_in_the_test(
    data: Path, segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    result = segment(data=data / "images", classes=CLASSES, folds=2, oversample=0.5, optimizer={"lr": 1e-2}, epochs=6)
    cases = rows(out / "cases.csv")
    assert sorted({row["image"] for row in cases}) == sorted(path.name for path in (data / "labels").iterdir())
    assert len(cases) == 16 and result["mean_dice"] > 5
    for split in json.loads((out / "splits.json").read_text())["seed_0"]:
        parts = [{name.partition("_")[0] for name in split[part]} for part in ("train", "validation", "test")]
        assert all(parts) and not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    (session,) = read_sessions(out)
    assert session["folder"] == os.getcwd() and session["data"] == {"images": 8}
    record = json.loads((out / "metrics.json").read_text())
    shares = [float(row["dice"]) for row in cases if row["region"] == "red" and row["dice"]]
    assert record["scores"]["dice_red"]["value"] == pytest.approx(np.mean(shares), abs=1e-3)
    assert next((out / "fold_0/pictures").glob("*.png")) and result.plot().size[0] > 100
    written = densepath.export(result, tmp_path / "timm.safetensors", layout="timm")
    assert load_weights(build_backbone("test_resnet"), written).startswith("test_resnet with 75 of 75 tensors")
    # What the exported segmenter predicts has the scores of its test
    exported = record["exported"]
    (data / "images" / "broken.png").write_bytes(b"no image")
    (data / "images" / "notes.txt").touch()
    done = predict(result, data=data / "images", out=tmp_path / "new", devices="cpu", precision="32", pictures=1)
    assert (done["images"], done["damaged"]) == (9, 1)
    assert "background, red, blue; passed over: 1 .txt file" in capsys.readouterr().err
    legend = read_segmenter(out / "exported/segmenter.safetensors")[1].legend
    for row in cases:
        if row["run"] != exported or row["region"] != "red":
            continue
        name = row["image"]
        found = np.asarray(Image.open(tmp_path / "new/labels" / name))
        assert set(np.unique(found)) <= {0, 10, 20} and found.shape == (40, 48)
        true = np.asarray(Image.open(data / "labels" / name))
        columns = score_case(legend.classes_of(found), legend.classes_of(true), legend, None)
        assert 100 * dice(columns)[0] == pytest.approx(float(row["dice"]), abs=0.2)
        segmenter, image = load_segmenter(out), Image.open(data / "images" / name)
        for same in (data / "images" / name, image, np.asarray(image).astype(np.uint16) * 257):
            assert np.array_equal(segmenter.predict(same), found)
    scores = score(data=data / "labels", predictions=tmp_path / "new", out=tmp_path / "scores.json")
    assert scores["pooled_iou"] > 5 and len(rows(tmp_path / "scores.csv")) == 16
    plain = score(data=data / "labels", predictions=tmp_path / "new/labels", classes=CLASSES)
    assert plain["mean_dice"] == pytest.approx(scores["mean_dice"])
    (tmp_path / "outlined/annotations").mkdir(parents=True)
    with pytest.raises(UserError, match="outlined is a data set of outlined objects, and classes of pixels need a fo"):
        score(data=tmp_path / "outlined", predictions=tmp_path / "new")
    with pytest.raises(UserError, match=r"without a label map: .* or predict only images that have one"):
        score(data=data / "labels/P0_0.png", predictions=tmp_path / "new")
    with pytest.raises(UserError, match=r"values that no class has: P0_0.png \(20\)"):
        score(data=data / "labels", predictions=data / "labels", classes=CLASSES[:2])
    sizes = {row["image"]: row for row in rows(tmp_path / "new/sizes.csv")}
    assert float(sizes[name.removesuffix(".png")]["red_px"]) == (found == 10).sum()
    kept = (tmp_path / "new/labels" / name).stat().st_mtime_ns
    (tmp_path / "new/labels/P0_0.png").unlink()
    predict(result, data=data / "images", out=tmp_path / "new", devices="cpu", precision="32", pictures=1)  # continues
    assert (tmp_path / "new/labels" / name).stat().st_mtime_ns == kept and (tmp_path / "new/labels/P0_0.png").is_file()
    with pytest.raises(UserError, match="begun with --precision 32; use that"):
        predict(result, data=data / "images", out=tmp_path / "new", devices="cpu", precision="bf16-mixed")
    with pytest.raises(UserError, match="score: only for detectors"):
        predict(result, data=data / "images", out=tmp_path / "no", score=0.3)
    with pytest.raises(UserError, match="mpp: only for detectors, classifiers and runs of mil, not segmenters"):
        predict(result, data=data / "images", out=tmp_path / "no", mpp=0.5)
    (tmp_path / "twice.txt").write_text("data/images/P0_0.png\ndata/../data/images/P0_0.png\n")
    with pytest.raises(UserError, match=r"images that .*twice.txt names twice: P0_0.png; give each image once"):
        predict(result, data=tmp_path / "twice.txt", out=tmp_path / "no", devices="cpu")


def test_the_commands_for_slides_work(segment: Segment, data: Path, tmp_path: Path) -> None:
    """A segmenter refuses slides and tiles with what to run, and takes the store that this makes."""
    result = segment(data=data / "images", classes=CLASSES, folds=2, epochs=1)
    write_slide(tmp_path / "slides/a.tiff", size=(512, 512), mpp=1.0, tile=64, levels=(1, 4), seed=3)
    cut, pack = r"densepath tile --data \S*/slides --out T --mpp MPP .*", r"densepath data pack \S*T tiles.safetensors"
    with pytest.raises(UserError, match=f"holds whole slides.*{cut}, then {pack}, and give --data tiles.safetensors"):
        predict(result, data=tmp_path / "slides", out=tmp_path / "out", devices="cpu")
    densepath.tile(data=tmp_path / "slides", out=tmp_path / "T", mpp=1.0, size=64, workers=0)
    with pytest.raises(UserError, match=f"holds tiles of slides.*with {pack}, and give --data tiles.safetensors"):
        predict(result, data=tmp_path / "T", out=tmp_path / "out", devices="cpu")
    store = densepath.pack(tmp_path / "T", tmp_path / "tiles.safetensors")
    done = predict(result, data=store, out=tmp_path / "out", devices="cpu", precision="32", pictures=0)
    assert done["images"] == len(list((tmp_path / "out/labels").glob("*.png"))) > 3


def test_a_stopped_run_resumes_to_the_same_bits(
    data: Path, segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"data": data / "images", "folds": 2, "epochs": 2, "augment": {"zoom": [0.8, 1.2]}}
    segment(**given)
    steps, plain = [], SegmentTask.after_step

    def stop(task: SegmentTask) -> None:
        plain(task)
        steps.append(1)
        if len(steps) in (1, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(SegmentTask, "after_step", stop)
    again = {**given, "out": tmp_path / "again", "save_every_steps": 1}
    for _ in range(2):
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            segment(**again, resume=True)
    segment(**again, resume=True)
    for name in ("cases.csv", "scores.csv"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "again" / name).read_text()
    weights = [load_file(tmp_path / run / "exported/segmenter.safetensors") for run in ("run", "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    drawn = sorted((tmp_path / "again").rglob("pictures/*.png"))
    segment(**again, resume=True, pictures=3)  # that are asked for later
    assert len(drawn) == 2 and len(set((tmp_path / "again").rglob("pictures/*.png")).difference(drawn)) == 4
    assert (tmp_path / "run/cases.csv").read_text() == (tmp_path / "again/cases.csv").read_text()
    with pytest.raises(UserError, match="was started with other values of overlap"):
        segment(**{**again, "overlap": 0.3}, resume=True)


def test_damaged_images_and_changed_labels(
    data: Path, segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LARGEST_SHARE, 2, 0.5)
    damaged = data / "images/P0_0.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-2000])  # its header can be read
    given: dict[str, Any] = {"data": data / "images", "folds": 2, "epochs": 1, "cache": "ram", "freeze": True}
    segment(**given)
    tested = {
        run: {r["image"] for r in rows(tmp_path / "run/cases.csv") if r["run"] == run} for run in ("fold_0", "fold_1")
    }
    for number, split in enumerate(json.loads((tmp_path / "run/splits.json").read_text())["seed_0"]):
        assert tested[f"fold_{number}"] == set(split["test"]) - {"P0_0.png"}
    scored = {row["image"]: row for row in rows(tmp_path / "run/cases.csv") if row["region"] == "class_10"}
    damaged.write_bytes(whole)
    segment(**given, resume=True)
    again = {row["image"]: row for row in rows(tmp_path / "run/cases.csv") if row["region"] == "class_10"}
    assert again.keys() - scored.keys() == {"P0_0.png"} and {name: again[name] for name in scored} == scored
    tested_image = data / "images/P1_2.png"
    former = tested_image.read_bytes()
    Image.fromarray(255 - np.asarray(Image.open(tested_image))).save(tested_image)
    with pytest.raises(UserError, match=r"test images of the run in .* have changed: P1_2\.png; name another folder"):
        segment(**given, resume=True)
    tested_image.write_bytes(former)
    Image.fromarray(np.asarray(Image.open(data / "labels/P1_2.png"))[::-1]).save(data / "labels/P1_2.png")
    with pytest.raises(UserError, match="the images or the labels of the run"):
        segment(**given, resume=True)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_no_score_lacks_images_that_a_later_attempt_may_read(
    part: str, data: Path, segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"data": data / "images", "folds": 2, "epochs": 1, "cache": "none", "freeze": True}
    segment(**given)
    expected = (tmp_path / "run/cases.csv").read_text()
    lost = json.loads((tmp_path / "run/splits.json").read_text())["seed_0"][0][part][0]
    shutil.rmtree(tmp_path / "run")
    read_case = training.read_case

    def failing(cases: Any, position: int) -> Any:
        if cases.pool.names[position] == lost:
            raise CorruptImage(lost, "cannot be read") from PermissionError(errno.EACCES, "Permission denied")
        return read_case(cases, position)

    with monkeypatch.context() as patched, pytest.raises(UserError, match=f"1 image cannot be read now: {lost}"):
        patched.setattr(training, "read_case", failing)
        segment(**given)
    assert not (tmp_path / "run/cases.csv").exists()
    segment(**given, resume=True)
    assert (tmp_path / "run/cases.csv").read_text() == expected


def test_an_earlier_run_in_which_ignore_was_a_class_is_not_continued(
    data: Path, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {
        "data": data / "images",
        "classes": ("0:no", "10:a", "20:ignore"),
        "folds": 2,
        "freeze": True,
    }
    with monkeypatch.context() as earlier:
        earlier.setattr("densepath.transfer.segment.legend._without_ignored", lambda names: (names, []))
        segment(**given, epochs=1)
    with pytest.raises(UserError, match=r"have changed, or an earlier version began it, in which 20 \(ignore\) was"):
        segment(**given, epochs=1, resume=True)


def test_options_of_the_optimizer_without_effect_are_reported(
    data: Path, segment: Segment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*given: Any) -> None:
        raise UserError("the start is enough")

    monkeypatch.setattr("densepath.transfer.segment.segment.fit", stop)
    with pytest.raises(UserError, match="the start is enough"):
        segment(data=data / "images", folds=2, optimizer={"clip": "tensor"})
    assert "densepath: optimizer.clip: no effect without clip_norm\n" in capsys.readouterr().err


def test_two_processes_are_one(data: Path, segment: Segment, tmp_path: Path, command_line: CommandLine) -> None:
    test, out = write_images(tmp_path / "test", 2, 1, seed=1, letter="Q"), tmp_path / "two"
    given = {"data": data / "images", "test_data": test / "images", "patient_regex": r"^([PQ]\d+)"}
    segment(**given, optimizer={"lr": 1e-3}, validation=0.4, epochs=1)
    words = " ".join(f"--{name} {value}" for name, value in given.items())
    small = f"--out {out} --devices cpu:2 --workers 0 --epochs 1 --backbone test_resnet --view_size 32 --batch_size 4"
    process = command_line(f"segment {words} {small} --validation 0.4 --lr 1e-3 --precision 32", tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    one, two = (load_file(run / "exported/segmenter.safetensors") for run in (tmp_path / "run", out))
    assert max(float((one[name].float() - two[name].float()).abs().max()) for name in one) < 5e-3
    notes = [read_segmenter(run / "exported/segmenter.safetensors")[1] for run in (tmp_path / "run", out)]
    assert notes[0].loss == pytest.approx(notes[1].loss, rel=2e-3)


def test_volumes_come_back_in_the_orientation_of_their_files(
    segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nibabel = pytest.importorskip("nibabel")
    store, scans, seen = write_store(tmp_path, shear=0.5), tmp_path / "scans/images", []

    def seeing(*parts: Any) -> Any:
        seen.append(parts[-1])
        return score_case(*parts)

    monkeypatch.setattr("densepath.transfer.segment.training.score_case", seeing)
    options: dict[str, Any] = {"backbone": "resnet10_3d_w4", "view_size": (20, 20, 20), "norm": "group", "epochs": 1}
    result = segment(data=store, folds=2, freeze=True, regions=("ball=1+4", "core=4"), **options)
    assert {"dice_ball", "hd95_core", "missed_core"} <= {*result}
    steps = [each for each in seen if each is not None]  # of validation images only Dice is measured
    assert np.allclose(steps, [[[0, 0.5, 1.5], [0, 2, 0], [1, 0, 0]]] * 6)
    with pytest.raises(UserError, match="takes images of 2 dimensions, but these have 3"):
        segment(data=store, folds=2, out=tmp_path / "no")  # a network for images
    given: dict[str, Any] = {"devices": "cpu", "precision": "32"}
    spec = read_segmenter(tmp_path / "run/exported/segmenter.safetensors")[1].spec

    def by_brightness(net: Any, x: torch.Tensor) -> torch.Tensor:
        return -(x * spec.std[0] + spec.mean[0] - torch.tensor([0.05, 0.5, 0.97]).view(3, 1, 1, 1)).square()

    monkeypatch.setattr("densepath.transfer.segment.network.SegmentationNet.forward", by_brightness)
    (scans / "notes.txt").touch()
    predict(result, data=scans, out=tmp_path / "files", pictures=1, **given)
    assert "; passed over: 1 .txt file" in capsys.readouterr().err
    (scans / "notes.txt").unlink()
    predict(result, data=store, out=tmp_path / "stored", pictures=0, **given)
    for path in sorted(scans.iterdir()):
        source, found = nibabel.load(path), nibabel.load(tmp_path / "files/labels" / path.name)
        np.testing.assert_allclose(found.affine, source.affine, atol=1e-6)
        assert found.shape == source.shape and found.get_data_dtype() == np.uint8
        truth = np.asarray(nibabel.load(tmp_path / "scans/labels" / path.name).dataobj)
        np.testing.assert_array_equal(np.asarray(found.dataobj), truth)
        again = nibabel.load(tmp_path / "stored/labels" / path.name)
        assert np.array_equal(np.asarray(again.dataobj), truth) and np.allclose(again.affine, source.affine)
    scores = score(data=tmp_path / "scans/labels", predictions=tmp_path / "files", out=tmp_path / "scores.json")
    assert (scores["dice_ball"], scores["hd95_core"]) == (100, 0)
    assert len(rows(tmp_path / "scores.csv")) == 2 * len(list(scans.iterdir()))
    # At another spacing than that of the training, the prediction is resampled back
    other = tmp_path / "other"
    other.mkdir()
    fine = np.kron(np.asarray(source.dataobj), np.ones((2, 2, 2), np.int16)).astype(np.int16)
    affine = source.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = source.affine[:3, 3] - source.affine[:3, :3].sum(1) / 4  # the corner stays
    nibabel.save(nibabel.Nifti1Image(fine, affine), other / "fine.nii.gz")
    predict(result, data=other, out=tmp_path / "finer", pictures=1, **given)
    finer = nibabel.load(tmp_path / "finer/labels/fine.nii.gz")
    assert finer.shape == fine.shape and np.allclose(finer.affine, affine)
    assert (np.asarray(finer.dataobj) == np.kron(truth, np.ones((2, 2, 2), np.uint8))).mean() > 0.93


def test_scores_are_compared_with_the_files_of_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SegmentConfig(data=write_store(tmp_path, count=2), out=tmp_path / "run")
    pool, path = read_cases(config)[0].pool, tmp_path / "answers.json"
    keep_answers(path, pool, {0: [1.0], 1: [2.0]})
    monkeypatch.chdir(tmp_path)
    for name in pool.names:
        (tmp_path / name).mkdir(parents=True)  # is not the volume of this name
    assert kept_answers(path, pool) == ({0: [1.0], 1: [2.0]}, [])
    away = Path(pool.paths[1]).rename(tmp_path / "away")
    keep_answers(path, pool, {0: [1.0], 1: [2.0]})
    assert kept_answers(path, pool) == ({0: [1.0], 1: [2.0]}, [])
    away.rename(pool.paths[1])
    with open(pool.paths[1], "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=f"test images of the run in .* have changed: {pool.names[1]};"):
        kept_answers(path, pool)


@pytest.mark.parametrize("backbone", ["test_resnet", "regnetx_002"])
def test_a_segmenter_with_group_norms_is_trained_further(
    backbone: str, data: Path, segment: Segment, tmp_path: Path
) -> None:
    legend = legend_of(("0:background", "1:red"))
    notes = SegmenterNotes(backbone, "unet", "group", legend, (32, 32), 0.5, PixelSpec().record())
    start = tmp_path / "start/exported/segmenter.safetensors"
    save_segmenter(start, notes.build(), notes)
    options: dict[str, Any] = {"data": data / "images", "weights": start, "backbone": backbone, "folds": 2}
    segment(**options, norm="group", freeze=True, epochs=1, pictures=0)  # the backbone stays as it was
    before, after = (load_file(path) for path in (start, tmp_path / "run/exported/segmenter.safetensors"))
    own = [name for name in before if name.startswith("backbone.")]
    assert own and all(torch.equal(before[name], after[name]) for name in own)
    with pytest.raises(UserError, match="they have group norms, which segment --norm group continues to train"):
        segment(**options, out=tmp_path / "no")


def test_what_cannot_be_learned_is_refused_in_one_line(data: Path, segment: Segment, tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            segment(**{"data": data / "images", "out": tmp_path / "no", **options})
        assert not (tmp_path / "no").exists()

    refused(r"values of label maps that are no class: 20 \(P0_0.png", classes=CLASSES[:2])
    refused("background is 9, the value of no class", background=9)
    refused("no pixel of the label maps is of a class", ignore=(0, 10, 20), classes=())
    refused("there are no test images", folds=0)
    refused("fewer than the 7 folds|divided into 7 folds", folds=7)
    refused("give VALUE:NAME for each", classes=("red",))
    refused("is not NAME=VALUE", regions=("all=1+77",))
    refused("patches of 4096 x 4096 are more than twice as long as the longest images", view_size=4096)
    refused("takes images of 3 dimensions, but these have 2", backbone="resnet10_3d_w4")
    shutil.copytree(data / "images", tmp_path / "bare/images")
    refused("has no folder labels beside it", data=tmp_path / "bare/images")
    labels = tmp_path / "labels"
    shutil.copytree(data / "labels", labels)
    Image.fromarray(np.resize(np.uint8([0, 10, 20, 30]), (40, 48))).save(labels / "P0_0.png")
    refused("classes that the training images of fold_[01] lack: class_30;", labels=labels, folds=2)
    Image.new("L", (10, 10)).save(labels / "P0_0.png")
    refused(r"of another size than their images: P0_0.png \(48 x 40, labels 10 x 10\)", labels=labels)
    (labels / "P0_0.png").unlink()
    refused("images without a label map: P0_0.png", labels=labels)
    for values in ((-1, 1), (1, 2**16)):  # PNG files of predictions could not have them
        np.save(labels / "P0_0.npy", np.resize(values, (40, 48)))
        refused(r"classes with values outside of 0 to 65535: (-1|65536) \(P0_0.png\)", labels=labels)
    (labels / "P0_0.npy").unlink()
    for path in labels.iterdir():
        Image.new("L", (48, 40)).save(path)
    Image.new("L", (48, 40)).save(labels / "P0_0.png")
    refused("all pixels of the label maps are of one class, background", labels=labels)
    (data / "images/more.png").write_bytes((data / "images/P0_0.png").read_bytes())
    Image.new("L", (48, 40)).save(data / "labels/more.png")
    Image.new("L", (48, 40)).save(data / "labels/none.png")
    refused("label maps without an image", patient_regex=None)


def test_official_splits_that_share_patients_are_refused(data: Path, segment: Segment, tmp_path: Path) -> None:
    for part in ("images", "labels"):
        for k, path in enumerate(sorted((data / part).iterdir())):
            folder = tmp_path / "split" / part / ("train", "test")[k % 2]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)
    given = {"data": tmp_path / "split/images", "patient_regex": r"(P\d+)_", "epochs": 1}
    with pytest.raises(UserError, match="leak: patients with train and test images: P0"):
        segment(**given)
    segment(**given, official=False, folds=2, freeze=True)
    tested = [row["image"] for row in rows(tmp_path / "run/cases.csv") if row["region"] == "class_10"]
    assert sorted(tested) == sorted(f"{('train', 'test')[k % 2]}/P{k // 2}_{k}.png" for k in range(8))
    for part in ("images", "labels"):
        (tmp_path / "split" / part / "train/P0_0.png").rename(tmp_path / "split" / part / "train/P00_0.png")
    with pytest.raises(UserError, match="patients that differ in capitals, spaces or zeros: 0, 00; spell each one"):
        segment(**(given | {"patient_regex": r"P(\d+)_"}), out=tmp_path / "no")
    with pytest.raises(UserError, match="already holds a run"):  # one that is resumed is not refused for its patients
        segment(**(given | {"patient_regex": r"P(\d+)_"}), official=False)


@pytest.mark.parametrize("name", recipe_names("segment"))
def test_recipes_are_options_of_the_verb(name: str) -> None:
    given = VERBS["segment"].command("segment").parse(["--config", name, "--data", "d", "--out", "o"])
    assert given["optimizer"]["lr"] > 0
    assert resolve(SegmentConfig, name, {"data": "d", "out": "o"}, "segment").epochs == given["epochs"]
