"""What makes two runs equal, and what makes them different."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import densepath
from densepath.benchmark import identity, row_runs
from densepath.benchmark.config import load_table
from densepath.benchmark.cost import describe, estimate
from densepath.benchmark.grid import make_grid
from densepath.benchmark.identity import Digests, code_digest, digest_of_given, digest_of_weights, read_tiles
from densepath.benchmark.labelled_sets import read_outlined as read_labelled
from densepath.benchmark.run_folder import RunFolder
from densepath.benchmark.steps import STEPS
from densepath.benchmark.steps.step import OPTIONS, as_words
from densepath.core.errors import UserError


@pytest.fixture
def lay_out(tissue, table, tmp_path):
    """A function that makes the grid of the table after changes of its text."""

    def lay(*changes, tiles=True, labelled=None, given=None, dry_run=False, **replaced):
        text = table.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "changed.yaml").write_text(text)
        kept = tmp_path / "kept"
        sets = {"tissue": labelled or read_labelled("tissue", tissue, kept)}
        found = read_tiles(tissue / "tiles", kept) if tiles else None
        changed = replace(load_table(tmp_path / "changed.yaml"), **replaced)
        return make_grid(changed, sets, found, given or {}, kept, dry_run=dry_run)

    return lay


def test_seeds_share_a_pre_training_or_have_their_own(lay_out):
    shared, own = lay_out(), lay_out(pretrain_seed=None)
    assert len(shared.runs) == 1 + 2 * 2 * 2
    assert len(own.runs) == 2 + 2 * 2 * 2
    assert {c.seed for c in own.runs.values() if c.verb == "pretrain"} == {0, 1}
    for (row, _, seed), run in own.places.items():
        assert (run.parent.seed if row == "MoCo" else run.seed) == seed
    for run in own.runs.values():
        names = list(own.runs)
        assert run.parent is None or names.index(run.parent.name) < names.index(run.name)
    assert own.budgets == {("MoCo", task): 80 * 4 for task in ("probe", "detect")}


def test_a_task_with_its_own_pre_training_has_its_own_budget(lay_out):
    grid = lay_out(("metrics: [box_ap50]", "metrics: [box_ap50]\n    pretrain: {max_steps: 40}"))
    assert grid.budgets == {("MoCo", "probe"): 80 * 4, ("MoCo", "detect"): 40 * 4}


def test_rows_with_equal_pre_training_share_it(lay_out):
    row = "  - {name: MoCo, recipe: moco_v2_small"
    grid = lay_out((row, f"{row.replace('MoCo', 'Twin')}}}\n{row}"))
    assert len(grid.runs) == 9
    assert grid.places["Twin", "probe", 0] is grid.places["MoCo", "probe", 0]


PRETRAINING, RANDOM, MOCO = {"pretrain"}, {"random probe", "random detect"}, {"MoCo probe", "MoCo detect"}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("max_steps: 80", "max_steps: 81", PRETRAINING | MOCO),
        ("queue_size: 16", "queue_size: 20", PRETRAINING | MOCO),
        ("{size: 64}", "{size: 96}", {"random probe", "MoCo probe"}),
        ("backbone: test_resnet", "backbone: resnet18", PRETRAINING | MOCO | RANDOM),
        ("weights: random", "weights: resnet18.a1_in1k", RANDOM),
        ("title: A table", "title: Another", set()),
        # An option that is set to its default changes nothing.
        ("max_steps: 80", "max_steps: 80, channels_last: true", set()),
        ("queue_size: 16}", "queue_size: 16, dim: 128}", set()),
        ("max_steps: 80", "max_steps: 80, optimizer: {clip_norm: 0, schedule: cosine}", set()),
        ("max_steps: 80", "max_steps: 80, optimizer: {clip_norm: 1}", PRETRAINING | MOCO),
        ("{size: 64}", "{size: 64, l2: 5.0e-5}", set()),
        ("seeds: [0, 1]", "seeds: [1, 0]", set()),
        # Another spelling of a value changes nothing: without a point, 1e-3 is a text in YAML.
        ("{size: 64}", "{size: '64', l2: 5e-5}", set()),
        ("max_steps: 80, batch_size: 4, view_size: 64", "max_steps: '80', batch_size: '4', view_size: [64]", set()),
        ("queue_size: 16}", "queue_size: '16', temperature: 2e-1}", set()),
        ("max_steps: 80", "max_steps: 80, optimizer: {clip_norm: 0e0}", set()),
    ],
)
def test_a_change_makes_new_runs_only_where_it_matters(lay_out, old, new, changed):
    def names(grid):
        found = {f"{row} {task}": set() for row, task, _ in grid.places}
        for (row, task, _), run in grid.places.items():
            found[f"{row} {task}"].add(run.name)
        return found | {"pretrain": {run.name for run in grid.runs.values() if run.verb == "pretrain"}}

    before, after = names(lay_out()), names(lay_out((old, new)))
    assert {what for what in before if before[what] != after[what]} == changed
    assert all(before[what].isdisjoint(after[what]) for what in changed)


def test_other_data_and_other_code_make_new_runs(lay_out, tissue, tmp_path, monkeypatch):
    before = set(lay_out().runs)
    data = read_labelled("tissue", tissue, tmp_path / "kept")
    other = set(lay_out(labelled=replace(data, digest="other")).runs)
    assert {name.split("-")[0] for name in before & other} == {"pretrain"}
    monkeypatch.setattr(row_runs, "code_digest", lambda verb: f"other {verb}")
    assert not before & set(lay_out().runs)


def test_a_changed_method_of_ones_own_makes_new_runs(lay_out, tmp_path, monkeypatch):
    own, recipe = tmp_path / "grid_method.py", tmp_path / "mine.yaml"
    own.write_text("from densepath.methods import MoCoV2\n\nclass Mine(MoCoV2):\n    pass\n")
    recipe.write_text("method: grid_method:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    change = ("recipe: moco_v2_small", f"recipe: {recipe}")
    before = lay_out(change)
    assert before.runs.keys() == lay_out(change).runs.keys()
    own.write_text(own.read_text() + "    # changed\n")
    common = before.runs.keys() & lay_out(change).runs.keys()
    assert common and all(before.runs[name].parent is None and before.runs[name].weights for name in common)
    assert pretraining(lay_out()).identity["code"] == code_digest(STEPS["pretrain"].code)


def test_excluded_tiles_are_left_out_of_the_table_and_of_its_pre_training(lay_out, tissue, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    tiles = read_tiles(tissue / "tiles", kept, ["*0[0-5].png"])
    assert [Path(name).name for name in tiles.names] == ["tile_000006.png", "tile_000007.png"]
    before = pretraining(lay_out())
    labelled = {"tissue": read_labelled("tissue", tissue, kept)}
    few = make_grid(load_table(tmp_path / "small.yaml"), labelled, tiles, {}, kept)
    assert pretraining(few).options["exclude"] == ["*0[0-5].png"]
    assert pretraining(few).name != before.name and "exclude" not in before.options
    (tissue.parent / "tiles.safetensors").touch()
    with pytest.raises(UserError, match="no effect on a packed store"):
        read_tiles(tissue.parent / "tiles.safetensors", kept, ["*"])


def words_of(root, run):
    """The words of a run's command, with those that its options file stands for."""
    words = RunFolder(root, run).command("cpu")
    return [*words, *as_words(run.options)] if f"--config={OPTIONS}" in words else words


