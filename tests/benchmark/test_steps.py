"""Steps on slides and on images with classes: what depends on what, and real runs."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from densepath.benchmark.config import load_table
from densepath.benchmark.grid import make_grid
from densepath.benchmark.identity import ImageSet
from densepath.benchmark.labelled_sets import LabelledSet, read_classes, read_labelled, read_slides, read_unlabelled
from densepath.benchmark.overlap import check_overlap
from densepath.benchmark.results import collect
from densepath.benchmark.steps import STEPS, TASKS
from densepath.benchmark.steps.step import _refuse_relative
from densepath.benchmark.tables import to_markdown
from densepath.benchmark.verb import read_tasks
from densepath.cli import main
from densepath.core.errors import UserError
from densepath.synthetic.arranged import write_arranged

TABLE = """
seeds: [0, 1]
pretrain_seed: 0
baseline: random
backbone: test_resnet
missing: not available
pretrain: {max_steps: 80, batch_size: 4, view_size: 64, method_options: {queue_size: 16}}
rates: {of: one core, pretrain: 100, embed: 50, mil: 10, classify: 20}
p_values: {slides: 0.002}
tasks:
  - {name: slides, verb: mil, data: lung, table: Lung, metrics: [macro_auc, auc_sorted],
     options: {splits: split, grouping: single, epochs: 1, attention: 0}}
  - {name: tiles, verb: classify, data: mhist, tiles: lung, table: MHIST, metrics: [accuracy], seeds: [0],
     options: {epochs: 1, validation: 0.5}, pretrain: {max_steps: 40}}
rows:
  - {name: random, weights: random, paper: {slides: [50.0, null]}}
  - {name: MoCo, recipe: moco_v2_small, paper: {slides: [60.5, null]}}
  - {name: with masks, recipe: concl_saliency_small, needs: {masks: regions}}
  - {name: of others, paper: {slides: [61.5, null]}}
