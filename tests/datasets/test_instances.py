"""CRAG and plain pairs of images and label maps give the instances of their maps, or are refused by name."""

from __future__ import annotations

import re
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image, ImageOps

from densepath.annotations.coco import open_split
from densepath.annotations.labels import label_size, read_labels
from densepath.core.errors import UserError
from densepath.datasets.crag import convert_crag
from densepath.datasets.instances import convert_instances
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_image

SIZE = (18, 25)
Array = np.ndarray[Any, Any]


def pixels(number: int) -> Array:
    return np.random.default_rng(number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def labels(number: int) -> Array:
    maps = np.zeros(SIZE, np.uint8)
    maps[2:7, 3:9] = 1
    maps[2:7, 9:12] = 2  # touches the first
    maps[12:, 10 + number :] = 7
    return maps


def save_png(path: Path, array: Array) -> None:
    Image.fromarray(array).save(path.with_suffix(".png"))


def save_wide_png(path: Path, array: Array) -> None:
    Image.fromarray(array.astype(np.uint16) * 300).save(path.with_suffix(".png"))


def save_tiff(path: Path, array: Array) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), array.astype(np.uint16) * 300, compression="zlib")


def save_numpy(path: Path, array: Array) -> None:
    np.save(path.with_suffix(".npy"), array.astype(np.int64))


def save_matlab(path: Path, array: Array) -> None:
    """As in CoNSeP and CRAG: several variables, and the map as floating-point numbers."""
    other = {"inst_type": np.ones((3, 1)), "type_map": array, "note": "nuclei"}
    scipy.io.savemat(path.with_suffix(".mat"), {"inst_map": array.astype(float), **other}, do_compression=True)


WRITERS = [save_png, save_wide_png, save_tiff, save_numpy, save_matlab]
Writer = Callable[[Path, Array], None]


def write(
    images: Path, maps: Path, numbers: range, save: Writer = save_png, name: str = "{}", suffix: str = ""
) -> None:
    for folder in (images, maps):
        folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(pixels(number)).save(images / f"{name.format(number)}.png")
        save(maps / f"{name.format(number)}{suffix}", labels(number))


def check(dest: Path, splits: dict[str, list[str]], category: str) -> None:
    for split, names in splits.items():
        data = open_split(dest, split)  # type: ignore[arg-type]
        assert [Path(sample["name"]).stem for sample in data] == names
        assert [entry["name"] for entry in data.coco_ground_truth()["categories"]] == [category]
        for name, sample in zip(names, data, strict=True):
            number = int(name.rpartition("_")[2])
            np.testing.assert_array_equal(sample["masks"], labels(number) == np.array([1, 2, 7])[:, None, None])
            np.testing.assert_array_equal(sample["image"], pixels(number))


@pytest.mark.parametrize("save", WRITERS)
def test_label_maps_of_every_format_give_their_objects(save: Writer, tmp_path: Path) -> None:
    for split, numbers in (("train", range(9, 12)), ("test", range(2))):
        write(tmp_path / "in" / split / "images", tmp_path / "in" / split / "labels", numbers, save)
    dest = convert_instances(tmp_path / "in", tmp_path / "out", category="nucleus")
    check(dest, {"train": ["9", "10", "11"], "test": ["0", "1"]}, "nucleus")


def test_splits_may_be_below_images_and_labels_with_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, numbers in (("train", range(3)), ("test", range(3, 5))):
        write(tmp_path / "in" / "Tissue" / split, tmp_path / "in" / "maps" / split, numbers, suffix="_mask")
    convert_instances(tmp_path / "in", tmp_path / "out", images="Tissue", labels="maps", label_suffix="_mask")
    check(tmp_path / "out", {"train": ["0", "1", "2"], "test": ["3", "4"]}, "object")
    assert capsys.readouterr().out == "train: 3 images, 9 objects\ntest: 2 images, 6 objects\n"


def stems(dest: Path, split: str) -> list[str]:
    return sorted(path.stem for path in (dest / split).iterdir())