def test_turned_images_are_read_as_the_user_says(lay_out, tissue, tmp_path):
    data = shutil.copytree(tissue, tmp_path / "turned")
    path = next((data / "test").iterdir())
    exif = Image.Exif()
    exif[274] = 3
    Image.open(path).save(path, exif=exif)
    with pytest.raises(UserError, match="say with --orientation"):
        read_labelled("tissue", data, tmp_path / "kept")
    grids = [lay_out(labelled=read_labelled("tissue", data, tmp_path / "kept", how)) for how in ("stored", "viewed")]
    for grid, how in zip(grids, ("stored", "viewed"), strict=True):
        runs = [run for run in grid.runs.values() if run.verb != "pretrain"]
        assert all(f"--orientation={how}" in words_of(tmp_path, run) for run in runs)
    assert {run.verb for name, run in grids[0].runs.items() if name in grids[1].runs} == {"pretrain"}


def test_the_code_digest_covers_the_packages_of_the_verb(monkeypatch, tmp_path):
    (tmp_path / "densepath" / "core").mkdir(parents=True)
    (tmp_path / "densepath" / "transfer").mkdir()
    (tmp_path / "densepath" / "core" / "a.py").write_text("a = 1")
    monkeypatch.setattr("densepath.benchmark.identity.files", lambda name: tmp_path / name)

    def digests():
        code_digest.cache_clear()
        return [code_digest(STEPS[verb].code) for verb in ("pretrain", "probe", "detect")]

    first = digests()
    (tmp_path / "densepath" / "transfer" / "b.py").write_text("b = 1")
    second = digests()
    (tmp_path / "densepath" / "core" / "a.py").write_text("a = 2")
    third = digests()
    code_digest.cache_clear()
    assert [x == y for x, y in zip(first, second, strict=True)] == [True, False, False]
    assert not any(x == y for x, y in zip(second, third, strict=True))


