"""The pages of runs: what they show, and what they never let through."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from densepath.annotations.cells.cell_files import Cells, cell_path, write_cell_rows, write_cells
from densepath.benchmark.statistics import Comparison
from densepath.core.errors import UserError
from densepath.core.locks import sole_writer
from densepath.report.comparison import _difference, _key, _score_table
from densepath.report.embedding import read_embedding
from densepath.report.runs import Run, Score, read_run, read_scores
from densepath.report.slide_layers import slide_layers
from densepath.report.verb import write_report
from densepath.sources.tiles.tile import tile
from densepath.synthetic.slide import SlidePainter, write_slide
from tests.report.conftest import Make, save_picture

pytest.importorskip("plotly")
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """The elements of a page: their tags and attributes, the text outside of scripts, JSON data, and table rows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.rows, self.data = "", [], []
        self._open: list[str] = []
        self._json = False
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        self._json = tag == "script" and dict(attrs).get("type") == "application/json"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._json and "script" in self._open:
            self.data.append(json.loads(data))
        elif not {"script", "style"} & set(self._open):
            self.text += data
            if {"td", "th"} & set(self._open) and self.rows:
                self.rows[-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(*runs: Path, **options: Any) -> Page:
    out = runs[0].parent / "page.html"
    write_report([str(run) for run in runs], out=out, **options)
    return Page(out)


def test_a_pretraining_run_shows_its_numbers_pictures_and_next_commands(make_pretraining: Make) -> None:
    page = page_of(make_pretraining())
    for text in ("concl", "resnet18", "of 40", "0.03", "of chance", "densepath export run", "densepath probe", "50.5"):
        assert text in page.text, text
    assert "densepath old" not in page.text.split("End of the log")[0]
    (slider,) = [each for each in page.of("input") if each.get("type") == "range"]
    assert json.loads(slider["data-captions"] or "") == ["step 10", "step 20"]
    titles = {each.get("aria-label") for each in page.of("div") if each.get("role") == "img"}
    assert {"loss", "instance loss / chance", "probe dice", "key spread, dashed: collapse below"} <= titles
    chance = next(each for each in page.data if each["layout"]["shapes"] and each["data"][0]["y"][0] == 1.0)
    assert chance["layout"]["shapes"][0]["y0"] == 1.0


def test_the_page_needs_no_network_and_only_its_own_scripts_run(make_pretraining: Make) -> None:
    run = make_pretraining()
    page = page_of(run)
    sources = [
        each.get(name) for tag in ("img", "script", "link", "a") for each in page.of(tag) for name in ("src", "href")
    ]
    assert {source[:5] for source in sources if source} <= {"data:", "#cont", *(f"#s{k}" for k in range(9))}
    policy = next(each["content"] for each in page.of("meta") if each.get("http-equiv"))
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy or "")
    assert nonce and "default-src 'none'" in (policy or "")
    scripts = [each for each in page.of("script") if each.get("type") != "application/json"]
    assert len(scripts) == 2 and {each["nonce"] for each in scripts} == {nonce[1]}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_nothing_of_a_run_folder_is_executed(make_pretraining: Make, tmp_path: Path) -> None:
    evil = EVIL.replace("/", "")
    run = make_pretraining(evil, config={"backbone": EVIL, EVIL: EVIL, "optimizer": {EVIL: [EVIL]}})
    (run / "train.log").write_text(f"densepath: next: {EVIL}\n")
    header = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(header.replace("images_per_second", EVIL.replace('"', "")))
    (run / "pictures" / f"{evil}_0000010.png").write_bytes((run / "views.png").read_bytes())
    (run / "pictures" / "drawn_0000010.png").write_text(f"<svg onload='alert(1)'>{EVIL}</svg>")
    other = make_pretraining("other", config={"backbone": "resnet50"})
    for page in (page_of(run), page_of(run, other, tmp_path / "nothing" / "<script>alert(2)<script>")):
        tags = {tag for tag, _ in page.tags}
        assert len([each for each in page.of("script") if each.get("type") != "application/json"]) == 2
        assert not [each for each in page.of("img") if each.get("src") == "x"] and "svg" not in tags
        assert EVIL in page.text
    names = [trace["name"] for chart in page.data for trace in chart["data"]]
    assert names and not any("<" in name for name in names)  # Plotly reads a part of HTML