def test_label_maps_may_be_in_the_folder_of_their_images(tmp_path: Path) -> None:
    write(tmp_path / "in", tmp_path / "in", range(5), name="tile_{}", suffix="_mask")
    dest = convert_instances(tmp_path / "in", tmp_path / "out", ".", ".", "_mask", test_share=0.4)
    assert len(stems(dest, "train")) == 3 and len(stems(dest, "test")) == 2
    check(dest, {split: stems(dest, split) for split in ("train", "test")}, "object")


def test_all_images_of_a_patient_are_in_the_same_split(tmp_path: Path) -> None:
    for patient in range(10):
        write(tmp_path / "in" / "images", tmp_path / "in" / "labels", range(3), name=f"p{patient}_{{}}")
    given = {"test_share": 0.3, "patient_regex": r"^p\d+"}
    dest = convert_instances(tmp_path / "in", tmp_path / "out", **given)  # type: ignore[arg-type]
    train, test = ({stem.split("_")[0] for stem in stems(dest, split)} for split in ("train", "test"))
    assert len(train) == 7 and len(test) == 3 and not train & test
    other = convert_instances(tmp_path / "in", tmp_path / "other", seed=1, **given)  # type: ignore[arg-type]
    assert stems(other, "test") != stems(dest, "test")
    single = convert_instances(tmp_path / "in", tmp_path / "alone", test_share=0.3)
    assert len({stem.split("_")[0] for stem in stems(single, "test")}) > 3


def test_the_first_group_of_the_expression_is_the_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for patient in range(4):
        write(tmp_path / "in" / "images", tmp_path / "in" / "labels", range(3), name=f"p{patient}_{{}}")
    found = []
    for place, regex in enumerate((r"^(p\d+)_\d", r"^(?:x|(p\d+))_\d", r"^p\d+")):
        dest = convert_instances(tmp_path / "in", tmp_path / str(place), test_share=0.5, patient_regex=regex)
        found.append(stems(dest, "train"))
        text = "train: 6 images of 2 patients, 18 objects\ntest: 6 images of 2 patients, 18 objects\n"
        assert capsys.readouterr() == (text, "")
    assert found[0] == found[1] == found[2]
    convert_instances(tmp_path / "in", tmp_path / "own", test_share=0.5, patient_regex=r"^p\d+_\d")
    assert "finds another patient in each image" in capsys.readouterr().err
    with pytest.raises(UserError, match="does not match the name p1_0"):
        convert_instances(tmp_path / "in", tmp_path / "no", test_share=0.5, patient_regex=r"p1|(p\d+)")


def test_nested_folders_keep_images_of_one_name_apart(tmp_path: Path) -> None:
    for number, folder in enumerate(("A", "B", "B/c")):
        write(tmp_path / "in/images" / folder, tmp_path / "in/labels" / folder, range(number, number + 1))
        (tmp_path / "in/images" / folder / f"{number}.png").rename(tmp_path / "in/images" / folder / "tile.png")
        (tmp_path / "in/labels" / folder / f"{number}.png").rename(tmp_path / "in/labels" / folder / "tile.png")
    dest = convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.3)
    samples = {sample["name"]: sample for split in ("train", "test") for sample in open_split(dest, split)}  # type: ignore[arg-type]
    assert sorted(samples) == ["A/tile.png", "B/c/tile.png", "B/tile.png"]
    for number, name in enumerate(("A/tile.png", "B/tile.png", "B/c/tile.png")):
        np.testing.assert_array_equal(samples[name]["image"], pixels(number))
        np.testing.assert_array_equal(samples[name]["masks"], labels(number) == np.array([1, 2, 7])[:, None, None])
    (tmp_path / "in/labels/B/c/tile.png").unlink()
    with pytest.raises(UserError, match=r"images without a label map: B/c/tile;"):
        convert_instances(tmp_path / "in", tmp_path / "other", test_share=0.3)


def test_names_are_paired_across_unicode_normalizations(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "drüse_{}") for form in ("NFC", "NFD"))
    write(tmp_path / "in/images", tmp_path / "in/other", range(2), name=composed)
    write(tmp_path / "in/different", tmp_path / "in/labels", range(2), name=decomposed)
    dest = convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5)
    assert len(open_split(dest, "train")) == len(open_split(dest, "test")) == 1