def test_the_packages_of_the_code_digest_exist():
    assert {"sources", "annotations"} <= set(STEPS["pretrain"].code)
    assert all((Path(densepath.__file__).parent / name).is_dir() for step in STEPS.values() for name in step.code)


def test_of_a_published_model_the_weights_and_the_configuration_count_only(tmp_path):
    for name in ("model.safetensors", "config.json", "README.md"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_text("{}")

    def digest():
        return digest_of_weights(str(tmp_path / "model"), tmp_path / "kept")

    first = digest()
    (tmp_path / "model" / "README.md").write_text("edited")
    assert digest() == first
    (tmp_path / "model" / "config.json").write_text('{"architecture": "test_vit"}')
    assert digest() != first


def test_of_a_given_run_the_exported_files_count_only(tmp_path):
    for name in ("exported/tokenizer.safetensors", "checkpoints/last.ckpt", "metrics.csv"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("some")

    def digest():
        return digest_of_given(tmp_path / "run", tmp_path / "kept")

    first = digest()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    (tmp_path / "run" / "metrics.csv").write_text("more")
    assert digest() == first
    (tmp_path / "run" / "exported" / "tokenizer.safetensors").write_text("another")
    assert digest() != first


def pretraining(grid):
    (run,) = (run for run in grid.runs.values() if run.verb == "pretrain")
    return run


VIT = "  - {name: ViT, weights: random, backbone: test_vit, detect: {detector: vitdet_small, batch_size: 3}}\n"


def test_a_row_can_have_its_own_detector_options(lay_out, tmp_path):
    grid = lay_out(("rows:\n", f"rows:\n{VIT}"))
    words = words_of(tmp_path, grid.places["ViT", "detect", 0])
    assert {"--backbone=test_vit", "--detector=vitdet_small", "--batch_size=3", "--max_steps=2"} <= set(words)
    assert grid.places["ViT", "detect", 0].images == 2 * 3 + 2  # no batch norms to re-estimate
    assert grid.places["MoCo", "detect", 0].options["detector"] == "mask_rcnn_fpn_small"
    assert "detector" not in grid.places["ViT", "probe", 0].options


@pytest.mark.parametrize(
    ("old", "new"), [(", detect: {detector: vitdet_small, batch_size: 3}", ""), ("_vit,", "_resnet,")]
)
def test_a_detector_that_does_not_fit_is_refused_before_anything_runs(lay_out, old, new):
    with pytest.raises(UserError, match=r"the row 'ViT': the detector \w+ does not fit test_"):
        lay_out(("rows:\n", f"rows:\n{VIT.replace(old, new)}"))


def test_segment_anything_replaces_the_detector_and_one_run_serves_all_seeds(lay_out, tmp_path):
    row = "  - {name: SAM, weights: facebook/sam-vit-base, sam: {prompt: box}}\n"
    probe = "  - {name: probe, verb: probe, data: tissue, table: Tissue, column: probe, metrics: [mean_iou, dice],\n"
    without_probe = (f"{probe}     options: {{size: 64}}}}\n", "")
    changes = [("probe: [50.0, null]", ""), without_probe, ("rows:\n", f"rows:\n{row}")]
    grid = lay_out(*changes)
    run = grid.places["SAM", "detect", 0]
    assert run is grid.places["SAM", "detect", 1] and run.images == 2
    words = RunFolder(tmp_path, run).command("cpu", workers=2)[3:]
    assert words[0] == "sam" and words[1].startswith("--data=")
    assert words[2:] == ["--devices=cpu", "--weights=facebook/sam-vit-base", "--prompt=box", "--out=run"]
    other = lay_out(*changes[:2], ("rows:\n", f"rows:\n{row.replace('box', 'point')}")).places["SAM", "detect", 0]
    assert other.digest != run.digest
    folder = RunFolder(tmp_path, run)
    (folder.path / "run").mkdir(parents=True)
    folder.begin([], "a machine")
    (folder.path / "run" / "metrics.json").write_text('{"scale": "percent", "mask_ap": 50.0}')
    assert folder.finish(1.0) == {"mask_ap": 50.0}


def test_a_row_is_left_out_until_its_needs_are_given(lay_out, tmp_path):
    need = ("curve: MoCo,", "curve: MoCo, needs: {start: weights},")
    grid = lay_out(need)
    assert {row for row, _, _ in grid.places} == {"random"}
    assert grid.skipped == ["no row 'MoCo': it needs start (--given start=...)"]
    given = {"start": tmp_path / "start.pth"}
    (tmp_path / "start.pth").write_bytes(b"one")
    first = pretraining(lay_out(need, given=given))
    assert first.options["weights"] == str(tmp_path / "start.pth")
    (tmp_path / "start.pth").write_bytes(b"two, longer")
    second = pretraining(lay_out(need, given=given))
    assert first.digest != second.digest


def test_the_files_of_a_given_pattern_count(lay_out, tmp_path, monkeypatch):
    need, given = ("curve: MoCo,", "curve: MoCo, needs: {start: regions},"), {"start": str(tmp_path / "*.pth")}
    (tmp_path / "start.pth").write_bytes(b"one")
    first = pretraining(lay_out(need, given=given))
    monkeypatch.chdir(tmp_path)
    for pattern in ("*.pth", f"{tmp_path}/../{tmp_path.name}/*.pth"):
        assert pretraining(lay_out(need, given={"start": pattern})).digest == first.digest
    (tmp_path / "start.pth").rename("begin.pth")  # regions belong to the images of their names
    assert pretraining(lay_out(need, given=given)).digest != first.digest
    (tmp_path / "begin.pth").rename("start.pth")
    (tmp_path / "start.pth").write_bytes(b"two, longer")
    assert pretraining(lay_out(need, given=given)).digest != first.digest


def test_the_content_of_files_that_options_name_counts(lay_out, tmp_path):
    recipe, start, probed = tmp_path / "mine.yaml", tmp_path / "start.pth", tmp_path / "probed.txt"
    recipe.write_text(f"method: moco_v2\nweights: {start}\nprobe_data: {probed}\n")
    change = ("recipe: moco_v2_small", f"recipe: {recipe}")
    names = []
    for content in ("one", "two, longer", "one"):
        start.write_text(content)
        probed.write_text(f"{len(names)} lines")  # on what a run is only watched
        names.append(pretraining(lay_out(change)).name)
    assert names[0] == names[2] != names[1]
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "splits_0.csv").write_text("train,test")
    options = {"splits": str(tmp_path / "splits"), "classes": [str(recipe), "a=b"], "target": str(tmp_path)}
    kept = tmp_path / "kept"
    known = row_runs._identity(STEPS["mil"], options, 0, "data", Digests(kept))["options"]
    assert known["classes"] == [digest_of_given(recipe, kept), "a=b"]
    assert known["splits"] == digest_of_given(tmp_path / "splits", kept)
    assert known["target"] == str(tmp_path)  # a text that happens to be a folder, as the separator / is


@pytest.mark.parametrize("given", [False, True])
def test_of_a_published_model_as_initial_weights_the_readme_does_not_count(lay_out, tmp_path, given):
    recipe, model = tmp_path / "mine.yaml", tmp_path / "model"
    model.mkdir()
    recipe.write_text("method: moco_v2\n" if given else f"method: moco_v2\nweights: {model}\n")
    change = ("recipe: moco_v2_small", f"recipe: {recipe}" + ", needs: {start: weights}" * given)
    names = []
    for name in ("model.safetensors", "README.md", "config.json"):
        (model / name).write_text("{}")
        names.append(pretraining(lay_out(change, given={"start": str(model)} if given else None)).name)
    assert names[0] == names[1] != names[2]


def test_a_folder_that_an_option_names_is_read_once(lay_out, tmp_path, monkeypatch):
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "model.safetensors").write_text("weights")
    read, content = [], identity.content
    monkeypatch.setattr(identity, "content", lambda paths, cache: (read.extend(paths), content(paths, cache))[1])
    (tmp_path / "mine.yaml").write_text(f"method: moco_v2\nweights: {tmp_path}/start\n")
    grid = lay_out(("recipe: moco_v2_small", f"recipe: {tmp_path}/mine.yaml"), pretrain_seed=None)
    assert sum(run.verb == "pretrain" for run in grid.runs.values()) == 2
    assert [Path(path).name for path in read].count("model.safetensors") == 1


