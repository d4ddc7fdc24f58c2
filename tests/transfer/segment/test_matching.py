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
        ("p/a q/a", "p/a q/a", ""),
        ("p/a q/b", "a b", ""),
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
        ("case_001", "case_002", "without a label map: case_001.png"),
        ("a_2020 b_2020", "a_2021 b_2021", "without a label map: a_2020.png, b_2020.png"),
        ("a_s01 b_s01", "a_s02 b_s02", "without a label map: a_s01.png, b_s01.png"),
        ("case_left", "case_right", "without a label map: case_left.png"),
        ("a_0000 b_0000", "a_0001 b_0001", "without a label map"),
        ("p/a q/b", "p/b q/a", "without a label map: p/a.png, q/b.png"),
        ("a b", "a_x b_x c_x", r"label maps without an image: .*c_x\.png"),
        ("a", "p/a q/a", "with several label maps: a.png"),
        ("p/a q/a", "a", "images that share a label map: p/a.png, q/a.png"),
    ],
)
def test_a_label_map_of_another_image_is_refused(images: str, maps: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        match(tmp_path, images, maps)