STORED: dict[str, dict[str, Any]] = {
    "white is zero": {"photometric": "miniswhite"},
    "white is zero, deflated": {"photometric": "miniswhite", "compression": "zlib"},
    "turned": {"extratags": [(274, 3, 1, 3, True)]},
    "turned by a quarter": {"extratags": [(274, 3, 1, 6, True)], "compression": "zlib"},
    "white is zero and turned": {"photometric": "miniswhite", "extratags": [(274, 3, 1, 8, True)]},
    "big-endian": {"byteorder": ">"},
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("kind", STORED)
def test_stored_numbers_of_a_tiff_count(kind: str, dtype: Any, tmp_path: Path) -> None:
    options = {"photometric": "minisblack"} | STORED[kind]
    tifffile.imwrite(tmp_path / "a.tif", labels(0).astype(dtype), **options)
    assert label_size(tmp_path / "a.tif") == SIZE
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), labels(0))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("tag", [1, 3, 6, 8])
def test_stored_numbers_of_an_lzw_tiff_count(tag: int, inverted: bool, tmp_path: Path) -> None:
    """tifffile does not read these without another package, and Pillow turns and inverts them."""
    Image.fromarray(labels(0)).save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo={274: tag})
    data = bytearray((tmp_path / "a.tif").read_bytes())
    entry = data.index(struct.pack("<HHI", 262, 3, 1))
    data[entry + 8] = 0 if inverted else 1
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), labels(0))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_stored_numbers_of_few_bits_count(bits: int, inverted: bool, tmp_path: Path) -> None:
    """As tools write that make files small: Pillow stretches them to 8 bits."""
    stored = np.arange(16, dtype=np.uint8).reshape(2, 8) % 2**bits
    digits = np.unpackbits(stored[..., None], axis=2)[..., 8 - bits :].reshape(2, -1)
    packed = np.packbits(digits, axis=1)
    Image.fromarray(packed).save(tmp_path / "a.tif", compression="tiff_lzw")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        for tag, value in ((256, 8), (258, bits), (262, 0 if inverted else 1)):
            tiff.pages.first.tags[tag].overwrite(value)  # type: ignore[union-attr]
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), stored)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    png = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        png += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    (tmp_path / "a.png").write_bytes(png)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), stored)


def test_signed_numbers_keep_their_sign(tmp_path: Path) -> None:
    stored = np.array([[0, 3], [-1, -128]], np.int8)
    Image.fromarray(stored.view(np.uint8)).save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo={339: 2})
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), stored)


def test_a_label_map_has_one_page(tmp_path: Path) -> None:
    pages = np.stack([labels(0) == number for number in (1, 2, 7)]).astype(np.uint8)
    for name, options in (("pages", {}), ("imagej", {"imagej": True})):
        write(tmp_path / name / "images", tmp_path / name / "labels", range(2))
        tifffile.imwrite(tmp_path / name / "labels" / "1.tif", pages, photometric="minisblack", **options)
        (tmp_path / name / "labels" / "1.png").unlink()
        with pytest.raises(UserError, match=r"1\.tif has 3 pages, not one label map"):
            convert_instances(tmp_path / name, tmp_path / "out", test_share=0.5)


def save_turned(path: Path, array: Array, tag: int) -> None:
    exif = Image.Exif()
    exif[274] = tag
    Image.fromarray(array).save(path, exif=exif)


