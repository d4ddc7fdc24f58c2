"""MHIST, Chaoyang, PatchCamelyon, ChestX-ray14 and CheXpert as published become lists, and what differs is reported."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from densepath.core.errors import UserError
from densepath.core.output_names import names_below
from densepath.datasets import chexpert
from densepath.datasets.chaoyang import convert_chaoyang
from densepath.datasets.chestxray14 import convert_chestxray14
from densepath.datasets.chexpert import convert_chexpert
from densepath.datasets.mhist import convert_mhist
from densepath.datasets.pcam import convert_pcam
from densepath.sources.open import find_source
from densepath.transfer.classify.cohort import read_pool
from densepath.transfer.classify.config import ClassifyConfig
from densepath.transfer.embed.feature_file import Features
from densepath.transfer.probe.labelled import Labels, label


def image(path: Path, value: int, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (value, 90, 120)).save(path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def write_mhist(folder: Path, names: list[str]) -> Path:
    heads = ["Image Name", "Majority Vote Label", "Number of Annotators who Selected SSA (Out of 7)", "Partition"]
    lines = [[name, ("HP", "SSA")[k % 2], 3, "test" if k > 3 else "train"] for k, name in enumerate(names)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows([heads, *lines])
    return folder


def test_mhist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"MHIST_{k}.png" for k in range(6)]
    source = write_mhist(tmp_path / "in", names)
    for k, name in enumerate(names):
        image(source / "images" / name, 20 * k, 224)
    listed = convert_mhist(tmp_path / "in", tmp_path / "out")
    found = rows(listed)
    assert [Path(row["file"]).name for row in found] == names and found[1]["label"] == "SSA"
    assert [row["split"] for row in found] == ["train"] * 4 + ["test"] * 2 and len(find_source(listed)) == 6
    out, err = capsys.readouterr()
    assert "train: 4 images, 2 HP, 2 SSA" in out
    assert "MHIST as published: 2,175 train, 977 test images; on request, for research" in err
    assert "differs from the published one: it has 4 train images, not 2,175" in err
    shutil.copy(source / "images" / names[0], source / "images" / names[5])
    image(source / "images" / names[1], 20, 100)
    convert_mhist(tmp_path / "in", tmp_path / "same")
    err = capsys.readouterr().err
    assert "1 group of identical images, 1 of them in several splits: MHIST_0.png = MHIST_5.png" in err
    assert "1 of 6 images are not 224 x 224 px: MHIST_1.png (100 x 100 px)" in err
    (source / "images" / names[2]).unlink()
    with pytest.raises(UserError, match=r"lists 1 missing image: .*MHIST_2\.png"):
        convert_mhist(tmp_path / "in", tmp_path / "no")
    write_mhist(source, [*names[:2], names[0]])
    with pytest.raises(UserError, match=r"lists twice: .*MHIST_0\.png"):
        convert_mhist(tmp_path / "in", tmp_path / "no")
    with pytest.raises(UserError, match=r"has no annotations\.csv and images, as MHIST is published"):
        convert_mhist(source / "images", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_chaoyang(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in/chaoyang"
    for split, count in (("train", 4), ("test", 2)):
        listed = [{"name": f"{split}/{k}.JPG", "label": k, "label_A": 0} for k in range(count)]
        for k in range(count):
            image(source / split / f"{k}.JPG", 40 * k + len(split), 512)
        (source / f"{split}.json").write_text(json.dumps(listed))
    found = rows(convert_chaoyang(tmp_path / "in", tmp_path / "out"))
    assert [row["label"] for row in found[:4]] == ["normal", "serrated", "adenocarcinoma", "adenoma"]
    assert [row["split"] for row in found] == ["train"] * 4 + ["test"] * 2
    out, err = capsys.readouterr()
    assert "test: 2 images, 1 normal, 1 serrated" in out and "not for commercial use" in err
    assert "it has 4 train images, not 4,021; 2 test images, not 2,139" in err
    (source / "test/1.JPG").unlink()
    with pytest.raises(UserError, match=r"lists 1 missing image: .*1\.JPG"):
        convert_chaoyang(source, tmp_path / "no")
    (source / "test.json").write_text(json.dumps([{"name": "test/0.JPG", "label": 4}]))
    with pytest.raises(UserError, match="without a name and a label from 0 to 3"):
        convert_chaoyang(source, tmp_path / "no")
    (source / "train.json").write_text("[" * 10**5)
    with pytest.raises(UserError, match=r"train\.json is not JSON"):
        convert_chaoyang(source, tmp_path / "no")


def test_pcam(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, rng = tmp_path / "in", np.random.default_rng(0)
    source.mkdir()
    pixels = {}
    for split, count in (("train", 4), ("valid", 2), ("test", 3)):
        pixels[split] = rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        stem = f"{source}/camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = pixels[split]
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = (np.arange(count) % 2).reshape(-1, 1, 1, 1).astype(np.uint8)
        with open(f"{stem}_meta.csv", "w", newline="") as file:
            lines = [[k, 0, 0, True, True, f"camelyon16_{split}_{k // 2}"] for k in range(count)]
            heads = ["", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"]
            csv.writer(file).writerows([heads, *lines])
    out = convert_pcam(source, tmp_path / "out")
    images, found = find_source(out / "images.safetensors"), rows(out / "labels.csv")
    assert len(images) == 9 and [images.names(k) for k in range(9)] == [row["file"] for row in found]
    np.testing.assert_array_equal(images.read(7), pixels["test"][1])
    assert found[7] == {"file": "test/000001", "label": "tumour", "split": "test", "patient": "camelyon16_test_0"}
    text, err = capsys.readouterr()
    assert "train: 4 images of 2 slides, 2 normal, 2 tumour" in text and "CC0" in err
    assert "it has 4 train images, not 262,144" in err
    name = "camelyonpatch_level_2_split_test_x.h5"
    with gzip.open(source / f"{name}.gz", "wb") as file:
        file.write((source / name).read_bytes())
    (source / name).unlink()
    again = convert_pcam(source, tmp_path / "new/again")
    assert (again / "images.safetensors").read_bytes() == (out / "images.safetensors").read_bytes()
    (source / f"{name}.gz").unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        convert_pcam(source, tmp_path / "no")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "new", "out"]


FOUND = ("No Finding", "Cardiomegaly|Effusion", "Effusion", "Pneumonia", "No Finding", "Hernia", "Effusion", "Mass")


def write_chestxray14(folder: Path) -> list[str]:
    """The official layout, with two images of each of four patients; names of the images."""
    names = [f"0000000{1 + k // 2}_00{k % 2}.png" for k in range(8)]
    for k, name in enumerate(names):
        image(folder / f"images_00{1 + k // 4}/images" / name, 20 * k, 1024)
    heads = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID"]
    lines = [[name, found, k % 2, 1 + k // 2] for k, (name, found) in enumerate(zip(names, FOUND, strict=True))]
    with (folder / "Data_Entry_2017.csv").open("w", newline="") as file:
        csv.writer(file).writerows([heads, *lines])
    (folder / "train_val_list.txt").write_text("\n".join(names[:6]))
    (folder / "test_list.txt").write_text("\n".join(names[6:]) + "\n")
    (folder / "chexnet").mkdir()
    for part, own in (("train", names[:4]), ("val", names[4:6]), ("test", names[6:])):
        (folder / f"chexnet/{part}_list.txt").write_text("".join(f"{name} 0 1 0\n" for name in own))
    return names


def save_as_excel_does(table: Path) -> None:
    with table.open(newline="") as file:
        lines = list(csv.reader(file))
    with table.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows(lines)


def test_chestxray14(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in/nih"
    names = write_chestxray14(source)
    listed = convert_chestxray14(tmp_path / "in", tmp_path / "out")
    found = rows(listed)
    assert [Path(row["file"]).name for row in found] == names and [row["label"] for row in found] == list(FOUND)
    assert [row["split"] for row in found] == ["train"] * 6 + ["test"] * 2
    assert [row["patient"] for row in found] == list("11223344")
    assert [k for k, value in found[1].items() if value == "1" and k != "patient"] == ["Cardiomegaly", "Effusion"]
    out, err = capsys.readouterr()
    assert "train: 6 images of 3 patients, 0 Atelectasis, 1 Cardiomegaly, 0 Consolidation" in out
    assert "published: 86,524 train, 25,596 test images; no restrictions on use, acknowledge the NIH" in err
    assert "it has 6 train images, not 86,524; 2 test images, not 25,596" in err and "warning" not in err
    save_as_excel_does(source / "Data_Entry_2017.csv")
    (source / "test_list.txt").write_text((source / "test_list.txt").read_text(), encoding="utf-8-sig")
    assert convert_chestxray14(source, tmp_path / "excel").read_text() == listed.read_text()
    capsys.readouterr()
    lists = convert_chestxray14(source, tmp_path / "chexnet", "chexnet", source / "chexnet")
    assert [row["split"] for row in rows(lists)] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert "in the split of CheXNet as published: 78,468 train, 11,219 val, 22,433 test" in capsys.readouterr().err
    pool = read_pool(
        ClassifyConfig(data=listed, labels=listed, out=tmp_path / "run", target="label", separator="|"),
        find_source(listed),
        listed,
        listed,
    )
    assert pool.targets.names == ("Cardiomegaly", "Effusion", "Hernia", "Mass", "Pneumonia")
    assert pool.targets.values[1].tolist() == [1, 1, 0, 0, 0] and pool.owners == list("11223344")
    below = names_below([row["file"] for row in found], listed)  # as probe and embed name them
    features = Features(below, np.zeros((8, 2), np.float32), {})
    probed = label(features, Labels(str(listed), target="Effusion"), listed)
    assert probed.classes.labels.tolist() == [0, 1, 1, 0, 0, 0, 1, 0]
    assert probed.test is not None and probed.test.sum() == 2 and probed.patient_names == list("1234")


def test_what_is_wrong_with_a_copy_of_chestxray14(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    names = write_chestxray14(source)
    shutil.copy(source / "images_001/images" / names[0], source / "images_002/images" / names[7])
    (source / "test_list.txt").write_text("\n".join((names[1], names[6], names[7])))
    (source / "train_val_list.txt").write_text("\n".join((names[0], *names[2:5])))
    convert_chestxray14(source, tmp_path / "out")
    err = capsys.readouterr().err
    assert f"1 group of identical images, 1 of them in several splits: {names[0]} = {names[7]}" in err
    assert "1 of 4 patients have images in several splits, which makes scores too high: 1 (test and train)" in err
    assert f"left out: 1 image of Data_Entry_2017.csv that no list names: {names[5]}" in err
    (source / "images_001/images" / names[2]).unlink()
    with pytest.raises(UserError, match=rf"lists 1 missing image: .*{names[2]}"):
        convert_chestxray14(source, tmp_path / "no")
    image(source / "images_002/images" / names[0], 0, 1024)
    with pytest.raises(UserError, match=rf"images of one name in several folders: .*{names[0]}"):
        convert_chestxray14(source, tmp_path / "no")
    (source / "test_list.txt").write_text(names[0])
    with pytest.raises(UserError, match=rf"images in two lists of .*: {names[0]} \(train and test\)"):
        convert_chestxray14(source, tmp_path / "no")
    with pytest.raises(UserError, match="name their folder: --lists"):
        convert_chestxray14(source, tmp_path / "no", "chexnet")


def test_chexpert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, name = tmp_path / "in/CheXpert-v1.0-small", "CheXpert-v1.0-small"
    paths = {"train": [f"train/patient0000{k // 2}/study1/view{1 + k % 2}_frontal.jpg" for k in range(4)]}
    paths["valid"] = ["valid/patient00009/study1/view1_lateral.jpg"]
    edema = iter(["1.0", "-1.0", "", "0.0", "1.0"])
    for split, own in paths.items():
        for k, path in enumerate(own):
            image(source / path, 30 * k + len(split), 32 + 8 * k)
        lines = [[f"{name}/{path}", "Female", next(edema), *[""] * 13] for path in own]
        heads = ["Path", "Sex", "Edema", *(label for label in chexpert.LABELS if label != "Edema")]
        with (source / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([heads, *lines])
    save_as_excel_does(source / "train.csv")
    expected = {"ignore": ["1", "", "0", "0", "1"], "zeros": list("10001"), "ones": list("11001")}
    for uncertain, values in expected.items():
        found = rows(convert_chexpert(tmp_path / "in", tmp_path / uncertain, uncertain))  # type: ignore[arg-type]
        assert [row["Edema"] for row in found] == values and {row["Fracture"] for row in found} == {"0"}
        assert [row["split"] for row in found] == ["train"] * 4 + ["val"]
        assert [row["patient"][-1] for row in found] == list("00119")
        assert ("label" in found[0]) == (uncertain != "ignore"), "an unknown label would be an absent one"
    out, err = capsys.readouterr()
    assert "train: 4 images of 2 patients, 0 Atelectasis" in out and "no redistribution" in err
    assert "it has 4 train images, not 223,414; 1 val images, not 234" in err and " px" not in err
    listed = tmp_path / "ignore/labels.csv"
    pool = read_pool(
        ClassifyConfig(data=listed, labels=listed, out=tmp_path / "run", targets=("Edema",)),
        find_source(listed),
        listed,
        listed,
    )
    np.testing.assert_array_equal(pool.targets.values[:, 0], [1, np.nan, 0, 0, 1])
    (source / paths["train"][3]).unlink()
    with pytest.raises(UserError, match=r"lists 1 missing image: .*patient00001/study1/view2_frontal"):
        convert_chexpert(source, tmp_path / "no")
    (source / "valid.csv").write_text((source / "valid.csv").read_text().replace("1.0,", "2.0,"))
    with pytest.raises(UserError, match=r"labels that are not 1, 0, -1 or empty: valid\.csv"):
        convert_chexpert(source, tmp_path / "no")
