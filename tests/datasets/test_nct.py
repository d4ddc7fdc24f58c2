"""The lists of NCT-CRC-HE-100K: usable for pre-training, random but repeatable."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image

from densepath.annotations.classes import read_classes
from densepath.core.errors import UserError
from densepath.datasets.nct import convert_nct
from densepath.datasets.published import NCT_CLASSES
from densepath.sources.open import open_images


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number, name in enumerate(NCT_CLASSES):
        folder = tmp_path / "in/NCT-CRC-HE-100K-NONORM" / name
        folder.mkdir(parents=True)
        for tile in range(5):
            Image.new("RGB", (224, 224), (20 * number, 40 * tile, 90)).save(folder / f"{name}-{tile}.tif")
    (tmp_path / "in/NCT-CRC-HE-100K-NONORM/notes").mkdir()
    return tmp_path / "in"


def rows(dest: Path, name: str) -> list[tuple[str, str]]:
    with (dest / f"{name}.csv").open() as lines:
        return [(row["file"], row["label"]) for row in csv.DictReader(lines)]


def test_the_lists_are_a_random_split_of_all_tiles(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = convert_nct(source, tmp_path / "out")
    train, rest = rows(dest, "train"), rows(dest, "rest")
    assert (len(train), len(rest)) == (36, 9) and len({*train, *rest}) == 45
    assert all(Path(file).parent.name == label for file, label in [*train, *rest])
    out, err = capsys.readouterr()
    assert out.startswith("train: 36 images, ") and "rest: 9 images" in out
    assert "NCT-CRC-HE-100K as published: 100,000 tissue images; CC BY 4.0" in err
    assert "differs from the published one: it has 45 tissue images, not 100,000" in err
    assert rows(convert_nct(source, tmp_path / "again"), "train") == train
    assert rows(convert_nct(source, tmp_path / "other", seed=1), "train") != train


def test_a_list_serves_as_data_and_as_labels(source: Path, tmp_path: Path) -> None:
    table = str(convert_nct(source, tmp_path / "out") / "train.csv")
    images = open_images(table, cache="none")
    classes = read_classes(images, table)
    assert len(images) == 36 and classes.names == tuple(sorted(NCT_CLASSES))
    for place in range(36):
        assert Path(images.names(place)).parent.name == classes.names[classes.labels[place]]


def test_what_differs_is_said_or_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = source / "NCT-CRC-HE-100K-NONORM"
    Image.new("RGB", (100, 90)).save(folder / "ADI/small.tif")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (224, 224)).save(folder / "TUM/turned.png", exif=exif)
    with pytest.raises(UserError, match=r"orientation tag: turned\.png \(orientation 6\)"):
        convert_nct(folder, tmp_path / "no")
    dest = convert_nct(folder, tmp_path / "out", exclude=["turned*"])
    err = capsys.readouterr().err
    assert "1 of 46 tiles are not 224 x 224 px: small.tif (100 x 90 px)" in err and "1 of 47 images are left out" in err
    assert len(rows(dest, "train")) == round(0.8 * 46)
    assert len(rows(convert_nct(folder, tmp_path / "turned", orientation="stored"), "rest")) == 9
    (folder / "ADI/small.tif").write_bytes(b"II*\0")
    with pytest.raises(UserError, match=r"small\.tif: .*or leave it out with --exclude"):
        convert_nct(folder, tmp_path / "no", orientation="stored")
    shutil.rmtree(folder / "MUS")
    for given, message in (
        ({}, "has no folders ADI, BACK"),
        ({"source": folder / "ADI/ADI-0.tif"}, "is not a folder"),
        ({"share": 1.0}, r"share is 1\.0"),
    ):
        with pytest.raises(UserError, match=message):
            convert_nct(**{"source": source, "dest": tmp_path / "no", **given})  # type: ignore[arg-type]
    assert not (tmp_path / "no").exists()
