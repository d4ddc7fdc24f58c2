"""Which label map belongs to which image: by names and subfolders, and never that of another image."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from densepath.core.errors import UserError
from densepath.transfer.segment.matching import match_labels


def match(folder: Path, images: str, maps: str) -> list[str]:
    """The maps of images, all given by their names without suffix."""
    for part, names in (("images", images), ("maps", maps)):
        for name in names.split():
            (folder / part / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2)).save(folder / part / f"{name}.png")
    found = match_labels(
        [str(folder / "images" / f"{n}.png") for n in images.split()], folder / "maps", folder / "images"
    )
    return [path.relative_to(folder / "maps").as_posix().removesuffix(".png") for path in found]


@pytest.mark.parametrize(
    ("images", "maps", "says"),
    [
        ("a b", "a b", ""),
        ("a_1 b_1", "a_1_anno b_1_anno", "without _anno of label maps"),
        ("a_1", "a_1_mask", "without _mask of label maps, as in a_1.png with a_1_mask.png"),
        ("a_0000 b_0000", "a b", "without _0000 of images"),
        ("a_0000 b_0000", "a_seg b_seg", "without _0000 of images and _seg of label maps"),
        ("a.he_20x b.he_20x", "a b", "without .he_20x of images"),
        ("a_image b_image", "a-gland_mask b-gland_mask", "without _image of images and -gland_mask of label maps"),
        ("P0_t1 P1_t1", "P0_seg P1_seg", "without _t1 of images and _seg of label maps"),
        ("21_training 22_training", "21_manual1 22_manual1", "_training of images and _manual1 of label maps"),
        (
            "a_0_19_leftImg8bit b_0_19_leftImg8bit",
            "a_0_19_gtFine_labelIds b_0_19_gtFine_labelIds",
            "_leftImg8bit of im",
        ),
        ("001_40x 002_40x", "001_mask 002_mask", "without _40x of images and _mask of label maps"),
        ("s1_x20 s2_x20", "s1_x20_mask s2_x20_mask", "without _mask of label maps"),
        ("c1-T2 c2-T2", "c1-T2seg c2-T2seg", "without -T2 of images and -T2seg of label maps"),
        ("c1-T2", "c1-T2seg", "without -T2 of images and -T2seg of label maps, as in c1-T2.png with c1-T2seg.png"),
        ("case_001_image", "case_001_mask", "without _image of images and _mask of label maps"),
        ("case_left", "case_right", "without _left of images and _right of label maps"),  # which are reported
        ("001 002", "001_label_0 002_label_0", "without _label_0 of label maps"),
        ("001 002", "001_GT_1 002_GT_1", "without _GT_1 of label maps"),
        ("001 002", "001_1 002_1", "without _1 of label maps"),
        ("a_2020 b_2020", "a_mask b_mask", "without _2020 of images and _mask of label maps"),
        ("p/a q/a", "p/a q/a", ""),
        ("p/a q/b", "a b", ""),
        ("train/a test/b", "train/a all/b", "1 label map of another folder than the image: test/b.png with all/b.png"),
        ("x/a", "y/a", "1 label map of another folder than the image: x/a.png with y/a.png"),
    ],
)
def test_label_maps_have_the_names_of_their_images(
    images: str, maps: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert match(tmp_path, images, maps) == maps.split()
    said = capsys.readouterr().err
    assert says in said if says else not said


@pytest.mark.parametrize(
    ("images", "maps", "says"),
    [
        (
            "case_001",
            "case_002",
            "without a label map: case_001.png; the names have the endings _001 of im.* _002 of la",
        ),
        ("a_2020 b_2020", "a_2021 b_2021", "label map: a_2020.png, b_2020.png; the names have the endings _2020 of .*"),
        ("a_1_img b_1_img", "a_2_seg b_2_seg", "without a label map: a_1_img.png, b_1_img.png"),
        ("001", "001_label_0", "without a label map: 001.png; the names have the endings _label_0 of label maps; name"),
        ("001 002", "001_1 003_1", "without a label map: 001.png, 002.png"),
        ("a b", "a_seg c_seg", "without a label map: b.png; names are compared without _seg of label maps; name"),
        ("train/a test/b", "train/a train/b", "without a label map: test/b.png"),
        ("train/a test/a", "train/a all/a", "without a label map: test/a.png"),
        ("a_s01 b_s01", "a_s02 b_s02", "without a label map: a_s01.png, b_s01.png"),
        ("a_0000 b_0000", "a_0001 b_0001", "without a label map"),
        ("a_v1 b_v1", "a_v2_mask b_v2_mask", "without a label map"),
        ("a_2020 b_2020", "a_y2021 b_y2021", "without a label map"),
        ("p/a q/b", "p/b q/a", "without a label map: p/a.png, q/b.png"),
        ("a b", "a_x b_x c_x", r"label maps without an image: .*c_x\.png"),
        ("a", "p/a q/a", "with several label maps: a.png"),
        ("p/a q/a", "a", "images that share a label map: p/a.png, q/a.png"),
    ],
)
def test_a_label_map_of_another_image_is_refused(images: str, maps: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        match(tmp_path, images, maps)


def test_the_label_map_of_an_image_that_is_left_out_is_no_other_ones(tmp_path: Path) -> None:
    for folder, names in (("images", ("train/1", "train/2", "val/1")), ("maps", ("train/2", "val/1"))):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(tmp_path / folder / f"{name}.png")
    images = [str(tmp_path / "images" / name) for name in ("train/1.png", "train/2.png")]
    with pytest.raises(UserError, match=r"without a label map: train/1\.png"):
        match_labels(images, tmp_path / "maps", tmp_path / "images", whole=False)
