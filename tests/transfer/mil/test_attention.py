"""Attention in tables, GeoJSON, heat maps and sheets of tiles."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from densepath.core.errors import UserError
from densepath.sources.slides.open import open_slide
from densepath.sources.tiles.tile_files import SlideTiling
from densepath.synthetic.slide import write_slide
from densepath.transfer.embed.slide_features import FeatureWriter, SlideFeatures, read_slide_features
from densepath.transfer.mil.attention import AttentionFiles, boxes_px
from densepath.transfer.mil.bags import check_place, extractor_of

NONE = np.zeros((16, 0), np.float32)
CORNERS = np.stack(np.meshgrid(np.arange(4) * 128, np.arange(4) * 128), -1).reshape(-1, 2).astype(float)


def test_the_tile_with_the_highest_attention_is_shown_where_it_is(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slides/sub/a.tif", size=(512, 512), levels=(1, 4))
    tiles = SlideFeatures("a", NONE, CORNERS, side=128.0)
    attention = np.stack((np.full(16, 1 / 16), np.eye(16)[6] * 0.5 + 0.5 / 16))  # tile 6: third column, second row
    AttentionFiles(tmp_path / "out", ["x", "y"], tmp_path / "slides").write("sub/a", tiles, attention, 1)
    with (tmp_path / "out/sub/a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[6] == {"tile": "6", "x": "256", "y": "128", "attention_x": "0.0625", "attention_y": "0.53125"}
    features = json.loads((tmp_path / "out/sub/a.geojson").read_text())["features"]
    assert features[6]["geometry"]["coordinates"] == [[[256, 128], [384, 128], [384, 256], [256, 256], [256, 128]]]
    assert features[6]["properties"]["measurements"] == {"attention_x": 0.0625, "attention_y": 0.53125}
    heat_map = open_slide(tmp_path / "out/sub/a.tif")
    assert heat_map.spacing is not None and heat_map.size[0] * heat_map.spacing[0] == pytest.approx(256, abs=16)  # µm
    sheet = np.asarray(Image.open(tmp_path / "out/sub/a_tiles.png").convert("RGB"), float)
    shown, stored = sheet[24:184, 6:166], open_slide(slide).read(0, (128, 256, 128, 128)).astype(float)
    np.testing.assert_allclose(shown.mean((0, 1)), stored.mean((0, 1)), atol=2)
    resized = Image.fromarray(stored.astype(np.uint8)).resize((160, 160), Image.Resampling.BILINEAR)
    assert np.abs(shown - np.asarray(resized, float)).mean() < 6
    assert (tmp_path / "out/sub/a.png").exists()


def test_a_slide_has_the_resolution_of_its_features(tmp_path: Path) -> None:
    """Which the user may have given instead of that of the file, or because there is none."""
    notes = {"level0_width": 512, "level0_height": 512, "size_um": 128.0}
    pixels = np.full((512, 512, 3), 255, np.uint8)
    (tmp_path / "slides").mkdir()
    for name, resolution in (("a", (20000, 20000)), ("b", None)):
        options = {} if resolution is None else {"resolution": resolution, "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(tmp_path / f"slides/{name}.tif", pixels, tile=(64, 64), photometric="rgb", **options)
        tiles = SlideFeatures(name, NONE, CORNERS, side=128.0, spacing=(1.0, 1.0), notes=notes)
        AttentionFiles(tmp_path / "out", ["x"], tmp_path / "slides").write(name, tiles, np.full((1, 16), 1 / 16), 0)
        drawn = open_slide(tmp_path / f"out/{name}.tif")
        assert drawn.size[0] * drawn.mpp[0] == pytest.approx(512, abs=16)


@pytest.mark.parametrize(
    ("notes", "why"),
    [
        ({"level0_width": 512, "level0_height": 512}, "512 x 640 px, not 512 x 512 px"),
        ({"level0_width": 512, "level0_height": 640, "slide": ["a", 1, 2]}, "other contents of the file"),
    ],
)
def test_attention_is_not_drawn_on_another_slide(
    notes: dict[str, Any], why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_slide(tmp_path / "slides/a.tif", size=(640, 512), levels=(1, 4))
    tiles = SlideFeatures("a", NONE, CORNERS, side=128.0, notes=notes)
    AttentionFiles(tmp_path / "out", ["x"], tmp_path / "slides").write("a", tiles, np.full((1, 16), 1 / 16), 0)
    assert f"not the slide that was tiled: {why}" in capfd.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.csv", "a.geojson"}


def test_the_tiles_of_a_slide_are_no_heat_map_of_another(tmp_path: Path) -> None:
    for name in ("a", "a_tiles"):
        write_slide(tmp_path / f"slides/{name}.tif", size=(512, 512), levels=(1, 4))
    files = AttentionFiles(tmp_path / "out", ["x"], tmp_path / "slides", ["a", "a_tiles"])
    for name in ("a", "a_tiles"):
        files.write(name, SlideFeatures(name, NONE, CORNERS, side=128.0), np.full((1, 16), 1 / 16), 0)
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names == {"a.png", "a_tiles.2.png", "a_tiles.png", "a_tiles_tiles.png"}


def test_slides_without_pictures_are_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides/broken.tif").write_bytes(b"II*\0" + bytes(4))
    write_slide(tmp_path / "slides/whole.tif", size=(512, 512), levels=(1, 4))
    files = AttentionFiles(tmp_path / "out", [], tmp_path / "slides")
    for name, corners in {"broken": CORNERS, "gone": CORNERS, "whole": None}.items():
        files.write(name, SlideFeatures(name, NONE, corners, side=128.0), np.full((1, 16), 1 / 16), 0)
    said = capfd.readouterr().err
    assert "broken has no pictures: " in said and "broken.tif" in said
    assert f"gone has no pictures, as its slide is not in {tmp_path / 'slides'}" in said
    assert "whole has no pictures, as the places of its tiles are unknown" in said
    assert sorted(path.name for path in (tmp_path / "out").glob("*.csv")) == ["broken.csv", "gone.csv", "whole.csv"]
    assert not list((tmp_path / "out").glob("*.png"))
    for name in ("broken", "gone"):
        files.write(name, SlideFeatures(name, NONE, CORNERS, side=128.0), np.full((1, 16), 1 / 16), 0, drawn=False)
    assert not capfd.readouterr().err


def test_micrometres_become_pixels_of_level_0() -> None:
    tiles = SlideFeatures("a", NONE, CORNERS / 2, unit="um", side=64.0)
    boxes = boxes_px(tiles, (0.5, 0.5))
    assert boxes is not None and boxes[6].tolist() == [256, 128, 128, 128]
    square = SlideFeatures("a", NONE, CORNERS, side=64 / 0.375, spacing=(0.25, 0.5), notes={"size_um": 64.0})
    boxes = boxes_px(square, square.spacing)
    assert boxes is not None and boxes[6].tolist() == [256, 128, 128, 256]  # a square of 64 µm
    of_pixels = SlideFeatures("a", NONE, CORNERS, side=128.0).boxes_um((0.25, 0.5))
    assert of_pixels[6].tolist() == [32, 128, 32, 64]
    assert boxes_px(tiles, None) is None and boxes_px(SlideFeatures("a", NONE), (1, 1)) is None
    no_side = boxes_px(SlideFeatures("a", NONE, CORNERS), None)
    assert no_side is not None and no_side[6].tolist() == [256, 128, 128, 128]


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"name": "other"}, "a.h5 has coordinates of the slide other; make these features again"),
        (
            {"level0_width": 300, "level0_height": 900},
            "has tiles outside of its slide of 300 x 900 pixels: coordinates",
        ),
        ({"name": "sub/a.svs", "level0_width": 512, "level0_height": 512}, None),
    ],
)
def test_coordinates_of_another_slide_are_refused(notes: dict[str, object], message: str | None) -> None:
    tiles = SlideFeatures("a", NONE, CORNERS, side=128.0, notes=notes)
    if message is None:
        check_place(Path("a.h5"), tiles)
        return
    with pytest.raises(UserError, match=message):
        check_place(Path("a.h5"), tiles)


def test_a_slide_whose_name_is_not_text_has_its_own_features(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    tiling = SlideTiling(name, f"{name}.tif", np.zeros((1, 2), np.int64), 0.5, 64, (0.5, 0.5), (64, 64))
    path = tmp_path / f"{name}.h5"
    with FeatureWriter(path, tiling, 0, 2, "float32", {}) as file:
        file.add([0], np.zeros((1, 2), np.float32))
    check_place(path, read_slide_features(path))


def test_extractors_are_told_apart() -> None:
    def made(**notes: object) -> str:
        return extractor_of(SlideFeatures("a", NONE, notes=notes))

    ours = {"backbone": "vit", "weights_digest": "0123456789abcdef", "stage": 5, "pool": "mean"}
    assert made(**ours) == "vit 0123456789ab stage 5 mean" and made(**{**ours, "pool": "cls"}) != made(**ours)
    assert made(**{**ours, "backbone": "vit*"}) == made(**ours)
    assert made(extractor="uni") == made(encoder="uni") == "uni" and made() == ""
