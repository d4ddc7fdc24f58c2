"""Held-out images: by patient, measured with fixed views, the best weights kept, and a run that ends early."""

import csv
import math
import os
import shutil

import pytest
import torch

from densepath.annotations.classes import Classes
from densepath.core.errors import UserError
from densepath.methods import DINO, ConCL, SwAV
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights
from densepath.runs.checkpoints import read_checkpoint
from densepath.sources.image_files import ImageFiles
from densepath.sources.names import AllNames
from densepath.sources.open import find_source
from densepath.sources.packing import pack
from densepath.sources.restrict import take
from densepath.training import division, run_images
from densepath.training.config import PretrainConfig
from densepath.training.division import hold_out_images
from densepath.training.export import export
from densepath.training.pretrain import pretrain
from densepath.training.run_images import find_images
from densepath.training.validation import PartOf, Patience

OPTIONS = {"method": "spark", "method_options": {"decoder_dim": 32}, "backbone": "test_resnet", "batch_size": 8}
OPTIONS |= {"view_size": 64, "devices": "cpu", "precision": "32", "val_share": 0.2, "log_every": 1, "workers": 0}


def rows_of(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_patient_is_trained_on_or_held_out(tmp_path):
    names = [f"{patient:08d}_{number:03d}.png" for patient in range(30) for number in range(1 + patient % 4)]
    names += [f"patient{patient:05d}/study1/view{number}_frontal.jpg" for patient in range(20) for number in (1, 2)]
    (tmp_path / "manifest.csv").write_text("file,patient\n" + "".join(f"x{n}.png,P{n // 5}\n" for n in range(40)))
    names += [f"x{n}.png" for n in range(40)]
    images = ImageFiles([str(tmp_path / name) for name in names])
    train, held = (take(images, part) for part in hold_out_images(images, tmp_path, 0.25, 3))

    def patients(images):
        paths = [str(images.paths[n]).removeprefix(f"{tmp_path}/") for n in range(len(images))]
        return {p.split("/")[0] if "/" in p else p[:8] if "_" in p else f"P{int(p[1:-4]) // 5}" for p in paths}

    assert not patients(train) & patients(held) and len(train) + len(held) == len(names)
    assert 0.25 <= len(held) / len(names) < 0.3
    images = ImageFiles([str(tmp_path / name) for name in reversed(names)])
    again = take(images, hold_out_images(images, tmp_path, 0.25, 3)[1])
    assert {str(again.paths[n]) for n in range(len(again))} == {str(held.paths[n]) for n in range(len(held))}
    (tmp_path / "manifest.csv").write_text("file,patient\nx0.png,1\n")
    named = f"patients in {tmp_path}/manifest.csv that differ in capitals, spaces or zeros"
    with pytest.raises(UserError, match=f"^{named}: 00000001, 1; spell each one way"):
        hold_out_images(images, tmp_path, 0.25, 3)
    with pytest.raises(UserError, match="leaves no patient to train on"):
        hold_out_images(ImageFiles(["00000001_000.png", "00000001_001.png"]), "", 0.5, 0)
    with pytest.raises(UserError, match="leaves no image to train on; give a smaller share, or more images"):
        hold_out_images(ImageFiles(["a.png", "b.png"]), "", 0.99, 0)


def test_patience_counts_evaluations_since_the_lowest_loss():
    patience = Patience(2)
    seen = [(patience.improved(loss), patience.ended()) for loss in (3.0, 2.0, 2.5, 1.9, 1.9, 2.0)]
    assert seen == [(True, False), (True, False), (False, False), (True, False), (False, False), (False, True)]


def test_a_loss_of_nan_is_never_the_lowest():
    patience = Patience(0)
    assert [patience.improved(loss) for loss in (1.0, math.nan, 5.0, 0.5)] == [True, False, False, True]


def test_the_best_weights_are_kept_and_a_resumed_run_ends_at_the_same_step(tmp_path, tiles, monkeypatch, capsys):
    given = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    first = tmp_path / "first"
    monkeypatch.setattr(Patience, "improved", replaced(Patience.improved, given))
    options = {**OPTIONS, "data": tiles, "epochs": 5, "patience": 2, "save_every_steps": 4}
    pretrain(**options, out=first)
    held = f"8 images are held out for validation, by patient where known ({first / 'validation_images.txt'}); 32 are"
    assert held in capsys.readouterr().err
    rows = rows_of(first)
    assert [row["step"] for row in rows if row.get("val_loss")] == ["4", "8", "12", "16"]
    assert rows[-1]["step"] == "16"  # of 20
    train, held = ((first / name).read_text().splitlines() for name in ("images.txt", "validation_images.txt"))
    assert len(train) == 32 and len(held) == 8 and not {*train} & {*held}
    load_weights(build_backbone("test_resnet"), first / "exported" / "best.safetensors")
    best = read_checkpoint(first / "checkpoints" / "best.ckpt")
    assert best["step"] == 8 and best["state_dict"]["patience.lowest"] == 2.0
    state = read_checkpoint(first / "checkpoints" / "last.ckpt")
    assert state["state_dict"]["patience.since"] == 2 and state["state_dict"]["patience.lowest"] == 2.0

    (first / "checkpoints" / "last.ckpt").unlink()  # continues at step 12
    monkeypatch.setattr(Patience, "improved", replaced(Patience.__dict__["improved"], iter([2.6])))
    pretrain(**options, out=first, resume=True)
    again = read_checkpoint(first / "checkpoints" / "last.ckpt")
    assert again["step"] == 16
    assert all(torch.equal(again["state_dict"][key], value) for key, value in state["state_dict"].items())
    before = rows_of(first)
    assert export(first) == first / "exported" / "backbone.safetensors"  # of a complete run, although of step 16
    pretrain(**options, out=first, resume=True)  # it has ended
    assert rows_of(first) == before


def replaced(improved, values):
    original = getattr(improved, "original", improved)

    def told(self, loss):
        return original(self, next(values))

    told.original = original
    return told


def test_validation_does_not_change_the_run(tmp_path, tiles):
    """Its loss is that of the same views each time, and queues do not see the held-out images."""
    small = {"method": "moco_v2", "method_options": {"queue_size": 40}, "max_steps": 4}
    options = {**OPTIONS, **small, "data": tiles}
    folder = pretrain(**options, out=tmp_path / "run")
    state = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    plain = {**options, "val_share": 0.0, "data": folder / "images.txt"}
    other = pretrain(**plain, out=tmp_path / "plain") / "checkpoints" / "last.ckpt"
    expected = read_checkpoint(other)["state_dict"]
    assert {key for key in state if key not in expected} == {"patience.lowest", "patience.since"}
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_the_loss_follows_the_run_and_patience_starts_anew_after_a_warm_up(tmp_path, tiles, monkeypatch):
    given, forward, seen = iter([1.0, 2.0, 3.0, 3.5, 3.2]), ConCL.forward, []

    def recorded(method, batch):
        losses = forward(method, batch)
        if not method.training:
            main = losses.terms.get("concept_loss", losses.terms["instance_loss"])
            seen.append((batch.epoch, batch.progress, batch.uniform(3), len(losses.terms), bool(losses.total == main)))
        return losses

    monkeypatch.setattr(ConCL, "forward", recorded)
    monkeypatch.setattr(Patience, "improved", replaced(Patience.improved, given))
    small = {"concepts": "grid", "grid_size": 2, "warmup": 0.4, "queue_size": 8, "concept_queue_size": 64}
    options = {**OPTIONS, "method": "concl", "method_options": small, "epochs": 6, "patience": 2}
    folder = pretrain(**options, data=tiles, out=tmp_path / "run")
    assert [row[:2] for row in seen] == [((4 * n - 1) / 4, (4 * n - 1) / 24) for n in (1, 2, 3, 4, 5)]
    assert [row[3:] for row in seen] == [(1, True)] * 2 + [(2, True)] * 3
    assert all(torch.equal(row[2], seen[0][2]) for row in seen)
    assert rows_of(folder)[-1]["step"] == "20"  # of 24
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert best["step"] == 12 and best["state_dict"]["patience.lowest"] == 3.0


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        (ConCL, {"warmup": 0.5, "queue_size": 8, "concept_queue_size": 8}, (False, False, True)),
        (ConCL, {"warmup": 1.0, "queue_size": 8, "concept_queue_size": 8}, (True, True, True)),
        (
            DINO,
            {"prototypes": 8, "teacher_temperature_start": 0.02, "teacher_temperature_epochs": 4},
            (False, True, True),
        ),
        (DINO, {"prototypes": 8}, (True, True, True)),
        (SwAV, {"prototypes": 8, "queue_size": 8}, (False, False, False)),
    ],
)
def test_losses_are_comparable_from_when_they_keep_their_meaning(method, options, expected):
    made = method(build_backbone("test_resnet"), **options)
    assert tuple(made.comparable(10 * progress, progress) for progress in (0.2, 0.4, 0.6)) == expected
    if method is SwAV:
        made.queued.fill_(8)
        assert made.comparable(2.0, 0.2)


