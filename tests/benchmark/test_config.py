"""The tables that come with the package, compared with the papers' texts; invalid tables."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from densepath.benchmark.config import config_names, load_table
from densepath.benchmark.cost import estimate
from densepath.benchmark.grid import make_grid
from densepath.benchmark.identity import ImageSet
from densepath.benchmark.labelled_sets import LabelledSet
from densepath.benchmark.steps.pretraining import pretraining_options
from densepath.benchmark.verb import benchmark_table
from densepath.core.errors import UserError
from densepath.training.nested_options import merged


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # lists of images are written


def images(count):
    names = tuple(f"{number}.png" for number in range(count))
    return ImageSet("nowhere", "digest", names, names)


def grid_of(table, tiles=80_000):
    labelled = {task.data: LabelledSet(task.data, images(85), images(80), task.data) for task in table.tasks}
    given = {name: "something" for row in table.rows for name in row.needs}
    return make_grid(table, labelled, images(tiles), given, Path("nowhere"))


@pytest.mark.parametrize("name", config_names())
def test_every_table_has_a_grid(name):
    table = load_table(name)
    grid = grid_of(table, tiles=800)
    assert grid.skipped == []
    rows = sum(row.runs for row in table.rows)
    assert len(grid.places) == rows * sum(len(task.seeds or table.seeds) for task in table.tasks)
    assert all(run.rate for run in grid.runs.values())
    assert sum(cost.hours for cost in estimate(list(grid.runs.values()), Path("nowhere"))) > 0


@pytest.mark.parametrize("name", [name for name in config_names() if name.endswith("_small")])
def test_the_help_names_the_small_tables(name):
    assert f'"{name}"' in str(benchmark_table.__doc__)


def test_the_table_in_the_docs_has_a_grid(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "benchmark_tables.md"
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.yaml").write_text(text)
    table = load_table(tmp_path / "mine.yaml")
    mine = {"mine": LabelledSet("mine", images(4), images(2), "mine")}
    grid = make_grid(table, mine, images(100), {}, Path("nowhere"))
    assert len(grid.places) == 4 * 2 * 3
    assert [run.images for run in grid.runs.values() if run.verb == "pretrain"] == [2000 * 64] * 6


def test_a_recipe_with_another_backbone_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("{method: moco_v2, epochs: 1, backbone: resnet50}")
    table = load_table("table4_stage")
    rows = (table.rows[0], replace(table.rows[1], recipe=str(tmp_path / "mine.yaml"), options={}))
    with pytest.raises(UserError, match=r"backbone resnet50, but the row has resnet18; make them equal"):
        grid_of(replace(table, rows=rows))
    grid_of(replace(table, rows=(rows[0], replace(rows[1], backbone="resnet50"))))


def numbers(table, row, task):
    return next(entry.paper[task] for entry in table.rows if entry.name == row)


def test_table_1_agrees_with_the_text():
    table = load_table("table1")
    assert len(table.rows) == 16
    # Section 4.1: DenseCL gains 1.6 over MoCo-v2 on GlaS; section 4.4: b-ConCL 4.5, and 6.2 AP75.
    assert round(numbers(table, "DenseCL", "glas")[0] - numbers(table, "MoCo-v2", "glas")[0], 1) == 1.6
    gains = [x - y for x, y in zip(*(numbers(table, row, "glas") for row in ("b-ConCL f4", "MoCo-v2")), strict=True)]
    assert [round(gain, 1) for gain in gains[:2]] == [4.5, 6.2]


def test_table_3_has_the_papers_differences():
    table = load_table("table3")
    expected = {"glas": [4.8, 4.5, 4.0, 4.1, 3.3], "crag": [4.6, 5.1, 5.2, 4.8, 4.2]}
    for data, differences in expected.items():
        for schedule, difference in zip(("0.5x", "1x", "2x", "3x", "5x"), differences, strict=True):
            task = f"{data}_{schedule}"
            assert round(numbers(table, "b-ConCL", task)[0] - numbers(table, "MoCo-v2", task)[0], 1) == difference


def test_table_4_agrees_with_table_1():
    first = load_table("table1")
    for name, ours in (("weight", "b-ConCL λ=1.0"), ("clusters", "b-ConCL K=8"), ("stage", "b-ConCL f4")):
        table = load_table(f"table4_{name}")
        for data in ("glas", "crag"):
            assert numbers(table, "MoCo-v2", data) == numbers(first, "MoCo-v2", data)[:2]
            assert numbers(table, ours, data) == numbers(first, "b-ConCL f4", data)[:2]
    stages, both = load_table("table4_stage"), "b-ConCL f5"
    assert numbers(stages, both, "crag") == numbers(first, both, "crag")[:2]


def test_pcrls_tables_agree_with_each_other_and_with_the_text():
    modules, images = load_table("pcrl_table2"), load_table("pcrl_figure4a")
    for task in ("a90", "a80"):
        assert numbers(modules, "PCRL", task) == numbers(images, "PCRL", task)
    for table in (images, load_table("pcrl_figure4b")):  # PCRL is the best of each column, which has a p-value
        assert set(table.p_values) == {task.name for task in table.tasks}
        for task in table.tasks:
            scores = {row.name: row.paper[task.name][0] for row in table.rows}
            assert max(scores, key=lambda name: scores[name]) == "PCRL"
    # Without pre-training it does not matter on what it is: 90% are the unlabelled images, 10% the labelled ones.
    for task, same in (("a90", "c10"), ("a80", "c20"), ("a70", "c30"), ("a60", "c40")):
        assert numbers(images, "TS", task) == numbers(images, "TS", same)
    assert numbers(load_table("pcrl_figure4b"), "Cube++", "lits_10") == [74.2]


def test_dirls_table_6_agrees_with_the_text():
    table = load_table("dirl_table6")
    # "slightly lower than Method-2 and Method-3" is F1; accuracy: Cellback-S is the best of BRIGHT, DiRL-S of Lung.
    for data, best in (("lung", "DiRL-S"), ("bright3", "Cellback-S"), ("bright6", "Cellback-S")):
        scores = {row.name: row.paper[data][0] or 0 for row in table.rows}
        assert max(scores, key=lambda name: scores[name]) == best
    # "0.911 vs. 0.911 in baseline, AUC of 0.967 vs. 0.967"
    assert numbers(table, "Baseline-S with L_sup", "lung") == numbers(table, "Baseline-S", "lung") == [91.1, 96.7]


def test_conv_mims_tables_agree_with_its_table_1():
    first = load_table("conv_mim_table1")
    same = [("2", "SparK", "SparK"), ("2", "Conv-MIM", "Conv-MIM")]
    same += [("4", "800 epochs", "Conv-MIM"), ("5", "ResNet-18", "Conv-MIM")]
    for number, row, counterpart in same:
        for data in ("glas", "crag"):
            assert numbers(load_table(f"conv_mim_table{number}"), row, data) == numbers(first, counterpart, data)[:2]
    for row in ("Rand. init.", "Conv-MIM"):
        assert numbers(load_table("conv_mim_table3"), row, "crag_1x") == numbers(first, row, "crag")
    # Section 4.3: "0.9/1.1 and 0.5/0.4 higher" than Emb. masking.
    for data, expected in (("glas", [0.9, 1.1]), ("crag", [0.5, 0.4])):
        rows = (numbers(load_table("conv_mim_table2"), row, data) for row in ("Conv-MIM", "Emb. masking"))
        assert [round(x - y, 1) for x, y in zip(*rows, strict=True)] == expected


def test_conv_mims_table_1_agrees_with_the_text():
    rows = {row.name: row for row in load_table("conv_mim_table1").rows}
    ours = rows.pop("Conv-MIM").paper
    for row in rows.values():  # section 4.2: "the best performance across all evaluation metrics"
        for data in ("glas", "crag"):
            best = [number < own for number, own in zip(row.paper[data], ours[data], strict=True)]
            misprint = (row.name, data) == ("Rand. init., ViT-S/16", "crag")
            assert best == [not misprint, True, True, True], row.name
    transformers = {name for name, row in rows.items() if row.steps.get("detect", {}).get("detector") == "vitdet"}
    assert transformers == {name for name, row in rows.items() if row.backbone.startswith(("vit_", "deit3_"))}
    # Section 4.2: EVA is the best transformer on GlaS.
    assert max(transformers, key=lambda name: rows[name].paper["glas"]) == "EVA, ViT-S/16"


def test_given_inputs_reach_the_method_of_a_row():
    runs = grid_of(load_table("conv_mim_table1")).runs.values()
    options = {run.label: run.options for run in runs if run.verb == "pretrain"}
    assert options["pretrain-eva"]["teacher"] == options["pretrain-beit_v2"]["tokenizer"] == "something"
    assert options["pretrain-supervised"]["labels"] == "something"


def test_segment_anything_improves_with_more_informative_prompts():
    table = load_table("conv_mim_table6")
    *untrained, own = table.rows
    assert [row.sam["prompt"] for row in untrained] == ["automatic", "point", "box"]
    assert own.recipe == "conv_mim"
    assert len([run for run in grid_of(table).runs.values() if run.verb == "sam"]) == 3 * 2  # for any number of seeds
    for data in ("glas", "crag"):
        boxes, masks = zip(*(row.paper[data] for row in untrained), strict=True)
        assert list(masks) == sorted(masks)
        assert [box is None for box in boxes] == [
            False,
            True,
            True,
        ]  # a prompt gives the location, so there is no box AP
    assert numbers(table, "SAM, true boxes", "crag")[1] > 56.4  # the mask AP of the paper's own method, in its Table 1


def test_runs_have_the_length_of_the_papers():
    runs = grid_of(load_table("table4_stage")).runs.values()
    assert {run.images for run in runs if run.verb == "pretrain"} == {200 * 80_000}
    # 1x: 5000 steps of 16 on GlaS, 15000 on CRAG; 200 batches for the norms, and the test images.
    assert {run.images for run in runs if run.verb == "detect"} == {5200 * 16 + 80, 15200 * 16 + 80}


def test_concl_warms_up_for_20_epochs_for_any_length_of_the_run():
    checked = 0
    for name in config_names():
        for row in load_table(name).rows:
            options = row.pretraining({}) if row.recipe else {}
            if options.get("method") == "concl" and options.get("epochs") and "without warm-up" not in row.name:
                assert options["method_options"]["warmup"] * options["epochs"] == pytest.approx(20), (name, row.name)
                checked += options["epochs"] > 200
    assert checked == 3


def test_the_small_table_compares_concepts_by_ap_in_half_an_hour(tmp_path):
    table = load_table("glas_small")
    asked = {"random": None, "MoCo-v2": "moco_v2", "DenseCL": "densecl", "g-ConCL": "concl_grid", "b-ConCL": "concl"}
    rows = {row.name: row.recipe for row in table.rows}
    assert all(rows[name] == (recipe and f"{recipe}_small") for name, recipe in asked.items())
    assert {run.images for run in grid_of(table).runs.values() if run.verb == "pretrain"} == {1200 * 64}
    assert {"box_ap", "mask_ap"} <= {metric for task in table.tasks for metric in task.metrics}
    hours = sum(cost.hours for cost in estimate(list(grid_of(table).runs.values()), tmp_path))
    assert 0.45 < hours < 0.55


def test_merged_options_override_others():
    recipe = {"epochs": 200, "method_options": {"stage": 4, "warmup": 0.1}, "batch_size": 256}
    over = {"max_steps": 10, "method_options": {"stage": 5}}
    assert merged(recipe, over) == {"max_steps": 10, "method_options": {"stage": 5, "warmup": 0.1}, "batch_size": 256}
    assert recipe["method_options"]["stage"] == 4


def test_one_augment_option_of_a_row_keeps_the_methods_others():
    """As on the command line: MAE keeps its colors unchanged."""
    for options, given in (({"augment": {"flip": 0.0}}, {}), ({}, {"augment.flip": 0.0})):
        row = pretraining_options("mae_small", options, "vit_tiny_patch16_224", given)
        colors = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "interpolation": "bicubic"}
        assert row["augment"] == {**colors, "flip": 0.0}
    assert "augment" not in pretraining_options("mae_small", {}, "vit_tiny_patch16_224", {})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline: random", "baseline: none", "'none' is not a row"),
        ("baseline: random", "baselines: random", "did you mean baseline"),
        ("seeds: [0, 1]", "seeds: []", "seeds must be a list"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "distinct whole numbers"),
        ("seeds: [0, 1]", "seeds: [true]", "distinct whole numbers"),
        ("verb: probe", "verb: prob", "'prob'"),
        ("mean_iou, dice", "mean_iou, dise", "did you mean dice"),
        ("{size: 64}", "{sizes: 64}", "did you mean size"),
        ("{size: 64}", "{seed: 64}", "no 'seed'"),
        ("mask_rcnn_fpn_small", "mask_rcnn_fpm", "did you mean mask_rcnn_fpn"),
        ("name: detect", "name: probe", "two tasks are called 'probe'"),
        ("name: MoCo", "name: random", "two rows are called 'random'"),
        ("recipe: moco_v2_small", "weights: x, recipe: y", "either a recipe or weights"),
        ("recipe: moco_v2_small", "colour: red", "no 'colour'"),
        ("recipe: moco_v2_small", "weights: x, sam: {prompt: box}", "works with detect tasks only"),
        ("recipe: moco_v2_small", "recipe: moco_v2_small, detect: {detector: vitdett}", "did you mean vitdet"),
        ("recipe: moco_v2_small", "recipe: moco_v2_small, detect: {shedule: 1x}", "did you mean schedule"),
        ("recipe: moco_v2_small", "recipe: moco_v2_small, detect: vitdet", "must be lines"),
        ("verb: detect", "verb: sam", "use one of probe, probe task, probe classes, detect, "),
        ("[50.0, null]", "[50.0]", "1 paper number for probe; give 2"),
        ("[50.0, null]", "[x, null]", "give numbers, or null"),
        ("pretrain: 100", "pretrain: 0", "images per second"),
        ("rates: {of: one core, pretrain: 100}", "rates: fast", "rates must be lines"),
        ("max_steps: 80", "max_stepz: 80", "did you mean max_steps"),
        ("backbone: test_resnet", "backbone: 18", "not text; put it in quotes"),
        ("name: MoCo", "name: 2", "not text; put it in quotes"),
        ("verb: detect", "verb: [detect]", "not text; put it in quotes"),
        ("tasks:\n", "tasks:\n  - probe\n", "a task must be lines"),
        ("recipe: moco_v2_small", "recipe: moco_v2_small, needs: {labels: 3}", "name the option that takes it"),
        ("{size: 64}", "{size: big}", "the task 'probe': size takes a whole number, not 'big'"),
        ("train_size: [64, 64]", "train_size: 64", "the task 'detect': train_size takes 2 values"),
        ("max_steps: 80", "max_steps: -2", "the row 'MoCo': max_steps is -2"),
        ("batch_size: 4", "batch_size: 0", "the row 'MoCo': batch_size is 0"),
        ("batch_size: 4", "optimizer: {lr: -1}", "the row 'MoCo': the learning rate must be positive"),
        ("test_size: 64}", "test_size: 1}", "the row 'random' on the task 'detect': train_size is [64, 64] and test"),
        ("max_steps: 80", "max_steps: many", "the row 'MoCo': max_steps takes a whole number"),
        ("queue_size: 16", "queue_size: few", "the row 'MoCo': method_options.queue_size takes a whole number"),
        ("max_steps: 80", "precision: 16", "the row 'MoCo': precision takes one of auto, 32, bf16-mixed"),
        ("max_steps: 80", "max_steps: 80, epochs: 1", "all rows (pretrain) has epochs and max_steps; give one"),
        ("recipe: moco_v2_small", "recipe: moco_v2_small, options: {max_steps: 1, epochs: 1}", "give one of them"),
        ("recipe: moco_v2_small", "recipe: moco_v2_smal", "the row 'MoCo': no recipe is called"),
        (
            "metrics: [box_ap50]\n    options: {detector: mask_rcnn_fpn_small",
            "metrics: [mask_ap50]\n    options: {detector: retinanet",
            "the task 'detect' has no mask_ap50: retinanet finds boxes only",
        ),
        ("data: tissue, table", "data: tis/sue, table", "use a name without / and ="),
        ("title: A table", "title: [", "not valid YAML"),
        ("title: A table", "- title", "not valid YAML"),
        ("title: A table", "title: A table\ntitle: Another", "title in line 2 and again in line 3; keep one"),
    ],
)
def test_an_invalid_table_is_refused(table, old, new, message):
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_table(table)
    assert str(error.value).startswith(f"the table {table}")