def test_several_runs_are_sorted_compared_and_tested(make_pretraining: Make) -> None:
    runs = [
        make_pretraining(f"{name}{seed}", config={"method": name, "seed": seed}, level=level + 0.01 * seed**2)
        for name, level in (("concl", 0.5), ("moco_v2", 0.7))
        for seed in range(3)
    ]
    page = page_of(runs[0].parent)
    ranking = next(k for k, row in enumerate(page.rows) if row[:2] == ["run", "state"])
    assert [row[0] for row in page.rows[ranking + 1 : ranking + 7]] == [
        *("moco_v22", "moco_v21", "moco_v20", "concl2", "concl1", "concl0")
    ]
    tests = next(row for row in page.rows if row[:2] == ["method moco_v2", "3"])
    assert tests[2].startswith("57.33 ±") and tests[3] == "+16.00"  # all differences are equal: no p-value
    options = [row[0] for row in page.rows[page.rows.index(next(r for r in page.rows if r and r[0] == "option")) :]]
    assert options == ["option", "method", "seed"]
    assert len([trace for chart in page.data for trace in chart["data"] if chart["layout"].get("xaxis")]) >= 6
    named = [chart for chart in page.data if chart["layout"].get("showlegend")]
    assert [sorted(trace["name"] for trace in chart["data"]) for chart in named] == [
        ["concl0", "concl1", "concl2", "moco_v20", "moco_v21", "moco_v22"]
    ]


def detectors(folder: Path, parents: dict[str, list[str]], measured: float = 0.0) -> list[str]:
    """Folders of detectors with the seeds 0, 1, ... from weights."""
    made = []
    for name, weights in parents.items():
        for seed, path in enumerate(weights):
            (run := folder / f"{name}_{seed}").mkdir(parents=True)
            options = {"data": "d", "detector": "mask_rcnn_fpn_small", "test_size": 40, "seed": seed, "weights": path}
            (run / "config.yaml").write_text(yaml.safe_dump(options))
            score = len(made) + 0.1 * seed**2 + measured
            (run / "metrics.json").write_text(json.dumps({"scale": "percent", "mask_ap": score}))
            made.append(str(run))
    return made


@pytest.mark.parametrize("known", [True, False])
def test_detectors_of_each_pretraining_are_a_group(make_pretraining: Make, tmp_path: Path, known: bool) -> None:
    parents = {"random": ["random"] * 3}
    for method in ("moco", "concl"):
        parents[method] = [str(tmp_path / method / f"run{seed}") for seed in range(3)]
        for seed in range(3) if known else ():
            make_pretraining(f"{method}/run{seed}", config={"method": method, "seed": seed, "notes": "x" * 400})
    if known:
        parents["concl"] = [f"{path}/exported/backbone.safetensors" for path in parents["concl"]]
    runs = detectors(tmp_path / "detectors", parents)
    page = page_of(*map(Path, runs))
    head = next(k for k, row in enumerate(page.rows) if row[:2] == ["runs", "seeds"])
    rows = page.rows[head + 1 : head + 4]
    assert [row[1] for row in rows] == ["3", "3", "3"]
    assert ["random" in rows[0][0], "moco" in rows[1][0], "concl" in rows[2][0]] == [True] * 3
    assert "same options and seed" not in page.text


def test_weights_are_told_apart_without_their_seed(
    make_pretraining: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_pretraining())  # the options of a run that made none of the weights
    for seed in range(2):
        make_pretraining(f"moco/{seed}", config={"seed": seed})
    folders = [f"{tmp_path}/moco/{seed}" for seed in range(2)]
    keys = [
        _key({"weights": f"{folder}{file}"}) for file in ("", "/exported/epoch_5.safetensors") for folder in folders
    ]
    keys += [_key({"weights": f"{folder}/exported/backbone.safetensors"}) for folder in folders]
    keys += [_key({"weights": name}) for name in ("random", "a/b.pth", "moco_v2/run1", "moco_v3/run1", "moco_v3/run2")]
    assert [keys.index(key) for key in keys] == [0, 0, 2, 2, 0, 0, 6, 7, 8, 9, 9]