def test_options_that_do_not_fit_are_refused(tmp_path, tiles):
    options = {**OPTIONS, "data": tiles, "out": tmp_path / "run", "max_steps": 1}
    with pytest.raises(UserError, match="together with val_share"):
        pretrain(**{**options, "val_share": 0.0, "patience": 3})
    with pytest.raises(UserError, match="val_share is 1"):
        pretrain(**{**options, "val_share": 1.0})


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("simclr", {}, "has no negatives; use two or more"),
        ("moco_v2", {"standardize": True, "queue_size": 16}, "cannot be standardized; use two or more"),
        ("swav", {}, "the codes of a batch of one image are uniform"),
    ],
)
def test_a_loss_that_says_nothing_of_one_held_out_image_is_refused(tmp_path, tiles, method, options, message):
    names = sorted(str(path) for path in tiles.rglob("*.png"))[:3]
    (tmp_path / "three.txt").write_text("\n".join(names))
    given = {**OPTIONS, "method": method, "method_options": options, "batch_size": 2, "max_steps": 1}
    with pytest.raises(UserError, match=f"^--val_share holds out 1 image: .*{message}"):
        pretrain(**given, data=tmp_path / "three.txt", out=tmp_path / "run")


def test_a_scale_of_crops_is_refused_for_windows(tmp_path, tiles):
    given = {
        **OPTIONS,
        "method": "cube",
        "method_options": {"side": 16},
        "data": tiles,
        "val_share": 0.0,
        "max_steps": 1,
    }
    with pytest.raises(
        UserError, match=r"^views are windows here, .*: --augment.scale would have no effect; leave that"
    ):
        pretrain(**given, out=tmp_path / "run", augment={"scale": [0.5, 1.0]})
    pretrain(**given, out=tmp_path / "turned", augment={"rotation": 5.0})