"""


_CLASSIFY = """verb: classify, data: mhist, tiles: lung, table: MHIST, metrics: [accuracy], seeds: [0],
     options: {epochs: 1, validation: 0.5}"""


def images(count, slides=()):
    names = tuple(map(str, range(count)))
    return ImageSet("nowhere", f"digest {count}", names, names, slides=slides)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "mine.yaml").write_text(TABLE)
    return tmp_path / "mine.yaml"


def lay(table, change=("", ""), tiles=None, given=None):
    table.write_text(TABLE.replace(*change))
    slides = LabelledSet("lung", images(6), images(4), "lung", inputs={"table": "labels.csv"}, tiles=90)
    patches = LabelledSet("mhist", images(20), images(8), "mhist", inputs={"labels": "labels.csv"})
    config, seen = load_table(table), images(100) if tiles is None else tiles
    return config, make_grid(config, {"lung": slides, "mhist": patches}, seen, given or {}, table.parent)


def test_models_of_bags_learn_from_features_of_the_pre_trained_weights(table):
    grid = lay(table)[1]
    bags = [grid.places["MoCo", "slides", seed] for seed in (0, 1)]
    assert bags[0] is not bags[1] and bags[0].parent is bags[1].parent
    embed = bags[0].parent
    assert (embed.verb, embed.images, embed.parent.verb, embed.inputs) == ("embed", 90, "pretrain", {})
    assert bags[0].images == 1 * 6 + 4 and bags[0].inputs == {"table": "labels.csv"}
    assert "backbone" not in bags[0].options and embed.options["backbone"] == "test_resnet"
    own = [grid.places["random", "slides", seed].parent for seed in (0, 1)]  # other random weights for each seed
    assert own[0].name != own[1].name and own[0].parent is None
    assert grid.places["MoCo", "tiles", 0].parent.options["max_steps"] == 40  # of the task
    assert ("MoCo", "tiles", 1) not in grid.places
    names = list(grid.runs)
    assert all(run.parent is None or names.index(run.parent.name) < names.index(run.name) for run in grid.runs.values())
    assert not any(row == "of others" for row, _, _ in grid.places)
    assert grid.skipped == ["no row 'with masks': it needs masks (--given masks=...)"]

    changed = lay(table, ("options: {splits", "embed: {pool: mean}, options: {splits"))[1]
    assert changed.places["MoCo", "slides", 0].parent.name != embed.name
    assert changed.places["MoCo", "slides", 0].parent.parent.name == embed.parent.name
    same = lay(table, ("options: {splits", "embed: {batch_size: 64}, options: {splits"))[1]
    assert same.places["MoCo", "slides", 0].name == bags[0].name


def test_each_set_may_have_its_own_tiles_and_inputs(table):
    moved = ("tiles: lung", "tiles: brca")
    given = {"lung.masks": "a"}
    grid = lay(table, moved, {"lung": images(100), "brca": images(70)}, given)[1]
    digests = [grid.places["MoCo", task, 0] for task in ("slides", "tiles")]
    assert (
        digests[0].parent.parent.identity["data"] == "digest 100" and digests[1].parent.identity["data"] == "digest 70"
    )
    assert ("with masks", "slides", 0) in grid.places and ("with masks", "tiles", 0) not in grid.places
    only = lay(table, moved, {"lung": images(100)}, given)[1]
    assert ("MoCo", "slides", 0) in only.places and ("MoCo", "tiles", 0) not in only.places
    assert "no row 'MoCo': it pre-trains, so it needs --tiles brca=FOLDER" in only.skipped


def test_unknown_numbers_and_the_best_two_rows_are_named(table, tmp_path, monkeypatch):
    config, grid = lay(table)
    scores = {"random": {0: 40.0, 1: 42.0}, "MoCo": {0: 55.0, 1: 58.0}}
    results = collect(config, grid, tmp_path / "runs")
    for row, values in scores.items():
        results.entries[row, "slides", "macro_auc"].values.update(values)
    text = to_markdown(results, [], None)
    assert "not available" in text and "| of others | 0 | — | — | 61.5 |" in text
    (line,) = [line for line in text.splitlines() if "second best" in line]
    # differences 15 and 16: t = 15.5 / 0.5, p = 1 - 2 atan(31) / pi = 0.0205
    assert "MoCo is 15.5 above random (p = 0.021); the paper: of others is 1.0 above MoCo (p = 0.002)." in line


def test_test_slides_among_those_of_pre_training_are_refused():
    test = ImageSet("", "d", ("test/a", "test/b"), ("", ""), slides=("test/a", "test/b"))
    data = LabelledSet("lung", images(2), test, "d", folds=True)
    for names, shared in ((("a", "c"), "1 of 2 test slides"), (("x/test/b.svs", "test/a"), "2 of 2 test slides")):
        with pytest.raises(UserError, match=shared):
            check_overlap([images(9, names)], [data])
    assert check_overlap([images(9, ("train/a", "aa"))], [data]) == []


@pytest.mark.parametrize("verb", TASKS)
def test_a_step_has_an_assumed_cost_metrics_and_checked_options(verb):
    step = STEPS[verb]
    assert step.metrics and step.images({}, LabelledSet("a", images(5), images(3), "a")) > 0
    assert not {"data", "out", "seed", "weights", "resume"} & set(step.free)
    with pytest.raises(UserError, match="has no 'nonsense'"):
        step.check({"nonsense": 1}, "mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("verb: mil", "verb: mli"), "has the verb 'mli'; use one of"),
        (("macro_auc, auc", "macro_acu, auc"), "mil gives no 'macro_acu'; did you mean macro_auc"),
        (("{splits: split", "{table: a.csv, splits: split"), "has no 'table'"),
        (("p_values: {slides", "p_values: {sildes"), "did you mean slides"),
        (("seeds: [0]", "embed: {pool: mean}"), "classify uses no features"),
        (("{name: of others, paper", "{name: of others, needs: {a: labels}, paper"), "nothing to pre-train"),
        (
            (_CLASSIFY, "verb: probe task, data: mhist, metrics: [knn_accuracy], options: {neighbors: 5}"),
            "the row 'random' on the task 'tiles': probe task needs task; add it",
        ),
    ],
)
def test_a_mistake_in_a_step_is_named(table, change, message):
    with pytest.raises(UserError, match=message):
        lay(table, change)


@pytest.mark.parametrize(
    ("option", "given", "remedy"),
    [
        ("splits", "tables/a.json", "{here}/tables/a.json"),
        ("splits", "tables", "{here}/tables"),
        ("splits", "./tables/", "{here}/tables"),
        ("splits", "tables/none.json", "its absolute path"),
        ("splits", "~/a.json", "{here}/tables/a.json"),
        ("splits", "~/none.json", "its absolute path"),
        ("splits", "split", None),  # a column
        ("teacher_weights", "resnet50.pth", "{here}/resnet50.pth"),
        ("teacher_weights", "~/a.json", "{here}/tables/a.json"),
        ("teacher_weights", "https://x.org/a.pth", None),
        ("teacher_weights", "timm/resnet50.a1_in1k", None),
        ("teacher_weights", "random", None),
        ("teacher", "resnet50", None),
        ("teacher", "hf-hub:a/b", None),
        ("labels", "folders", None),
    ],
)
def test_paths_that_start_in_the_current_folder_are_refused(tmp_path, monkeypatch, option, given, remedy):
    """A run starts in its own folder, where a name or a keyword is not the file that is called so here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "tables"))
    (tmp_path / "tables").mkdir()
    for name in ("tables/a.json", "resnet50.pth", "random", "resnet50", "folders"):
        (tmp_path / name).touch()
    if remedy is None:
        assert _refuse_relative(option, [given]) is None
        return
    with pytest.raises(UserError) as error:
        _refuse_relative(option, [given])
    assert str(error.value) == f"{option} is {given}, a relative path; write {remedy.format(here=tmp_path)}"