def test_links_to_weights_are_told_apart_by_what_they_lead_to(tmp_path: Path) -> None:
    """The runs of a table have links of one name."""
    keys = []
    for run, weights in enumerate(("a.pth", "b.pth", "b.pth")):
        (tmp_path / f"run{run}").mkdir()
        (tmp_path / f"run{run}" / "weights.pth").symlink_to(tmp_path / weights)
        keys.append(_key({"weights": "weights.pth"}, [{"folder": str(tmp_path / f"run{run}")}]))
    assert keys[0] != keys[1] == keys[2]


def test_relative_weights_start_where_the_run_was_started(make_pretraining: Make, tmp_path: Path) -> None:
    for seed in range(2):
        make_pretraining(f"moco/first{seed}", config={"seed": seed})
    started = [{"folder": str(tmp_path)}]
    keys = {_key({"weights": f"moco/first{seed}/exported/backbone.safetensors"}, started) for seed in range(2)}
    assert len(keys) == 1


def test_runs_with_the_same_options_and_seed_are_not_tested(tmp_path: Path) -> None:
    runs = detectors(tmp_path / "a", {"random": ["random"] * 3, "given": ["w.pth"] * 3})
    runs += detectors(tmp_path / "b", {"given": ["w.pth"]}, 50.0)
    page = page_of(*map(Path, runs))
    head = next(k for k, row in enumerate(page.rows) if row[:2] == ["runs", "seeds"])
    assert [row[1] for row in page.rows[head + 1 : head + 3]] == ["3", "2"]
    assert "the same options and seed: a/given_0, b/given_0" in page.text


def test_small_p_values_and_scores_that_are_not_finite() -> None:
    assert _difference(Comparison(3, 1.0, 1e-9, None)).endswith("(p < 0.0001)")
    scores = {"a": {"mask_ap": Score(1.0)}, "b": {"mask_ap": Score(float("nan"))}, "c": {"mask_ap": Score(2.0)}}
    table = _score_table({name: Run(Path(name)) for name in scores}, scores)
    assert [row[0] for row in table.rows] == ["c", "a", "b"]
    assert table.caption == "Sorted by mask AP; in percent, with 95% intervals where they are known"
    table = _score_table({"a": Run(Path("a"))}, {"a": {"mean_dice": Score(59.4), "mean_hd95": Score(13.6)}})
    assert table.caption.startswith("Sorted by mean dice; in percent, distances in mm or px, with")


def test_scores_of_version_0_1_are_in_percent(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"mask_ap": 0.453, "mask_ap_interval": [0.4, 0.5], "seconds": 3.5}))
    (found,) = read_scores(path)[1].values()
    assert (found.value, found.low, found.high) == pytest.approx((45.3, 40.0, 50.0))
    path.write_text(json.dumps({"mask_ap": 0.453, "scale": "unknown"}))
    with pytest.raises(UserError, match="scale"):
        read_scores(path)


def test_a_stopped_run_with_its_best_backbone_is_not_complete(make_pretraining: Make) -> None:
    run = make_pretraining()
    assert read_run(run).state == "complete"
    (run / "exported" / "backbone.safetensors").rename(run / "exported" / "best.safetensors")
    assert read_run(run).state == "stopped"


def test_missing_folders_do_not_count_as_runs(make_pretraining: Make, tmp_path: Path) -> None:
    (foreign := tmp_path / "foreign").mkdir()
    (foreign / "config.yaml").write_text("colour: red\n")
    given = [make_pretraining(), foreign, *(tmp_path / f"missing{k}" for k in range(3))]
    result = write_report([str(path) for path in given], out=tmp_path / "page.html")
    assert (result["runs"], result["left_out"]) == (1, 4)