@pytest.mark.parametrize("tag", [3, 6])
def test_orientation_tags_turn_images_and_label_maps_alike(tag: int, tmp_path: Path) -> None:
    write(tmp_path / "in" / "images", tmp_path / "in" / "labels", range(2))
    save_turned(tmp_path / "in/images/1.png", pixels(1), tag)
    with pytest.raises(UserError, match=rf"different orientation tags: 1\.png \({tag}\) and 1\.png \(1\); save both"):
        convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5)
    stored = convert_instances(tmp_path / "in", tmp_path / "stored", test_share=0.5, orientation="stored")
    check(stored, {split: stems(stored, split) for split in ("train", "test")}, "object")
    save_turned(tmp_path / "in/labels/1.png", labels(1), tag)
    alike = convert_instances(tmp_path / "in", tmp_path / "alike", test_share=0.5)
    check(alike, {split: stems(alike, split) for split in ("train", "test")}, "object")
    seen = ImageOps.exif_transpose(Image.open(tmp_path / "in/labels/1.png"))
    Image.fromarray(np.asarray(seen)).save(tmp_path / "in/labels/1.png")
    viewed = convert_instances(tmp_path / "in", tmp_path / "viewed", test_share=0.5, orientation="viewed")
    samples = [sample for split in ("train", "test") for sample in open_split(viewed, split)]  # type: ignore[arg-type]
    (sample,) = [sample for sample in samples if sample["name"] == "1.png"]
    image = ImageOps.exif_transpose(Image.open(tmp_path / "in/images/1.png"))
    np.testing.assert_array_equal(sample["image"], np.asarray(image))
    np.testing.assert_array_equal(sample["masks"], np.asarray(seen) == np.array([1, 2, 7])[:, None, None])


@pytest.mark.parametrize(
    ("name", "why"), [("a.jpg", "is a JPEG, which changes numbers"), ("A.png", "differs in capital and small letters")]
)
def test_a_label_map_that_is_not_read_is_named(name: str, why: str, tmp_path: Path) -> None:
    write(tmp_path / "in" / "images", tmp_path / "in" / "labels", range(1), name="a")
    (tmp_path / "in" / "labels" / "a.png").rename(tmp_path / "in" / "labels" / name)
    with pytest.raises(UserError, match=f"images without a label map: a; .*{name} {why}"):
        convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5)


def test_images_without_label_maps_are_left_out_on_request(tmp_path: Path) -> None:
    write(tmp_path / "in" / "images", tmp_path / "in" / "labels", range(4))
    (tmp_path / "in" / "labels" / "2.png").unlink()
    with pytest.raises(UserError, match=r"images without a label map: 2;"):
        convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5)
    dest = convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5, labelled_only=True)
    assert sorted(stems(dest, "train") + stems(dest, "test")) == ["0", "1", "3"]


def crag(folder: Path, save: Writer = save_png, test: str = "valid", annotation: str = "Annotation") -> Path:
    for split, name, numbers in (("train", "train_{}", range(8, 11)), (test, "test_{}", range(1, 3))):
        write(folder / split / "Images", folder / split / annotation, numbers, save, name)
        (folder / split / "Overlay").mkdir()
    return folder


CRAG = {"train": ["train_8", "train_9", "train_10"], "test": ["test_1", "test_2"]}