def test_a_relative_path_in_a_table_is_refused(table, monkeypatch):
    (table.parent / "mysplits").mkdir()
    (table.parent / "mysplits" / "splits_0.csv").touch()
    monkeypatch.chdir(table.parent)
    with pytest.raises(UserError, match="splits is mysplits, a relative path; write /"):
        lay(table, ("splits: split", "splits: mysplits"))


def test_a_recipe_of_a_task_may_name_the_learning_rate_in_short(table, tmp_path):
    (tmp_path / "fast.yaml").write_text("lr: 5e-1\noptimizer: {name: adamw}\n")
    recipe = f"seeds: [0], recipe: {tmp_path / 'fast.yaml'},"
    tasks = lay(table, ("seeds: [0],", recipe))[0].tasks
    assert tasks[1].options["optimizer"] == {"lr": 0.5, "name": "adamw"}
    for text, message in (
        ("epoch: 3\n", "has no 'epoch'; did you mean epochs"),
        ("lr: 1\noptimizer: {lr: 2}\n", "fast.yaml: lr and optimizer.lr are the same option"),
    ):
        (tmp_path / "fast.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            lay(table, ("seeds: [0],", recipe))
    with pytest.raises(UserError, match="the options of the task 'tiles'"):
        lay(table, ("options: {epochs: 1, validation: 0.5}", f"recipe: {tmp_path / 'fast.yaml'}, options: 5"))


@pytest.mark.parametrize("folder", [False, True])
def test_a_column_of_splits_may_be_called_like_what_lies_in_the_current_folder(table, monkeypatch, folder):
    monkeypatch.chdir(table.parent)
    (Path.mkdir if folder else Path.touch)(table.parent / "split")
    mil = next(run for run in lay(table)[1].runs.values() if run.verb == "mil")
    assert mil.options["splits"] == "split"


def test_a_table_of_slides_and_of_images_is_computed(tmp_path, tissue, command_line):
    def done(words):
        process = command_line(words, tmp_path)
        err = process.communicate(timeout=300)[1]
        assert process.returncode == 0, err
        return err

    write_arranged(tmp_path / "A", pairs=4, test=0.5, side=640)
    done("tile --data A --out T --mpp 0.5 --size 96 --workers 0")
    lines = [
        f"tiles/{path.name},{'ab'[i % 2]},{'test' if i > 5 else 'train'}"
        for i, path in enumerate(sorted((tissue / "tiles").iterdir()))
    ]
    (tmp_path / "P").mkdir()
    (tmp_path / "P" / "tiles").symlink_to(tissue / "tiles")
    (tmp_path / "P" / "labels.csv").write_text("\n".join(["file,label,split", *lines]) + "\n")
    (tmp_path / "mine.yaml").write_text(TABLE)
    line = "benchmark --config mine.yaml --data lung=T mhist=P --out B --devices cpu --seeds 0 --rows random"
    assert "lung: 4 training and 4 test slides" in done(line)
    runs = {path.parent.name.split("-")[0]: json.loads(path.read_text()) for path in tmp_path.glob("B/runs/*/run.json")}
    assert runs.keys() == {"embed", "mil", "classify"}
    with (tmp_path / "B" / "table.csv").open(newline="") as file:
        found = {(row["task"], row["metric"]): float(row["mean"]) for row in csv.DictReader(file) if row["mean"]}
    (scores,) = tmp_path.glob("B/runs/mil-*/run/scores.json")
    assert found["slides", "macro_auc"] == json.loads(scores.read_text())["scores"]["macro_auc"]["value"]
    (scores,) = tmp_path.glob("B/runs/classify-*/run/metrics.json")
    assert found["tiles", "accuracy"] == json.loads(scores.read_text())["scores"]["accuracy"]["mean"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("B/runs/*/*")}
    done(line)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("B/runs/*/*")} == before  # no run was repeated

    cache = tmp_path / "cache"
    first = read_slides("lung", tmp_path / "T", cache, None, {"splits": "split"})
    (tmp_path / "A" / "labels.csv").write_text((tmp_path / "A" / "labels.csv").read_text().replace("spread", "loose"))
    assert read_slides("lung", tmp_path / "T", cache, None, {"splits": "split"}).digest != first.digest
    assert read_slides("lung", tmp_path / "T", cache, None, {}).folds  # no split: all are tested
    with pytest.raises(UserError, match="not a folder that densepath tile wrote"):
        read_slides("lung", tmp_path / "A", cache, None, {})
    assert read_classes("mhist", tmp_path / "P", cache, None, {}).test.names != ()