def test_damaged_and_foreign_folders_are_named_and_left_out(
    make_pretraining: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_pretraining()
    damaged, deep, foreign = (tmp_path / name for name in ("damaged", "deep", "foreign"))
    for folder in (damaged, deep, foreign):
        folder.mkdir()
    (damaged / "config.yaml").write_text("method: [")
    (deep / "config.yaml").write_text(f"method: {'[' * 3000}{']' * 3000}")
    (foreign / "config.yaml").write_text("colour: red\n")
    page = page_of(run, damaged, deep, foreign, tmp_path / "missing")
    printed = capsys.readouterr()
    for name in ("damaged", "deep", "foreign", "missing"):
        assert f"{tmp_path / name}" in page.text.split("Left out")[-1]
        assert f"{tmp_path / name}" in printed.out + printed.err
    (tmp_path / "features.h5").write_bytes(b"\x89HDF\xff")
    with pytest.raises(UserError, match=r"features\.h5 cannot be read .*; give a run or scores of probe"):
        write_report([str(tmp_path / "features.h5")], out=tmp_path / "none.html")
    with pytest.raises(UserError, match="nothing to report"):
        write_report([str(foreign)], out=tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_a_damaged_measurement_or_picture_does_not_cost_the_page(make_pretraining: Make) -> None:
    run = make_pretraining()
    (run / "views.png").write_bytes(b"\x89PNG broken")
    (run / "pictures" / "features.npz").write_bytes(b"PK broken")
    (run / "sessions.yaml").write_text("- [")
    page = page_of(run)
    assert "Views" not in page.text and "Map of the images" not in page.text and "Curves" in page.text


def test_objects_and_their_detections_have_the_same_score(make_detector: Make) -> None:
    page = page_of(make_detector([[(0, 0, 10)]], [[(0, 0, 10, 0.49996)]]))
    assert {each["data-score"] for each in page.of("path")} == {"0.5"}


def test_a_detector_shows_its_detections_beside_the_truth(make_detector: Make) -> None:
    truth = [[(0, 0, 10), (20, 20, 10)], [(5, 5, 12)], []]
    found = [[(0, 0, 10, 0.9), (25, 0, 8, 0.8)], [(5, 6, 12, 0.3)], []]
    page = page_of(make_detector(truth, found))
    paths = [(each["class"], each["data-score"], each["d"]) for each in page.of("path")]
    (path,) = [path for kind, score, path in paths if (kind, score) == ("correct", "0.9")]
    corners = [float(number) for number in re.findall(r"[\d.]+", path or "")]
    assert (min(corners), max(corners)) == (0, 10)
    kinds = [kind for kind, _, _ in paths]
    assert (kinds.count("correct"), kinds.count("false"), kinds.count("true")) == (2, 1, 3)
    assert {score for kind, score, _ in paths if kind == "true"} == {"0.9", "0.3", "-1.0"}
    assert "41.2" in page.text and "66.6" in page.text
    (curve,) = [chart for chart in page.data if "AP50" in chart["data"][0]["name"]]
    assert curve["data"][0]["name"].startswith("&lt;b&gt;gland")


def test_a_detector_without_its_data_shows_the_pictures_of_the_run(make_detector: Make) -> None:
    run = make_detector([[(0, 0, 10)]], [[]])
    (run.parent / "data" / "annotations" / "test.json").unlink()
    save_picture(run / "pictures" / "1.png")
    page = page_of(run)
    assert "are not shown" in page.text and [each["alt"] for each in page.of("img")] == ["1", ""]


def test_detections_are_not_drawn_on_other_images_than_those_of_the_run(make_detector: Make) -> None:
    run = make_detector([[(0, 0, 10)], []], [[(0, 0, 10, 0.9)], []])
    scores = {"scale": "percent", "mask_ap50": 100.0}
    (run / "metrics.json").write_text(json.dumps(scores))
    assert "Precision and recall" in page_of(run).text
    (run / "metrics.json").write_text(json.dumps({**scores, "mask_ap50": 98.0}))
    page = page_of(run)
    assert "Precision and recall" not in page.text and "mask AP50 is 100.0 with them, and was 98.0" in page.text
    results = json.loads((run / "predictions.json").read_text())
    (run / "predictions.json").write_text(json.dumps([{**each, "image_id": 7} for each in results]))
    assert "none has the id 7" in page_of(run).text


def test_a_page_of_a_run_in_progress_reloads_itself(make_pretraining: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_pretraining()
    bodies = []

    def sleep(seconds: float) -> None:
        bodies.append(Page(run.parent / "page.html").of("body")[0])
        holder.__exit__(None, None, None)

    monkeypatch.setattr("densepath.report.verb.time.sleep", sleep)
    holder = sole_writer(run)
    holder.__enter__()
    last = page_of(run, watch=True, every=7.0)
    assert [body.get("data-reload") for body in bodies] == ["7.0"] and last.of("body")[0] == {}
    with pytest.raises(UserError, match="every is nan; give a number of seconds"):
        page_of(run, watch=True, every=float("nan"))


def test_features_become_a_map_with_thumbnails(make_pretraining: Make) -> None:
    run = make_pretraining()
    rng = np.random.default_rng(0)
    sheet = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (6 * 16, 16, 3), dtype=np.uint8)).save(sheet, "JPEG")
    np.savez(
        run / "pictures" / "features.npz",
        features=rng.normal(size=(6, 8)).astype(np.float16),
        names=np.array([f"tile {EVIL} {k}" for k in range(6)]),
        thumbnails=np.frombuffer(sheet.getvalue(), np.uint8),
    )
    (found,) = [each for each in page_of(run).data if "points" in each]
    assert len(found["points"]) == len(found["thumbnails"]) == 6 and found["names"][1] == f"tile {EVIL} 1"
    assert all(uri.startswith("data:image/webp;base64,") for uri in found["thumbnails"])


def test_features_that_are_too_large_do_not_cost_the_page(
    make_pretraining: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = (run := make_pretraining()) / "pictures" / "features.npz"
    np.savez_compressed(
        path, features=np.zeros((2**13, 2**12)), names=np.array(["a"]), thumbnails=np.zeros(1, np.uint8)
    )
    monkeypatch.setattr("densepath.report.embedding.np.load", lambda *given, **options: pytest.fail("it was read"))
    assert read_embedding(run) is None
    monkeypatch.undo()
    sheet = io.BytesIO()
    Image.new("RGB", (20_000, 20_000)).save(sheet, "JPEG")
    np.savez(
        path, features=np.zeros((1, 2)), names=np.array(["a"]), thumbnails=np.frombuffer(sheet.getvalue(), np.uint8)
    )
    assert read_embedding(run) is None


def test_a_benchmarks_table_becomes_the_papers_table(tmp_path: Path) -> None:
    rows = [["random", "0–2", "51.0 ± 1.4", "—", "50.0"], ["<i>MoCo", "2", "57.5", "+6.5 (p < 0.001)", "—"]]
    part = {"heading": "Tissue", "columns": ["box AP"], "published": True, "rows": rows}
    record = {"title": "A table", "source": "a paper", "baseline": "random", "notes": ["a <note>"], "parts": [part]}
    (folder := tmp_path / "table").mkdir()
    (folder / "table.json").write_text(json.dumps(record))
    page = page_of(folder)
    assert page.rows == [["", "box AP"], ["weights", "seeds", "here", "vs. random", "paper"], *rows]
    assert "a <note>" in page.text and "A table" in page.text
    for name in ("curves", "sweeps"):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    shown = page_of(folder).text
    assert "length of pre-training" in shown and "number in which rows or tasks differ" in shown
    (folder / "table.json").write_text(json.dumps({**record, "parts": 3}))
    with pytest.raises(UserError, match=r"table\.json"):
        page_of(folder)


def test_a_slide_has_its_tissue_and_tiles_as_layers(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    write_slide(tmp_path / "slides" / "s<b>.tif", size=(512, 768))
    tile(data=tmp_path / "slides", out=tmp_path / "tiles", mpp=0.5, size=128, workers=0)
    page = page_of(tmp_path / "tiles")
    names = {each.get("alt") for each in page.of("img")}
    assert {"s<b>", "tissue", "tiles"} <= names
    assert {"opacity of tissue", "opacity of tiles"} <= {each.get("aria-label") for each in page.of("input")}
    ((block,), lines) = slide_layers(read_run(tmp_path / "tiles"), 9)
    assert lines == []
    found = block.layers["tiles"]
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(found.uri.split(",")[1]))).convert("RGBA"))
    assert drawn.shape[:2] == (512, 768) and 0.005 < (drawn[..., 3] > 128).mean() < 0.2