@pytest.mark.parametrize("save", [save_png, save_matlab])
@pytest.mark.parametrize(("test", "annotation"), [("valid", "Annotation"), ("test", "Annotations")])
@pytest.mark.parametrize("above", ["", "CRAG"])
def test_crag_as_published(
    above: str, test: str, annotation: str, save: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crag(tmp_path / "in" / above, save, test, annotation)
    check(convert_crag(tmp_path / "in", tmp_path / "out"), CRAG, "gland")
    assert capsys.readouterr().out == "train: 3 images, 9 glands\ntest: 2 images, 6 glands\n"


def test_crag_in_small_letters(tmp_path: Path) -> None:
    crag(tmp_path / "in")
    for split in ("train", "valid"):
        for name in ("Images", "Annotation"):
            (tmp_path / "in" / split / name).rename(tmp_path / "in" / split / name.lower())
    (tmp_path / "in" / "valid").rename(tmp_path / "in" / "Test")
    check(convert_crag(tmp_path / "in", tmp_path / "out"), CRAG, "gland")
    assert open_split(tmp_path / "out", "test").mpp(0) == 0.55


def test_crag_with_annotations_in_both_formats_counts_them_once(tmp_path: Path) -> None:
    crag(tmp_path / "in")
    for path in (tmp_path / "in").glob("*/Annotation/*.png"):
        save_matlab(path, labels(0))
    check(convert_crag(tmp_path / "in", tmp_path / "out"), CRAG, "gland")


def test_crag_without_excluded_images_and_its_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crag(tmp_path / "in")
    convert_crag(tmp_path / "in", tmp_path / "out", exclude=["*_9.png"])
    check(tmp_path / "out", {"train": ["train_8", "train_10"], "test": CRAG["test"]}, "gland")
    err = capsys.readouterr().err
    assert "1 of 5 images are left out" in err and "publications must cite the MILD-Net paper" in err
    assert "it has 2 train images, not 173; 2 test images, not 40" in err


def test_validation_images_and_patients_of_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in/images", tmp_path / "in/labels", range(8))
    rows = "".join(f"{number}.png,P{number // 2}\n" for number in range(8))
    (tmp_path / "in/manifest.csv").write_text(f"file,patient\n{rows}")
    dest = convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.25, val_share=0.25, exclude=["7.*"])
    assert sorted(path.name for path in dest.iterdir()) == ["annotations", "manifest.csv", "test", "train", "val"]
    parts = [{int(stem) // 2 for stem in stems(dest, split)} for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [2, 1, 1] and sum(map(len, parts)) == len(set().union(*parts))
    assert "train: " in (out := capsys.readouterr().out) and out.count(" of 1 patient") == 2
    for split in ("train", "val", "test"):
        for name in stems(dest, split):
            for kind in ("images", "labels"):
                folder = tmp_path / "split" / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.png").write_bytes((tmp_path / "in" / kind / f"{name}.png").read_bytes())
    again = convert_instances(tmp_path / "split", tmp_path / "again")
    assert [stems(again, split) for split in ("train", "val", "test")] == [
        stems(dest, split) for split in ("train", "val", "test")
    ]


def test_shared_patients_are_those_that_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of both splits have one name."""
    for split in ("train", "test"):
        write(tmp_path / "in/images" / split, tmp_path / "in/labels" / split, range(3))
    (tmp_path / "in/manifest.csv").write_text("file,patient\nimages/train/0.png,P0\nimages/test/0.png,P9\n")
    convert_instances(tmp_path / "in", tmp_path / "out")
    assert "in several splits" not in capsys.readouterr().err
    (tmp_path / "in/manifest.csv").write_text("file,patient\nimages/train/0.png,P0\nimages/test/1.png,P0\n")
    convert_instances(tmp_path / "in", tmp_path / "again")
    assert "1 of 1 patient has images in several splits, which makes" in capsys.readouterr().err


def test_excluded_images_may_be_all_of_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val", "test"):
        write(tmp_path / "in/images" / split, tmp_path / "in/labels" / split, range(2), name=f"{split}{{}}")
    dest = convert_instances(tmp_path / "in", tmp_path / "out", exclude=["val*"])
    assert not (dest / "val").exists() and "2 of 6 images are left out by --exclude" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--exclude leaves out all images of .*in; narrow it"):
        convert_instances(tmp_path / "in", tmp_path / "no", exclude=["*"])


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("sep=;\nFile;PatientID\n0.png;P\n1.png;P\n2.png;Q\n3.png;Q\n", ""),
        ("file,patient\n./0.png,P\n.\\1.png,P\n2.png,Q\n", "warning: 1 image has no known patient, and each .*: 3\n"),
        ("file,person\n0.png,P\n", "manifest.csv has no column of patients, so .* patient .or patient_id, patientid"),
        ("picture,patient\n0.png,P\n", "manifest.csv has no column of files, so .* file .or file_name, filename"),
    ],
)
def test_what_a_manifest_lacks_is_said_once(
    manifest: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in/images", tmp_path / "in/labels", range(4))
    (tmp_path / "in/manifest.csv").write_text(manifest)
    dest = convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5)
    err = capsys.readouterr().err
    assert len(re.findall(message, err)) == 1 if message else "manifest" not in err
    if not message:
        assert stems(dest, "test") in (["0", "1"], ["2", "3"])


def test_a_manifest_that_gives_a_file_two_patients_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in/images", tmp_path / "in/labels", range(4))
    (tmp_path / "in/manifest.csv").write_text("file,patient\n0.png,P\n./0.png,Q\n")
    with pytest.raises(UserError, match=r"manifest\.csv gives 0\.png two patients, P and Q; keep one"):
        convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5)
    (tmp_path / "in/manifest.csv").write_text("file,patient\n0.png,P\nother.png,P\nother.png,Q\n")  # of other images
    convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5)


@pytest.mark.parametrize("kind", ["grey", "color"])
def test_turned_images_keep_their_bits(kind: str, tmp_path: Path) -> None:
    write(tmp_path / "in/images", tmp_path / "in/labels", range(2))
    wide = np.random.default_rng(0).integers(0, 2**16, SIZE if kind == "grey" else (*SIZE, 3)).astype(np.uint16)
    photometric = "minisblack" if kind == "grey" else "rgb"
    (tmp_path / "in/images/1.png").unlink()
    tifffile.imwrite(tmp_path / "in/images/1.tif", wide, photometric=photometric, extratags=[(274, "H", 1, 3, True)])
    dest = convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5, orientation="stored")
    (written,) = [path for split in ("train", "test") for path in (dest / split).glob("1.*")]
    read = read_image(written, channels=1 if kind == "grey" else 3, dtype=np.uint16)
    np.testing.assert_array_equal(read.squeeze(), wide)


def drop_map(source: Path) -> None:
    (source / "valid" / "Annotation" / "test_2.png").unlink()


def drop_image(source: Path) -> None:
    (source / "train" / "Images" / "train_9.png").unlink()


def resize_map(source: Path) -> None:
    save_png(source / "train" / "Annotation" / "train_10", labels(1)[:, :-1])


def truncate_map(source: Path) -> None:
    path = source / "train" / "Annotation" / "train_10.png"
    path.write_bytes(path.read_bytes()[:-30])


def color_map(source: Path) -> None:
    save_png(source / "train" / "Annotation" / "train_10", pixels(1))


def twice(source: Path) -> None:
    Image.fromarray(pixels(8)).save(source / "train" / "Images" / "train_8.bmp")


def other_split(source: Path) -> None:
    (source / "valid").rename(source / "validation")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_map, r"images without a label map: test_2; give each image one label map"),
        (drop_image, "label maps without an image: train_9;"),
        (resize_map, r"different sizes: train_10.png \(25 x 18 px\) and train_10.png \(24 x 18 px\)"),
        (truncate_map, "train_10.png: cannot be decoded"),
        (color_map, "train_10.png is a color image, not a label map"),
        (twice, "several images with one name: train_8; keep one of each"),
        (other_split, "does not hold train/Images with train/Annotation and valid/Images"),
    ],
)
def test_other_folders_than_crag_are_named_and_leave_no_files(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    spoil(crag(tmp_path / "in"))
    with pytest.raises(UserError, match=message) as error:
        convert_crag(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"holds neither train/images with train/labels nor images/train with labels/train; name them"),
        ({"images": "Images", "test_share": 0.5}, "there is no folder .*Images; name it with --images"),
        ({"test_share": 0.0}, "--test_share is 0.0; give a number between 0 and 1"),
        ({"test_share": 1.5}, "--test_share is 1.5; give a number between 0 and 1"),
        ({"test_share": float("nan")}, "--test_share is nan; give a number between 0 and 1"),
        ({"test_share": 0.5, "patient_regex": "("}, r"--patient_regex '\(' is not a regular expression"),
        ({"test_share": 0.5, "patient_regex": "slide"}, "--patient_regex 'slide' does not match the name 0; it must"),
        ({"test_share": 0.5, "patient_regex": "^"}, r"--patient_regex '\^' does not match the name 0"),
        ({"test_share": 0.5, "label_suffix": "_mask"}, r"images without a label map \*_mask: 0, 1, 2;"),
    ],
)
def test_options_that_do_not_fit_the_folder_are_named(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "in" / "images", tmp_path / "in" / "labels", range(3))
    with pytest.raises(UserError, match=message) as error:
        convert_instances(tmp_path / "in", tmp_path / "out", **given)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_source_that_is_not_a_folder_is_named(tmp_path: Path) -> None:
    for convert in (convert_crag, convert_instances):
        with pytest.raises(UserError, match="nowhere is not a folder"):
            convert(tmp_path / "nowhere", tmp_path / "out")  # type: ignore[operator]


class Bomb:
    """Unpickling this writes a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("owned"),)


ARRAYS: dict[str, tuple[Array, str]] = {
    "objects": (np.array([[Bomb()]], object), "is not an array of numbers"),
    "fractions": (np.full(SIZE, 0.5), "holds fractions"),
    "what is no number": (np.full(SIZE, np.nan), "holds fractions"),
    "numbers beyond 31 bits": (np.full(SIZE, 2**32 + 1), "numbers beyond"),
    "texts": (np.full(SIZE, "a"), "instead of numbers"),
    "three axes": (np.zeros((*SIZE, 3), np.uint8), "array of 3 axes, not a label map"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_not_label_maps_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    array, message = ARRAYS[kind]
    write(Path("in/images"), Path("in/labels"), range(2), save_numpy)
    np.save("in/labels/1.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=message) as error:
        convert_instances("in", "out", test_share=0.5)
    assert "1.npy" in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_array_whose_header_is_damaged_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", labels(0))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes().replace(b"}", b"(", 1))
    for read in (read_labels, label_size):
        with pytest.raises(CorruptImage, match=r"a\.npy: is not an array of numbers"):
            read(tmp_path / "a.npy")


MATLAB: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "two maps": ({"a": labels(0), "b": labels(0)}, r"holds 2 matrices \(a, b\)"),
    "no map": ({"a": "text", "b": 7.0, "c": {"inst_map": labels(0)}}, r"holds 0 matrices \(none of numbers\)"),
    "objects": ({"inst_map": np.array([[labels(0), 1], [2, 3]], object)}, "holds 0 matrices"),
    "version 7.3": (b"MATLAB 7.3 MAT-file" + b" " * 105 + b"\0\2IM" + bytes(400), "format 7.3; save it with -v7"),
    "something else": (b"no MATLAB file", "is not a MATLAB file"),
    "nothing": (b"", "is not a MATLAB file"),
}


@pytest.mark.parametrize("kind", MATLAB)
def test_matlab_files_without_one_map_are_refused(kind: str, tmp_path: Path) -> None:
    content, message = MATLAB[kind]
    path = tmp_path / "1.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        scipy.io.savemat(path, content)
    with pytest.raises(Exception, match=message) as error:
        label_size(path)
    assert "1.mat" in str(error.value)


def test_a_truncated_matlab_file_is_corrupt(tmp_path: Path) -> None:
    save_matlab(tmp_path / "1.mat", labels(0))
    whole = (tmp_path / "1.mat").read_bytes()
    for share in (0.1, 0.3, 0.6):
        write(tmp_path / "in" / "images", tmp_path / "in" / "labels", range(1, 3), save_matlab)
        (tmp_path / "in" / "labels" / "1.mat").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=r"1\.mat") as error:
            convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5)
        assert "\n" not in str(error.value)
    np.testing.assert_array_equal(read_labels(tmp_path / "1.mat"), labels(0))


def test_a_matlab_file_of_another_size_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    write(tmp_path / "in" / "images", tmp_path / "in" / "labels", range(2), save_matlab)
    save_matlab(tmp_path / "in" / "labels" / "1", labels(1)[1:])
    monkeypatch.setattr(scipy.io, "loadmat", load)
    with pytest.raises(UserError, match=r"1\.png \(25 x 18 px\) and 1\.mat \(25 x 17 px\)"):
        convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5)