def test_tasks_share_a_set_only_if_they_read_it_alike(table, monkeypatch):
    def read(name, folder, cache, orientation, options):
        return LabelledSet(name, images(2), images(1), str(options))

    for verb in ("mil", "classify"):
        monkeypatch.setitem(STEPS, verb, replace(STEPS[verb], read=read))
    config = load_table(table)
    slides, tiles = config.tasks
    ways = {"target": {"target": "grade"}, "longer": {"epochs": 2}}
    tasks = [slides, tiles, *(replace(tiles, name=name, options=options) for name, options in ways.items())]
    found = read_tasks(replace(config, tasks=tuple(tasks)), {"mhist": "x"}, table.parent, None)
    assert list(found) == ["tiles", "target", "longer"]
    assert found["tiles"] is found["longer"] and found["target"].digest == "{'target': 'grade'}"


def test_a_probe_of_classes_and_attention_are_steps(tmp_path, tissue, monkeypatch):
    images = tmp_path / "P" / "images"
    images.mkdir(parents=True)
    lines = ["file,label,split"]
    for number, path in enumerate(sorted((tissue / "tiles").iterdir())):
        (images / path.name).symlink_to(path)
        lines.append(f"images/{path.name},{'ab'[number % 2]},{'validation' if number > 5 else 'train'}")
    (tmp_path / "P" / "manifest.csv").write_text("\n".join(lines) + "\n")
    data = read_labelled("pcam", tmp_path / "P", tmp_path / "cache", None, {})
    assert (len(data.train.names), len(data.test.names), data.folds) == (6, len(lines) - 7, False)
    network = "test_vit(class_token=False, global_pool='avg', fc_norm=False)"
    folders = {verb: tmp_path / verb for verb in ("probe classes", "show attention")}
    for verb, options in (
        ("probe classes", {"neighbors": 1, "size": 160}),
        ("show attention", {"examples": 0, "count": 3, "view_size": 48}),
    ):
        step, folder = STEPS[verb], folders[verb]
        folder.mkdir()
        monkeypatch.chdir(folder)
        inputs = [f"--{name}={value}" for name, value in data.inputs.items() if verb == "probe classes"]
        words = [*(step.command or verb).split(), f"--data={data.folder}", f"--backbone={network}", "--devices=cpu"]
        assert main([*words, *inputs, *step.words(options, "random", None)]) == 0
    scores = STEPS["probe classes"].result(folders["probe classes"])
    written = json.loads((folders["probe classes"] / "scores.json").read_text())
    assert scores == {name: written[name] for name in STEPS["probe classes"].metrics}
    assert written["test_images"] == len(lines) - 7
    shares = STEPS["show attention"].result(folders["show attention"])
    assert sum(shares.values()) == pytest.approx(100, abs=1e-3) and shares["even_share"] > shares["high_share"]
    assert read_unlabelled("pcam", tmp_path / "P", tmp_path / "cache", None, {}) == data
    (images / "more.png").symlink_to(sorted((tissue / "tiles").iterdir())[0])
    with pytest.raises(UserError, match="all images are of one class"):  # now, not after hours of pre-training
        read_labelled("pcam", images, tmp_path / "cache", None, {})
    assert read_unlabelled("pcam", images, tmp_path / "cache", None, {}).folds


def test_folders_of_splits_above_those_of_classes_are_the_split(tmp_path, tissue):
    paths = sorted((tissue / "tiles").iterdir())
    for path, place in zip(paths, ("train/a/0", "train/b/1", "train/a/2", "test/a/3", "test/b/4"), strict=False):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{place}.png").symlink_to(path)
    data = read_labelled("pcam", tmp_path, tmp_path / "cache", None, {})
    assert (len(data.train.names), len(data.test.names), data.folds) == (3, 2, False)
    assert data.inputs == {"labels": "folders"}
