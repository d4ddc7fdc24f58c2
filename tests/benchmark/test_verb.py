"""A small table with real runs from the first to the last: stopped, resumed, repeated, failing."""

import csv
import json
import math
import re
import signal
from pathlib import Path

import pytest

from densepath.benchmark.verb import benchmark_table
from densepath.core.errors import UserError


def ended(process, code=0):
    """The output of a process that must end with an exit code."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def notes(out):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(Path(out).glob("runs/*/run.json"))}


def test_a_table_is_stopped_and_resumed_and_has_the_scores_of_its_runs(tissue, table, tmp_path, command_line):
    line = f"benchmark --config {table} --data {tissue} --tiles {tissue}/tiles --out T --devices cpu"

    out, err = ended(command_line(f"{line} --dry_run", tmp_path))
    assert err.count("to do  ") == 9
    assert {path.name for path in (tmp_path / "T").iterdir()} == {"contents"}

    process = command_line(line, tmp_path)
    while not list(tmp_path.glob("T/runs/pretrain-*/run/metrics.csv")):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    ended(process, 128 + signal.SIGINT)
    (started,) = [name for name, note in notes(tmp_path / "T").items() if note["identity"]["verb"] == "pretrain"]
    assert "result" not in notes(tmp_path / "T")[started]
    assert (tmp_path / "T" / "runs" / started / "run" / "checkpoints" / "last.ckpt").is_file()

    out, err = ended(command_line(line, tmp_path))
    assert out == "T/table.md\n"
    assert "resuming run at step" in (tmp_path / "T" / "runs" / started / "log.txt").read_text()
    runs = notes(tmp_path / "T")
    assert len(runs) == 9 and all("result" in note for note in runs.values())

    # The table's numbers are the runs' scores, averaged here by hand.
    with (tmp_path / "T" / "table.csv").open(newline="") as lines:
        rows = {(row["row"], row["metric"]): row for row in csv.DictReader(lines)}
    for source, weights in {"random": "random", "MoCo": started}.items():
        for verb, metric in (("probe", "mean_iou"), ("probe", "dice"), ("detect", "box_ap50")):
            file = {"probe": "scores.json", "detect": "run/metrics.json"}[verb]
            mine = [n for n, note in runs.items() if note["weights"] == weights and note["identity"]["verb"] == verb]
            scores = [json.loads((tmp_path / "T" / "runs" / name / file).read_text())[metric] for name in mine]
            mean = sum(scores) / 2
            row = rows[source, metric]
            assert float(row["mean"]) == pytest.approx(mean)
            assert float(row["std"]) == pytest.approx(math.sqrt(sum((score - mean) ** 2 for score in scores)))
            assert row["n"] == "2"
    assert rows["MoCo", "box_ap50"]["paper"] == "12.5"
    assert (tmp_path / "T" / "curves.png").stat().st_size > 5000

    # The folder refuses another table. The same one may be edited; a plot that it no longer has is removed.
    written = (tmp_path / "T" / "table.md").read_text()
    other = table.rename(tmp_path / "other.yaml")
    _, err = ended(command_line(line.replace("small.yaml", "other.yaml"), tmp_path), 2)
    assert err.splitlines()[-1].startswith("densepath: error: T holds the table small; use another folder for other")
    assert (tmp_path / "T" / "table.md").read_text() == written
    table.write_text(re.sub(r", curve: \w+", "", other.read_text()).replace("title: A table", "title: Mine"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("T/runs/*/*")}
    ended(command_line(line, tmp_path))
    assert (tmp_path / "T" / "table.md").read_text().startswith("# Mine\n")
    assert not (tmp_path / "T" / "curves.png").exists()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("T/runs/*/*")} == before  # no run was repeated


def test_a_run_that_fails_is_reported_and_the_others_continue(tissue, table, tmp_path, command_line):
    text = table.read_text()
    table.write_text(
        text[: text.index("  - name: detect")] + "rows:\n"
        "  - {name: random, weights: random}\n"
        "  - {name: broken, weights: broken.safetensors}\n"
    )
    (tmp_path / "broken.safetensors").write_text("no weights")
    line = f"benchmark --config {table} --data {tissue} --out T --devices cpu:2 --seeds 3"
    _, err = ended(command_line(line, tmp_path), 2)
    last = err.splitlines()[-1]
    assert last.startswith("densepath: error: 1 of 2 runs failed, first probe-tissue-broken-seed3-")
    assert "broken.safetensors" in last and "log.txt" in last
    done = [name for name, note in notes(tmp_path / "T").items() if "result" in note]
    assert len(done) == 1 and done[0].startswith("probe-tissue-random-seed3-")
    written = (tmp_path / "T" / "table.md").read_text()
    assert "- Failed: probe-tissue-broken-seed3-" in written
    assert "- 1 of 2 runs are done." in written


def test_segment_anything_is_scored_with_each_kind_of_prompt(tissue, table, tmp_path, command_line, tiny_sam):
    generator = "points_per_side: 3, predicted_iou: 0.0, stability: 0.0, "
    rows = [
        f"  - {{name: {prompt}, weights: {tiny_sam}, sam: {{prompt: {prompt}, {generator}pictures: 0}}}}\n"
        for prompt in ("automatic", "point", "box")
    ]
    text = table.read_text()
    probe, detect = text.index("  - {name: probe"), text.index("  - name: detect")
    text = text[:probe] + text[detect : text.index("rows:")] + "rows:\n" + "".join(rows)
    table.write_text(text.replace("baseline: random", "baseline: box").replace("[box_ap50]", "[box_ap50, mask_ap50]"))
    ended(command_line(f"benchmark --config {table} --data {tissue} --out T --devices cpu", tmp_path))
    assert len(notes(tmp_path / "T")) == 3  # one for both seeds
    with (tmp_path / "T" / "table.csv").open(newline="") as lines:
        scored = {(row["row"], row["metric"]) for row in csv.DictReader(lines) if row["mean"]}
    assert scored == {*((row, "mask_ap50") for row in ("automatic", "point", "box")), ("automatic", "box_ap50")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ["tissue=nowhere"]}, "nowhere is not a data set"),
        ({"data": []}, "--data tissue=FOLDER"),
        ({"data": ["gals=x"]}, "no labelled set 'gals'"),
        ({"data": ["x", "y"]}, "write NAME=VALUE"),
        ({"tiles": "nowhere"}, "nowhere does not exist"),
        ({"rows": ["MoCoo"]}, "no row 'MoCoo'"),
        ({"baseline": "none"}, "no row 'none'"),
        ({"seeds": [1, 1]}, "distinct whole numbers"),
        ({"devices": "gpu"}, "cuda:0,1"),
        ({"devices": f"cpu:{10**21}"}, "up to 1,024"),
        ({"devices": 10**21}, "up to 1,024"),
        ({"executor_options": ["a=1"]}, "give --executor too, or leave them out"),
        ({"devices": "cuda:64"}, "GPUs"),
        ({"config": "glas_prob"}, "did you mean glas_probe"),
    ],
)
def test_a_mistake_is_reported_in_one_line_and_leaves_no_table(change, message, tissue, table, tmp_path):
    options = {
        "config": table,
        "out": tmp_path / "T",
        "data": [str(tissue)],
        "tiles": tissue / "tiles",
        "devices": "cpu",
    }
    with pytest.raises(UserError, match=message):
        benchmark_table(**{**options, **change})
    assert not list(tmp_path.glob("T/*.md")) and not list(tmp_path.glob("T/runs"))


def test_overlap_ends_the_command_unless_it_is_allowed(tissue, table, tmp_path, capsys):
    options = {"config": table, "data": [str(tissue)], "tiles": tissue / "test", "devices": "cpu"}
    with pytest.raises(UserError, match="2 of 2 test images are among the tiles for pre-training"):
        benchmark_table(out=tmp_path / "T", **options)
    assert benchmark_table(out=tmp_path / "T", **options, allow_overlap=True, dry_run=True) is None
    printed = capsys.readouterr().err
    assert "OVERLAP, which was allowed. tissue: 2 of 2 test images are among the tiles" in printed
    assert "tissue: 3 training and 2 test images, digest " in printed
    assert [path.name for path in (tmp_path / "T").iterdir()] == ["contents"]


def test_a_folder_with_other_files_is_not_touched(tissue, table, tmp_path):
    (tmp_path / "T").mkdir()
    (tmp_path / "T" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        benchmark_table(config=table, out=tmp_path / "T", data=[str(tissue)], devices="cpu")
    assert [path.name for path in (tmp_path / "T").iterdir()] == ["thesis.txt"]
