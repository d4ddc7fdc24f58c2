"""MHIST, Chaoyang and PatchCamelyon as published become lists, and what differs is reported."""

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
from densepath.datasets.chaoyang import convert_chaoyang
from densepath.datasets.mhist import convert_mhist
from densepath.datasets.pcam import convert_pcam
from densepath.sources.open import find_source


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
    assert "1 groups of identical images, 1 of them in training and test: MHIST_0.png = MHIST_5.png" in err
    assert "1 of 6 images are not 224 x 224 px: MHIST_1.png (100 x 100 px)" in err
    (source / "images" / names[2]).unlink()
    with pytest.raises(UserError, match=r"1 images that .* lists do not exist: .*MHIST_2\.png"):
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
    with pytest.raises(UserError, match=r"1 images that .* lists do not exist: .*1\.JPG"):
        convert_chaoyang(source, tmp_path / "no")
    (source / "test.json").write_text(json.dumps([{"name": "test/0.JPG", "label": 4}]))
    with pytest.raises(UserError, match="without a name and a label from 0 to 3"):
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
    again = convert_pcam(source, tmp_path / "again")
    assert (again / "images.safetensors").read_bytes() == (out / "images.safetensors").read_bytes()
    (source / f"{name}.gz").unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        convert_pcam(source, tmp_path / "no")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "in", "out"]
