"""Both layouts of GlaS give the same instances; mismatches are named and leave no files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densepath.annotations.coco import open_split
from densepath.core.errors import UserError
from densepath.datasets.glas import convert_glas

NAMES = ("train_1", "train_2", "train_10", "testA_1", "testB_3")
SIZE = (18, 25)


def pixels(name: str) -> np.ndarray:
    return np.random.default_rng(NAMES.index(name)).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def labels(name: str) -> np.ndarray:
    maps = np.zeros(SIZE, np.uint8)
    maps[2:7, 3:9] = 1
    maps[2:7, 9:12] = 2  # touches the first
    maps[12:, 10 + NAMES.index(name) :] = 7
    return maps


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    """The published layout."""
    folder = tmp_path / "authors" / "Warwick QU Dataset"
    folder.mkdir(parents=True)
    for name in NAMES:
        Image.fromarray(pixels(name)).save(folder / f"{name}.bmp")
        mask = Image.fromarray(labels(name))
        if name == "train_2":  # labels as the indices of a palette
            mask.putpalette([level for color in range(256) for level in (color, 0, 255 - color)])
        mask.save(folder / f"{name}_anno.bmp")
    (folder / "Grade.csv").write_text("name,patient ID\n")
    return folder.parent


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """Images with instance label maps of 8 and 16 bit."""
    source = tmp_path / "instances"
    for folder in ("images", "instance_cc", "semantic"):
        (source / folder).mkdir(parents=True)
    for name in NAMES:
        Image.fromarray(pixels(name)).save(source / "images" / f"{name}.jpg", quality=92)
        wide = labels(name).astype(np.uint16) * (500 if name == "train_10" else 1)
        Image.fromarray(wide if wide.max() > 255 else wide.astype(np.uint8)).save(
            source / "instance_cc" / f"{name}_inst.png"
        )
        Image.fromarray((labels(name) > 0).astype(np.uint8)).save(source / "semantic" / f"{name}_anno.png")
    return source


def check_instances(dest: Path) -> None:
    train, test = open_split(dest, "train"), open_split(dest, "test")
    assert [Path(s["name"]).stem for s in train] == ["train_1", "train_2", "train_10"], "in the order of their numbers"
    assert [Path(s["name"]).stem for s in test] == ["testA_1", "testB_3"], "test A and test B are one test set"
    for sample in [*train, *test]:
        truth = labels(Path(sample["name"]).stem)
        np.testing.assert_array_equal(sample["masks"], truth == np.array([1, 2, 7])[:, None, None])
        assert sample["labels"].tolist() == [1, 1, 1]


def test_the_authors_layout(authors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = convert_glas(authors, tmp_path / "out")
    check_instances(dest)
    sample = open_split(dest, "test")[0]
    assert sample["name"] == "testA_1.png"
    np.testing.assert_array_equal(sample["image"], pixels("testA_1"))
    assert capsys.readouterr().out == "train: 3 images, 9 glands\ntest: 2 images, 6 glands\n"


@pytest.mark.parametrize("suffix", ["png", "tif", "PNG"])
def test_the_authors_layout_in_another_format(authors: Path, tmp_path: Path, suffix: str) -> None:
    for path in [*authors.rglob("*.bmp")]:
        name = path.name.upper() if suffix == "PNG" else path.name
        Image.open(path).save(path.with_name(name).with_suffix(f".{suffix}"))
        path.unlink()
    dest = convert_glas(authors, tmp_path / "out")
    counts = [len(open_split(dest, split).coco_ground_truth()["annotations"]) for split in ("train", "test")]
    assert counts == [9, 6]
    if suffix != "PNG":
        check_instances(dest)


def test_instance_maps_next_to_images(instances: Path, tmp_path: Path) -> None:
    dest = convert_glas(instances, tmp_path / "out")
    check_instances(dest)
    assert open_split(dest, "train").mpp(0) == 0.62005
    copied = dest / "train" / "train_2.jpg"
    assert copied.read_bytes() == (instances / "images" / "train_2.jpg").read_bytes()


def test_a_copy_that_differs_is_reported(authors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert_glas(authors, tmp_path / "out")
    err = capsys.readouterr().err
    assert "GlaS as published: 85 train, 80 test images; for research only, no commercial use" in err
    assert "differs from the published one: it has 3 train images, not 85; 2 test images, not 80" in err


def test_patients_are_read_from_the_published_table(
    authors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{name},{number % 2}\n" for number, name in enumerate(NAMES))
    (authors / "Warwick QU Dataset" / "Grade.csv").write_text("name,patient ID\n" + rows)
    dest = convert_glas(authors, tmp_path / "out")
    out, err = capsys.readouterr()
    assert out.startswith("train: 3 images of 2 patients")
    assert "2 of 2 patients have images in several splits, which makes scores too high: 0 (test and train), 1 (" in err
    images = open_split(dest, "test").coco_ground_truth()["images"]
    assert [image["patient"] for image in images] == ["1", "0"]


@pytest.mark.parametrize("layout", ["authors", "instances"])
def test_excluded_images_are_left_out_with_their_maps(
    layout: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = convert_glas(request.getfixturevalue(layout), tmp_path / "out", exclude=["train_2.*", "testB*"])
    names = [Path(s["name"]).stem for split in ("train", "test") for s in open_split(dest, split)]  # type: ignore[arg-type]
    assert names == ["train_1", "train_10", "testA_1"]
    assert "2 of 5 images are left out by --exclude" in capsys.readouterr().err


def test_orientation_is_asked_for(instances: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(pixels("train_1")).save(instances / "images" / "train_1.jpg", exif=exif)
    with pytest.raises(UserError, match=r"different orientation tags: train_1\.jpg \(3\) .* --orientation"):
        convert_glas(instances, tmp_path / "out")
    check_instances(convert_glas(instances, tmp_path / "out", orientation="stored"))


def spoil_name(source: Path) -> None:
    (source / "images" / "train_1.jpg").rename(source / "images" / "train_5.jpg")


def drop_mask(source: Path) -> None:
    for name in ("train_2", "train_10"):
        (source / "instance_cc" / f"{name}_inst.png").unlink()


def drop_image(source: Path) -> None:
    (source / "images" / "testB_3.jpg").unlink()


def resize_mask(source: Path) -> None:
    Image.fromarray(labels("train_1")[:, :-1]).save(source / "instance_cc" / "train_1_inst.png")


def color_mask(source: Path) -> None:
    Image.fromarray(pixels("train_1")).save(source / "instance_cc" / "train_1_inst.png")


def truncate_mask(source: Path) -> None:
    path = source / "instance_cc" / "train_1_inst.png"
    path.write_bytes(path.read_bytes()[:-30])


def truncate_image(source: Path) -> None:
    (source / "images" / "train_1.jpg").write_bytes(b"\xff\xd8")


def drop_test(source: Path) -> None:
    for path in [*source.rglob("test*")]:
        path.unlink()


def foreign_name(source: Path) -> None:
    (source / "images" / "train_1.jpg").rename(source / "images" / "slide_1.jpg")
    (source / "instance_cc" / "train_1_inst.png").rename(source / "instance_cc" / "slide_1_inst.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_name, r"images without a label map \*_inst: train_5;"),
        (drop_mask, r"images without a label map \*_inst: train_2, train_10;"),
        (drop_image, "label maps without an image: testB_3;"),
        (resize_mask, r"different sizes: train_1.jpg \(25 x 18 px\) and train_1_inst.png \(24 x 18 px\)"),
        (color_mask, "train_1_inst.png is a color image, not a label map"),
        (truncate_mask, r"train_1_inst.png: cannot be decoded"),
        (truncate_image, r"train_1.jpg: "),
        (drop_test, "holds no test image"),
        (foreign_name, "images that belong to no split: slide_1.jpg"),
    ],
)
def test_mismatches_are_named_and_leave_no_files(
    instances: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(instances)
    with pytest.raises(UserError, match=message) as error:
        convert_glas(instances, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["instances"]


def test_a_missing_annotation_in_the_authors_layout(authors: Path, tmp_path: Path) -> None:
    next(authors.rglob("testA_1_anno.bmp")).unlink()
    with pytest.raises(UserError, match=r"images without a label map \*_anno: testA_1;"):
        convert_glas(authors, tmp_path / "out")


def test_a_folder_that_is_not_glas(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither train_1\.bmp with train_1_anno\.bmp"):
        convert_glas(tmp_path, tmp_path.parent / "out")
    with pytest.raises(UserError, match=r"out lies in .*; use another path"):
        convert_glas(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="is not a folder"):
        convert_glas(tmp_path / "nowhere", tmp_path / "out")


def test_a_destination_that_is_not_empty_is_refused(authors: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        convert_glas(authors, authors)
    assert not list(tmp_path.glob(".*"))