def test_a_fraction_is_by_patient_and_its_complement_is_a_list(tmp_path, tiles, monkeypatch):
    """The paper's 9:1 to 6:4: what a run does not learn from is left for fine-tuning."""
    paths = [str(path) for path in sorted(tiles.rglob("*.png"))]
    table = tmp_path / "labels.csv"
    table.write_text("file,patient\n" + "".join(f"{path},P{n // 4}\n" for n, path in enumerate(paths)))
    options = {**OPTIONS, "data": table, "val_share": 0.0, "max_steps": 1}
    seen = []
    for fraction in (0.9, 0.6):
        used, left = find_images(PretrainConfig(**options, fraction=fraction, out=tmp_path / "no"))
        names = [{*AllNames(part)} for part in (used, left)]
        assert not names[0] & names[1] and names[0] | names[1] == {*paths} and len(used) == fraction * len(paths)
        patients = [{paths.index(name) // 4 for name in part} for part in names]
        assert not patients[0] & patients[1]
        seen.append(names[0])
    assert seen[1] < seen[0]
    folder = pretrain(**options, fraction=0.6, out=tmp_path / "run")
    lists = [set((folder / name).read_text().splitlines()) for name in ("images.txt", "other_images.txt")]
    assert lists == [seen[1], {*paths} - seen[1]]
    # As version 0.1 chose them: such a run cannot be resumed, and the line says why.
    monkeypatch.setattr(run_images, "owners_of", lambda images, *_: [*AllNames(images)])
    (folder / "images.txt").unlink()
    with pytest.raises(UserError, match=r"chooses patients where any are known; up to version 0\.1 it chose images"):
        pretrain(**options, fraction=0.6, out=tmp_path / "run", resume=True)


def test_images_are_divided_alike_wherever_they_lie(tmp_path, tiles, monkeypatch):
    names = [str(path.relative_to(tiles)) for path in sorted(tiles.rglob("*.png"))]
    held = [hold_out_images(ImageFiles([f"{top}/{n}" for n in names]), "", 0.2, 0)[1] for top in ("a", "./a", "/x/b")]
    assert torch.equal(held[0], held[1]) and torch.equal(held[0], held[2])
    # A run of an earlier version, where the folder counted, keeps its division when it is resumed, also elsewhere
    options = {**OPTIONS, "max_steps": 4, "save_every_steps": 2, "out": tmp_path / "run"}
    with monkeypatch.context() as earlier:
        earlier.setattr(division, "names_below", list)
        pretrain(**options, data=tiles)
    rows = rows_of(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()  # continues at step 2
    moved = shutil.copytree(tiles, tmp_path / "moved")
    lists = [tmp_path / "run" / name for name in ("images.txt", "validation_images.txt")]
    before = [path.read_text() for path in lists]
    pretrain(**options, data=moved, resume=True)
    assert [path.read_text().replace(str(moved), str(tiles)) for path in lists] == before
    assert [row["loss"] for row in rows_of(tmp_path / "run")] == [row["loss"] for row in rows]


def test_a_refused_resumption_keeps_the_recorded_division(tmp_path, tiles, monkeypatch):
    options = {**OPTIONS, "max_steps": 4, "save_every_steps": 2, "out": tmp_path / "run"}
    with monkeypatch.context() as earlier:
        earlier.setattr(division, "names_below", list)  # another division than this version's
        pretrain(**options, data=tiles)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()  # continues at step 2
    lists = [tmp_path / "run" / name for name in ("images.txt", "validation_images.txt")]
    before = [path.read_text() for path in lists]
    fewer = shutil.copytree(tiles, tmp_path / "fewer")
    next(fewer.rglob("*.png")).unlink()
    with pytest.raises(UserError, match="was started with 32 images, but there are 31 now"):
        pretrain(**options, data=fewer, resume=True)
    assert [path.read_text() for path in lists] == before
    pretrain(**options, data=tiles, resume=True)


def test_a_fraction_does_not_depend_on_how_the_path_is_spelled(tmp_path, tiles, monkeypatch):
    paths = sorted(path.relative_to(tiles) for path in tiles.rglob("*.png"))
    # Patients of every second pair of images are unknown
    known = "".join(f"{path},M{n // 4}\n" for n, path in enumerate(paths) if n % 4 < 2)
    (tiles / "manifest.csv").write_text(f"file,patient\n{known}")
    monkeypatch.chdir(tmp_path)
    shares = []
    for spelled in ("tiles", "./tiles", str(tiles)):
        used, _ = find_images(PretrainConfig(**{**OPTIONS, "val_share": 0.0}, data=spelled, fraction=0.5, out="no"))
        shares.append(sorted(os.path.relpath(name, tiles) for name in AllNames(used)))
    assert shares == [shares[0]] * 3


def test_a_run_whose_patients_have_two_names_is_resumed_with_its_division(tmp_path, tiles, monkeypatch, capsys):
    rows = [f"{path},{('7', '007', f'P{n}')[min(n, 2)]}" for n, path in enumerate(sorted(tiles.rglob("*.png")))]
    (tmp_path / "labels.csv").write_text("\n".join(["file,patient", *rows]))
    options = {**OPTIONS, "data": tmp_path / "labels.csv", "fraction": 0.9, "max_steps": 2, "out": tmp_path / "run"}
    with pytest.raises(UserError, match=r"patients in .*labels\.csv that differ in capitals, spaces or zeros: 007, 7;"):
        pretrain(**options)
    monkeypatch.setattr(division, "check_spelling", lambda *_, **__: None)  # as an earlier version
    pretrain(**options)
    monkeypatch.undo()
    lists = [(tmp_path / "run" / name).read_text() for name in ("images.txt", "validation_images.txt")]
    pretrain(**options, resume=True)
    assert capsys.readouterr().err.count("labels.csv that differ in capitals, spaces or zeros count as different") == 1
    assert [(tmp_path / "run" / name).read_text() for name in ("images.txt", "validation_images.txt")] == lists


def test_stores_and_inputs_are_divided_like_files(tmp_path, tiles):
    store = tmp_path / "packed.safetensors"
    pack(tiles, store)
    images = find_source(store)
    train, held = hold_out_images(images, store, 0.2, 0)
    assert len(held) == 8 and sorted([*train.tolist(), *held.tolist()]) == list(range(len(images)))
    known = PartOf(Classes(("a", "b"), torch.arange(40, dtype=torch.int32)), held)
    assert len(known) == 8 and torch.equal(known.gather(torch.tensor([3, 0])), held[[3, 0]].int())
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{images.names(n)},{'ab'[n % 2]}\n" for n in range(len(images))))
    options = {**OPTIONS, "method": "supervised", "method_options": {}, "max_steps": 4, "labels": table}
    folder = pretrain(**options, data=store, out=tmp_path / "run")
    assert [float(row["val_loss"]) > 0 for row in rows_of(folder) if row.get("val_loss")] == [True]
    held_names = (folder / "validation_images.txt").read_text().splitlines()
    assert held_names == [images.names(n) for n in held.tolist()]
