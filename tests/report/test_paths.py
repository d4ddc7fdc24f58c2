"""What a page reads of a folder from somebody else: its own files, and images in its recorded data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from densepath.core.errors import UserError
from densepath.report.paths import inside, recorded_data
from densepath.report.runs import read_run
from densepath.report.slide_layers import slide_layers
from densepath.report.values import pretty
from densepath.report.verb import write_report
from densepath.synthetic.slide import write_slide
from tests.report.conftest import Make, save_picture
from tests.report.test_report import Page, page_of

pytest.importorskip("plotly")
SECRET = "a line of a file that is none of the run's"


@pytest.mark.parametrize("name", ["train.log", "sessions.yaml", "config.yaml", "metrics.csv", "metrics.json"])
def test_a_link_out_of_a_run_folder_is_not_read(make_pretraining: Make, tmp_path: Path, name: str) -> None:
    run = make_pretraining()
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}: 1\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(secret)
    with pytest.raises(UserError, match=rf"{name} leads out of its folder"):
        page_of(run)
    page = page_of(run, make_pretraining("other"))
    assert SECRET not in page.text and "leads out of its folder" in page.text


def test_links_within_a_run_folder_and_to_it_are_followed(make_pretraining: Make, tmp_path: Path) -> None:
    run = make_pretraining()
    (run / "train.log").rename(run / "logs.txt")
    (run / "train.log").symlink_to("logs.txt")
    (tmp_path / "link").symlink_to(run)
    assert "densepath export run" in page_of(tmp_path / "link").text


@pytest.mark.parametrize("whole", [True, False])
def test_pictures_behind_links_are_not_shown(make_pretraining: Make, tmp_path: Path, whole: bool) -> None:
    run, outside = make_pretraining(), tmp_path / "private"
    for step in (10, 20):
        save_picture(outside / f"concepts_{step:07d}.png")
    if whole:
        for path in (run / "pictures").iterdir():
            path.unlink()
        (run / "pictures").rmdir()
        (run / "pictures").symlink_to(outside)
    else:
        (run / "views.png").unlink()
        (run / "views.png").symlink_to(outside / "concepts_0000010.png")
    shown = [each["alt"] or "" for each in page_of(run).of("img") if each.get("src")]
    assert len(shown) == (1 if whole else 2)


@pytest.mark.parametrize("how", ["absolute", "parent", "link", "text"])
def test_a_table_names_no_slide_outside_of_the_folder_and_its_data(tmp_path: Path, how: str) -> None:
    folder, data = tmp_path / "found", tmp_path / "data"
    secret = tmp_path / "elsewhere" / "s.tif"
    write_slide(secret, size=(256, 256))
    write_slide(data / "s.tif", size=(256, 256))
    (folder / "geojson").mkdir(parents=True)
    square = [[[0, 0], [90, 0], [90, 90], [0, 90], [0, 0]]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": square}, "properties": {}}
    (folder / "geojson" / "s.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": str(data), "run": "detector"}))
    (data / "link.tif").symlink_to(secret)
    (data / "table.csv").write_text(SECRET)
    named = {"absolute": secret, "parent": data / ".." / "elsewhere" / "s.tif", "link": data / "link.tif"}
    for path, drawn in ((named.get(how, data / "table.csv"), False), (data / "s.tif", True)):
        (folder / "slides.csv").write_text(f"slide,path,tiles\ns,{path},\n")
        layers, lines = slide_layers(read_run(folder), 4)
        assert bool(layers) is drawn
        assert ("is not an image in the run folder or its data" in "".join(lines)) is not drawn


def test_images_outside_of_a_detectors_data_are_not_shown(make_detector: Make, tmp_path: Path) -> None:
    run = make_detector([[(0, 0, 10)]], [[(0, 0, 10, 0.9)]])
    assert "Precision and recall" in page_of(run).text
    path = tmp_path / "data" / "annotations" / "test.json"
    record = json.loads(path.read_text())
    save_picture(tmp_path / "private.png", 40)
    record["images"][0]["file_name"] = "../../private.png"
    path.write_text(json.dumps(record))
    page = page_of(run)
    assert "Precision and recall" not in page.text and "private.png" in page.text


def test_relative_data_starts_where_the_run_was_started(
    make_detector: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_detector([[(0, 0, 10)]], [[(0, 0, 10, 0.9)]])
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": "data"}))
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    page = page_of(run)
    assert "the folder in which the run was started is not recorded" in page.text
    (run / "sessions.yaml").write_text(yaml.safe_dump([{"folder": str(tmp_path)}, {"folder": "/other"}]))
    page = page_of(run)
    assert "Precision and recall" in page.text and "not recorded" not in page.text


def test_pictures_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    (folder := tmp_path / "out").mkdir()
    (folder / "config.yaml").write_text("data: x\nrun: y\n")
    for name in ("a", "b"):
        save_picture(folder / "pictures" / name / "x.png")
    assert [each["alt"] for each in page_of(folder).of("img") if each["alt"]] == ["a/x", "b/x"]


def test_loops_of_links_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert not inside(tmp_path / "a", tmp_path / "c")
    assert recorded_data({"data": "/x"}, [{"folder": "/y"}]) == Path("/x")


def test_a_long_table_names_what_it_leaves_out(tmp_path: Path) -> None:
    (folder := tmp_path / "out").mkdir()
    (folder / "config.yaml").write_text("data: x\n")
    rows = "\n".join(f"s{k},x{k}.tif,1" for k in np.arange(300))
    (folder / "slides.csv").write_text(f"slide,path,tiles\n{rows}\n")
    write_report([str(folder)], out=tmp_path / "page.html")
    assert "The first 100 of 300 rows" in Page(tmp_path / "page.html").text


def test_numbers_in_tables_are_short_and_never_in_powers(tmp_path: Path) -> None:
    (folder := tmp_path / "out").mkdir()
    (folder / "config.yaml").write_text("data: x\n")
    (folder / "slides.csv").write_text("slide,path,area,tiles\ns1.123456x,x.tif,1234567.891234,0.123456789\n")
    write_report([str(folder)], out=tmp_path / "page.html")
    assert Page(tmp_path / "page.html").rows[-1] == ["s1.123456x", "x.tif", "1234568", "0.12346"]
    assert pretty("mean_iou, iou50, ap75") == "mean IoU, IoU50, AP75"