def matlab_file(side: int, numbers: bytes, claims: int | None = None) -> bytes:
    """A compressed map of side x side numbers by its head, and of the bytes that follow."""

    def element(kind: int, data: bytes, length: int | None = None) -> bytes:
        return struct.pack("<II", kind, len(data) if length is None else length) + data + bytes(-len(data) % 8)

    head = element(6, struct.pack("<II", 6, 0)) + element(5, struct.pack("<ii", side, side))
    whole = element(14, head + element(1, b"inst_map") + element(9, numbers, claims))
    return b"MATLAB".ljust(124) + b"\0\1IM" + element(15, zlib.compress(whole)).rstrip(b"\0")


def test_a_map_of_absurd_size_is_refused_by_its_header(tmp_path: Path, bounded_memory: Callable[..., Any]) -> None:
    path = tmp_path / "huge.mat"
    path.write_bytes(matlab_file(16_000, bytes(32)))
    for read in (label_size, read_labels):
        with bounded_memory(20), pytest.raises(CorruptImage, match="16000 x 16000 px are more than"):
            read(path)


def test_a_png_map_of_absurd_size_is_refused_by_its_header(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    for read in (label_size, read_labels):
        with pytest.raises(CorruptImage, match="its pixels are more than 89,478,485"):
            read(tmp_path / "a.png")


def test_a_map_with_more_numbers_than_its_shape_takes_no_memory(
    tmp_path: Path, bounded_memory: Callable[..., Any]
) -> None:
    path = tmp_path / "long.mat"
    path.write_bytes(matlab_file(4, np.arange(16.0).tobytes()))
    np.testing.assert_array_equal(read_labels(path), np.arange(16).reshape(4, 4).T)
    contents = {"bytes": matlab_file(4, bytes(2**28)), "claim": matlab_file(4, bytes(128), 2**31)}
    for content in contents.values():
        path.write_bytes(content)
        with (
            bounded_memory(40),
            pytest.raises(CorruptImage, match=r"holds more numbers than its shape|cannot be decoded"),
        ):
            read_labels(path)


def test_classes_in_matlab_files_are_not_dropped_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in" / "images", tmp_path / "in" / "labels", [0, 1], save_matlab)
    path = tmp_path / "in" / "labels" / "0.mat"
    scipy.io.savemat(path, {"inst_map": labels(0).astype(float), "type_map": labels(0).astype(float)})
    convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5)
    assert "type_map of" in capsys.readouterr().err