def test_the_cells_of_a_slide_are_layers_above_its_tiles(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    write_slide(tmp_path / "slides" / "s.tif", size=(512, 768))
    tile(data=tmp_path / "slides", out=tmp_path / "tiles", mpp=0.5, size=128, workers=0)
    cells = Cells.of([(100, 50), (101, 50), (300, 200)], (512, 768), ["<i>", "<i>", "b"])
    folder = folder_of_cells(tmp_path, tmp_path / "slides" / "s.tif", tmp_path / "tiles", cells, "0.5")
    ((block,), _) = slide_layers(read_run(folder), 9)
    assert list(block.layers) == ["<i> (2)", "b (1)", "tissue", "tiles"]
    drawn = np.asarray(
        Image.open(io.BytesIO(base64.b64decode(block.layers["b (1)"].uri.split(",")[1]))).convert("RGBA")
    )
    y, x = np.nonzero(drawn[..., 3] > 128)
    assert (y.mean(), x.mean()) == pytest.approx((200.5, 300.5), abs=1)
    assert {"opacity of <i> (2)", "opacity of tiles"} <= {
        each.get("aria-label") for each in page_of(folder).of("input")
    }


def folder_of_cells(tmp_path: Path, path: Path, data: Path, cells: Cells, mpp: str) -> Path:
    """The folder of ``cells`` of a slide or an image."""
    (folder := tmp_path / "cells").mkdir()
    write_cells(cell_path(folder, path.stem), cells)
    write_cell_rows(folder, [{"slide": path.stem, "path": str(path), "mpp": mpp, "cells": 3, "problem": ""}])
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": str(data), "source": "blobs", "points": None}))
    return folder


def test_cells_of_plain_images_are_layers(tmp_path: Path) -> None:
    save_picture(tmp_path / "images" / "a.png", 64)
    classes = [f"c{number}" for number in range(8)]
    cells = Cells.of([(number, 30) for number in range(8)], (64, 64), classes)
    folder = folder_of_cells(tmp_path, tmp_path / "images" / "a.png", tmp_path / "images", cells, "")
    ((block,), lines) = slide_layers(read_run(folder), 9)
    assert list(block.layers) == [f"c{number} (1)" for number in range(6)]
    assert lines == ["a: the first 6 of 8 classes of cells are drawn"]


def test_slides_have_the_micrometers_of_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a slide that does not say them, and a file that is too large."""
    pytest.importorskip("h5py")
    pixels = SlidePainter((512, 768), mpp=0.5, seed=3).part(0, 0, 512, 768)
    (tmp_path / "slides").mkdir()
    stored: dict[str, Any] = {"tile": (128, 128), "compression": "zlib", "photometric": "rgb", "metadata": None}
    tifffile.imwrite(tmp_path / "slides" / "s.tif", pixels, **stored)
    tile(data=tmp_path / "slides", out=tmp_path / "tiles", default_mpp=0.5, mpp=0.5, size=128, workers=0)
    ((block,), lines) = slide_layers(read_run(tmp_path / "tiles"), 9)
    assert list(block.layers) == ["tissue", "tiles"] and lines == []
    cells = Cells.of([(9, 9)], (512, 768), ["x"])
    folder = folder_of_cells(tmp_path, tmp_path / "slides" / "s.tif", tmp_path / "slides", cells, "0.5")
    assert list(slide_layers(read_run(folder), 9)[0][0].layers) == ["x (1)"]
    monkeypatch.setattr("densepath.report.slide_layers._LARGEST", 10)
    ((block,), lines) = slide_layers(read_run(tmp_path / "tiles"), 9)
    assert list(block.layers) == ["tiles"] and "tissue/s.geojson is larger than" in lines[0]


@pytest.mark.parametrize("name", ["report.txt", "report"])
def test_other_names_than_html_are_refused(make_pretraining: Make, name: str) -> None:
    with pytest.raises(UserError, match="html"):
        write_report([str(make_pretraining())], out=name)


def test_a_place_that_cannot_be_written_is_refused_before_the_runs_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a folder; use another path"):
        write_report([str(tmp_path / "no run")], out=tmp_path / "file" / "page.html")
