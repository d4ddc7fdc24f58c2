"""Cityscapes in its published layout becomes images and maps of the training classes, which segment reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densepath.core.errors import UserError
from densepath.datasets.cityscapes import convert_cityscapes
from densepath.training.resolve import resolve
from densepath.transfer.segment.cohort import read_cases
from densepath.transfer.segment.config import SegmentConfig

# Value in *_labelIds.png -> training class, as the authors' list of labels has them, written out once more.
TRAINING = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
TRAINING |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
FRAMES = {
    "train": ("aachen/aachen_000000_000019", "bochum/bochum_000000_000313", "aachen/aachen_000001_000019"),
    "val": ("frankfurt/frankfurt_000000_000294",),
    "test": ("berlin/berlin_000000_000019",),
}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Every kind of file of leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, of 5 images."""
    root, rng = tmp_path / "in/cityscapes", np.random.default_rng(0)
    for split, frames in FRAMES.items():
        for frame in frames:
            image = root / f"leftImg8bit/{split}/{frame}_leftImg8bit.png"
            labels = root / f"gtFine/{split}/{frame}_gtFine_labelIds.png"
            for path in (image, labels):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)).save(image)
            values = rng.integers(0, 34, (32, 64), dtype=np.uint8) * np.uint8(split != "test")
            Image.fromarray(values).save(labels)
            for kind in ("color", "instanceIds"):
                Image.fromarray(values).save(labels.with_name(labels.name.replace("labelIds", kind)))
            labels.with_name(labels.name.replace("labelIds.png", "polygons.json")).write_text("{}")
    for name in ("README", "license.txt"):
        (root / name).write_text("")
    return root


def test_layout(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = convert_cityscapes(tmp_path / "in", tmp_path / "out")
    out, err = capsys.readouterr()
    assert "train: 3 images" in out and "test: 1 image" in out and "no pixel of" not in out
    assert "Cityscapes as published: 2,975 train, 500 test images" in err
    assert "it has 3 train images, not 2,975; 1 test images, not 500" in err
    assert sorted(p.name for p in data.glob("*/*")) == sorted(
        f"{frame.split('/')[1]}.png" for split in ("train", "val") for frame in FRAMES[split]
    )
    for split, frames in (("train", FRAMES["train"]), ("test", FRAMES["val"])):
        folder = {"train": "train", "test": "val"}[split]
        for frame in frames:
            name = frame.split("/")[1]
            original = published / f"leftImg8bit/{folder}/{frame}_leftImg8bit.png"
            assert (data / split / f"{name}.png").read_bytes() == original.read_bytes()
            values = np.asarray(Image.open(published / f"gtFine/{folder}/{frame}_gtFine_labelIds.png"))
            expected = [[TRAINING.get(value, 255) for value in row] for row in values.tolist()]
            assert np.asarray(Image.open(tmp_path / f"out/labels/{split}/{name}.png")).tolist() == expected


def test_segment_reads_it(published: Path, tmp_path: Path) -> None:
    data = convert_cityscapes(published, tmp_path / "out")
    given = {"data": str(data), "out": str(tmp_path / "run")}
    cases, _ = read_cases(resolve(SegmentConfig, "cityscapes_fcn", given, "segment"))
    assert sorted(cases.pool.splits) == ["test", "train", "train", "train"]
    legend = cases.truth.legend
    assert (legend.values, legend.background) == (tuple(range(19)), -1)
    assert dict(zip(legend.names, legend.values, strict=True))["bicycle"] == 18 and legend.names[0] == "road"
    ignored = np.asarray(Image.open(tmp_path / "out/labels/train/aachen_000000_000019.png")) == 255
    position = [Path(name).stem for name in cases.pool.names].index("aachen_000000_000019")
    assert (cases.truth.read(position) == 255).tolist() == ignored.tolist()


def test_wrong_copies_are_refused(published: Path, tmp_path: Path) -> None:
    def refused(text: str) -> None:
        with pytest.raises(UserError, match=text):
            convert_cityscapes(published, tmp_path / "no")
        assert not (tmp_path / "no").exists()

    labels = published / "gtFine/train/bochum/bochum_000000_000313_gtFine_labelIds.png"
    image = published / "leftImg8bit/train/bochum/bochum_000000_000313_leftImg8bit.png"
    kept, pixels = labels.read_bytes(), image.read_bytes()
    labels.unlink()
    refused("images without a file .*labelIds.*bochum_000000_000313")
    labels.write_bytes(kept)
    image.unlink()
    refused("label maps without an image.*bochum_000000_000313")
    Image.new("RGB", (64, 30)).save(image)
    refused("bochum.* has 64 x 32 px, but its image 64 x 30")
    image.write_bytes(pixels)
    labels.write_bytes(kept[:60])
    refused("bochum.*download it again")
    labels.write_bytes(kept)
    (published / "leftImg8bit/val").rename(published / "leftImg8bit/validation")
    refused("has no val images")
    with pytest.raises(UserError, match="has no leftImg8bit and gtFine, as Cityscapes is published"):
        convert_cityscapes(published / "gtFine", tmp_path / "no")