def test_uncompressed_and_old_matlab_files_are_read(tmp_path: Path) -> None:
    for number, options in enumerate([{"format": "4"}, {"do_compression": False}, {"do_compression": True}]):
        path = tmp_path / f"{number}.mat"
        scipy.io.savemat(path, {"note": np.ones((1, 3)), "inst_map": labels(0), "other": np.ones(2)}, **options)
        assert label_size(path) == SIZE
        np.testing.assert_array_equal(read_labels(path), labels(0))


@pytest.mark.parametrize(("number", "says"), [(7, False), (255, True)])
def test_masks_of_a_class_are_reported(
    number: int, says: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would make one object of all those of an image."""
    for place in range(2):
        for folder, array in (("images", pixels(place)), ("labels", labels(place))):
            (tmp_path / "source" / folder).mkdir(parents=True, exist_ok=True)
            array = (array > 0).astype(np.uint8) * number if folder == "labels" and says else array
            save_png(tmp_path / "source" / folder / str(place), array)
    convert_instances(tmp_path / "source", tmp_path / "dest", test_share=0.5)
    assert ("2 separate regions of the number 255" in capsys.readouterr().err) is says


def test_data_sets_within_the_source_or_without_an_object_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in/images", tmp_path / "in/labels", range(4))
    with pytest.raises(UserError, match=r"out lies in .*; use another path"):
        convert_instances(tmp_path / "in", tmp_path / "in/images/out", test_share=0.5)
    for path in (tmp_path / "in/labels").iterdir():
        save_png(path, np.zeros(SIZE, np.uint8))
    with pytest.raises(UserError, match=r"none of 4 images has an object, and .*out was not written"):
        convert_instances(tmp_path / "in", tmp_path / "out", test_share=0.5)
    assert not (tmp_path / "out").exists()


def test_images_beside_many_label_maps_are_told_from_them_by_one_look_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 10,000 images in one folder with their label maps that took a minute."""
    (data := tmp_path / "data").mkdir()
    for number in range(40):
        for ending in ("", "_mask"):
            (data / f"{number}{ending}.png").write_bytes(b"")
    hashed: list[Path] = []
    known = PurePath.__hash__
    monkeypatch.setattr(PurePath, "__hash__", lambda path: hashed.append(path) or known(path))
    with pytest.raises(UserError, match=r"0\.png: .*; replace the file"):
        convert_instances(data, tmp_path / "out", images=".", labels=".", label_suffix="_mask", test_share=0.5)
    assert len(hashed) < 20 * 40