def test_of_a_run_folder_only_the_weights_count(lay_out, tmp_path):
    run = tmp_path / "R"
    (run / "exported").mkdir(parents=True)
    (run / "exported" / "backbone.safetensors").write_bytes(b"weights")
    row = ("weights: random", f"weights: {run}")
    before = set(lay_out(row).runs)
    (run / "metrics.csv").write_text("step")
    assert set(lay_out(row).runs) == before
    (run / "exported" / "backbone.safetensors").write_bytes(b"other weights")
    assert {name for name in before - set(lay_out(row).runs)} == {name for name in before if "-R-" in name} != set()


def test_of_a_published_model_all_files_count(lay_out, tmp_path):
    """Its configurations say how the pixels are normalized; its weights may be in parts."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    (model / "model-00001-of-00001.safetensors").write_bytes(b"weights")
    (model / "config.json").write_text("{}")
    row = ("weights: random", f"weights: {model}")
    before = lay_out(row).places["random", "probe", 0]
    (model / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    assert lay_out(row).places["random", "probe", 0].digest != before.digest


def test_weights_that_do_not_exist_are_reported_before_any_run(lay_out, tmp_path):
    (tmp_path / "begun").mkdir()  # a run without weights yet
    for weights, why in (
        ("missing.pth", "there are no weights 'missing.pth'"),
        ("resnet18.none", "there are no weights 'resnet18.none'"),
        (str(tmp_path / "begun"), "holds neither weights"),
    ):
        row = ("weights: random", f"weights: {weights}")
        with pytest.raises(UserError, match=f"the row 'random': .*{why}"):
            lay_out(row)
        dry = lay_out(row, dry_run=True)  # which has the runs of the other rows
        assert dry.runs and {name for name, _, _ in dry.places} == {"MoCo"}
        assert len(dry.skipped) == 1 and why in dry.skipped[0]


@pytest.mark.parametrize("given", [False, True])
def test_missing_initial_weights_of_a_recipe_are_reported_before_any_run(lay_out, tmp_path, given):
    recipe, begun = tmp_path / "mine.yaml", tmp_path / "begun"
    begun.mkdir()  # a run without weights yet
    recipe.write_text("method: moco_v2\n" if given else f"method: moco_v2\nweights: {begun}\n")
    change = ("recipe: moco_v2_small", f"recipe: {recipe}" + ", needs: {start: weights}" * given)
    starts = {"start": str(begun)} if given else None
    with pytest.raises(UserError, match=r"the row 'MoCo': .*begun holds neither weights"):
        lay_out(change, given=starts)
    dry = lay_out(change, given=starts, dry_run=True)
    assert dry.runs and {name for name, _, _ in dry.places} == {"random"}
    assert len(dry.skipped) == 1 and dry.skipped[0].startswith("the row 'MoCo': ")


def test_a_row_of_random_weights_takes_no_folder_of_that_name(lay_out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = lay_out().places["random", "detect", 0]
    (tmp_path / "random" / "exported").mkdir(parents=True)
    (tmp_path / "random" / "exported" / "backbone.safetensors").write_bytes(b"weights")
    run = lay_out().places["random", "detect", 0]
    assert (run.digest, run.weights) == (before.digest, "random")
    assert "--weights=random" in RunFolder(tmp_path, run).command("cpu")
    other = lay_out(("weights: random", "weights: ./random")).places["random", "detect", 0]
    assert other.weights == str(tmp_path / "random") and other.digest != before.digest


def test_moved_weights_do_not_change_the_command_of_a_run(lay_out, tmp_path):
    """Otherwise a detector could not be resumed: its configuration names the weights."""
    commands = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "start.pth").write_bytes(b"weights")
        run = lay_out(("weights: random", f"weights: {tmp_path / place / 'start.pth'}")).places["random", "detect", 0]
        folder = RunFolder(tmp_path, run)
        folder.path.mkdir(exist_ok=True)
        commands.append(folder.command("cpu"))
        folder.begin(commands[-1], "a machine")
        assert (folder.path / "weights.pth").samefile(tmp_path / place / "start.pth")
    assert commands[0] == commands[1]
    assert "--weights=weights.pth" in commands[0]


def test_rows_that_pre_train_are_left_out_without_tiles(lay_out):
    grid = lay_out(tiles=False)
    assert {row for row, _, _ in grid.places} == {"random"}
    assert grid.skipped == ["no row 'MoCo': it pre-trains, so it needs --tiles"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("recipe: moco_v2_small", "recipe: moco_v2_smal", "the row 'MoCo': no recipe is called"),
        ("queue_size: 16", "queue_sise: 16", "the row 'MoCo': the method moco_v2 has no option 'queue_sise'"),
        ("max_steps: 2,", "schedule: 7x,", "no schedule is called '7x'"),
    ],
)
def test_a_mistake_in_a_row_is_reported_before_anything_runs(lay_out, old, new, message):
    with pytest.raises(UserError, match=re.escape(message)):
        lay_out((old, new))


def test_the_command_of_a_run_can_be_typed(lay_out, tmp_path):
    grid = lay_out()
    run = grid.places["MoCo", "detect", 1]
    words = words_of(tmp_path, run)[1:]
    assert words[:3] == ["-m", "densepath", "detect"]
    assert {
        "--config=options.yaml",
        "--seed=1",
        "--train_size=[64, 64]",
        "--devices=cpu",
        "--resume",
        "--out=run",
    } <= set(words)
    assert f"--weights=../{run.parent.name}/run" in words
    words = RunFolder(tmp_path, grid.places["random", "probe", 0]).command("1")
    assert {"--weights=random", "--devices=auto", "--out=scores.json", "--size=64"} <= set(words)


def test_the_cost_is_assumed_until_a_similar_run_is_measured(lay_out, table, tmp_path):
    grid = lay_out(pretrain_seed=None)
    runs = [run for verb in ("pretrain", "probe") for run in grid.runs.values() if run.verb == verb]
    pretraining, probing = estimate(runs, tmp_path)
    assert (pretraining.runs, pretraining.done, pretraining.assumed, pretraining.unknown) == (2, 0, 2, 0)
    assert pretraining.hours == pytest.approx(2 * (320 / 100 + 10) / 3600)  # images, rate and start-up time
    assert (probing.runs, probing.unknown, probing.hours) == (4, 4, 0)
    folder = RunFolder(tmp_path, runs[0])
    folder.path.mkdir()
    folder.begin([], "a machine")
    (folder.path / "run" / "exported").mkdir(parents=True)
    (folder.path / "run" / "exported" / "backbone.safetensors").touch()
    (folder.path / "run" / "metrics.csv").write_text("step,epoch,loss\n80,1,2.5\n")
    assert folder.finish(900.0) == {"step": 80, "loss": 2.5}
    pretraining, _ = estimate(runs, tmp_path)
    assert (pretraining.done, pretraining.assumed, pretraining.hours) == (1, 0, 0.25)
    lines = describe([pretraining, probing], load_table(table), 2)
    assert "0.25 device hours left, 0.12 h on 2 devices in parallel" in " ".join(lines)
    assert "no estimate for 4 runs" in lines[-1]
    (folder.path / "run" / "exported" / "backbone.safetensors").unlink()
    assert folder.result() is None  # a pre-training without its weights is not done
