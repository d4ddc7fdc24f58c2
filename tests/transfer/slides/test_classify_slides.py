"""A classifier on slides: tables and heat maps of their tiles, tiled before or not."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import Disk, fail_in_part, paint, write_levels

import densepath
from densepath.core.errors import UserError
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile_files import read_tile_folder
from densepath.transfer.classify import predict_tiles
from densepath.transfer.classify.classifier import CLASSIFIER_FILE, ClassifierNotes, save_classifier
from densepath.transfer.classify.predict_tiles import OnSlides, heat_map_paths, tile_mpp

CPU: dict[str, Any] = {"devices": "cpu", "precision": "32"}


def test_slides_and_labels_whose_names_join_alike_have_heat_maps_of_their_own(tmp_path: Path) -> None:
    paths = heat_map_paths(tmp_path, ["a", "a_b"], ["c", "b c"])
    assert [path.name for path in paths.values()] == ["a_c", "a_b_c", "a_b_c.2", "a_b_b_c"]


def test_tiles_of_slides_get_probabilities_and_heat_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = paint((520, 600), 0.5, [Disk(60, 60, 20), Disk(120, 150, 30)], (10.0, 10.0, 230.0, 230.0))
    write_levels(tmp_path / "slides/one.tiff", pixels, 0.5, (1, 4))
    (tmp_path / "slides/broken.svs").write_bytes(b"II*\0")
    notes = ClassifierNotes("test_resnet", "mean", ("<5", "tumour", ">5"), True, (64, 64), PixelSpec().record())
    torch.manual_seed(0)
    run = tmp_path / "run"
    save_classifier(run / CLASSIFIER_FILE, notes.build(), notes)
    densepath.tile(data=tmp_path / "slides", out=tmp_path / "T", mpp=0.7, size=64, workers=0)
    done = densepath.predict(run, data=tmp_path / "T", out=tmp_path / "out", **CPU)
    assert (done["slides"], done["damaged"]) == (1, 0)  # the other one has no tiles
    with (tmp_path / "out/tiles/one.csv").open() as file:
        rows = list(csv.DictReader(file))
    (tiling,) = read_tile_folder(tmp_path / "T")
    classifier = densepath.load_classifier(run)
    for position, row in enumerate(rows):
        assert (int(row["x"]), int(row["y"])) == tuple(tiling.corners[position])
        expected = classifier.predict(SlideTiles([tiling]).read(position))
        assert float(row["p tumour"]) == pytest.approx(expected["tumour"], abs=1e-4)
    maps = {path.stem for path in (tmp_path / "out/heat_maps").glob("*.tif")}
    assert maps == {"one__5", "one_tumour", "one__5.2"}
    table = (tmp_path / "out/tiles/one.csv").read_text()
    (tmp_path / "out/tiles/one.csv").unlink()
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"none of 1 slide can be read \(one: "):
        patch.setattr(predict_tiles, "encode", None)
        densepath.predict(run, data=tmp_path / "T", out=tmp_path / "out", **CPU)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="Input/output error"):
        fail_in_part(patch, tmp_path / "slides/one.tiff", 10 * 3 + 3)  # the mean of the others would look complete
        densepath.predict(run, data=tmp_path / "T", out=tmp_path / "out", **CPU)
    densepath.predict(run, data=tmp_path / "T", out=tmp_path / "out", **CPU)
    assert (tmp_path / "out/tiles/one.csv").read_text() == table
    with pytest.raises(UserError, match="begun with --precision 32; use that"):
        densepath.predict(run, data=tmp_path / "T", out=tmp_path / "out", devices="cpu", precision="bf16-mixed")
    for known, why in (
        ({"mpp": 0.5}, "0.7 µm per pixel, those of the training 0.5"),
        ({"image_size": 80}, "64 pixels"),
    ):
        with pytest.raises(UserError, match=why):
            tile_mpp(replace(notes, **known), tmp_path / "T", OnSlides())
    assert tile_mpp(replace(notes, mpp=0.71, image_size=64), tmp_path / "T", OnSlides()) is None  # rounded
    with pytest.raises(UserError, match="does not know the µm per pixel of its training images; give them: --mpp"):
        densepath.predict(run, data=tmp_path / "slides/one.tiff", out=tmp_path / "no", **CPU)
    assert not (tmp_path / "no").exists()
    again = densepath.predict(run, data=tmp_path / "slides", out=tmp_path / "new", mpp=0.7, **CPU)
    assert again["slides"] == 1 and (tmp_path / "new/heat_maps/one_tumour.png").is_file()
    (tmp_path / "slides/one.tiff").replace(tmp_path / "slides/two.tiff")
    (tmp_path / "slides/one.tiff").write_bytes(b"II*\0")
    densepath.predict(run, data=tmp_path / "slides", out=tmp_path / "new", mpp=0.7, **CPU)
    results = [path for kind in ("tiles", "heat_maps", "records") for path in (tmp_path / "new" / kind).iterdir()]
    assert len(results) == 8 and all(path.name.startswith("two") for path in results)
    given = {"data": tmp_path / "slides", "out": tmp_path / "new", "mpp": 0.7, **CPU}
    densepath.predict(run, **given, default_mpp=0.5)
    with pytest.raises(UserError, match="was made with other values of default_mpp"):
        densepath.predict(run, **given)
    with pytest.raises(UserError, match="none of 1 slide can be read"):
        densepath.predict(run, data=tmp_path / "T", out=tmp_path / "out", **CPU)
    assert list((tmp_path / "out").glob("*/one*")) == [tmp_path / "out/records/one.json"]
    save_classifier(tmp_path / "other" / CLASSIFIER_FILE, notes.build(), replace(notes, mpp=0.7))
    for data, why in (("T", "none of 1 slide can be read"), ("slides/two.tiff", r"results of other slides \(one\)")):
        with pytest.raises(UserError, match=why):
            densepath.predict(tmp_path / "other", data=tmp_path / data, out=tmp_path / "last", **CPU)
    assert not (tmp_path / "last/tiles_of_slides").exists()  # refused before it is tiled
