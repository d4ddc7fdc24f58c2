"""Options of version 0.1 by the names of today."""

import pytest
import yaml

from densepath.core.errors import UserError
from densepath.runs.folder import read_config
from densepath.runs.old_options import refuse_moved, rename_options, rename_record
from densepath.runs.sessions import planned_steps
from densepath.training.config import PretrainConfig
from densepath.training.recipes import load_recipe
from densepath.training.resolve import resolve
from densepath.verbs import VERBS


@pytest.mark.parametrize(
    ("method", "old", "run", "now"),
    [
        ("concl", {"batch_norm": "shuffled", "batch_norm_group": 32}, ("per_process", 32), {"shuffle": True}),
        ("moco_v2", {"batch_norm": "per_process", "batch_norm_group": 0}, ("per_process", 0), {"shuffle": False}),
        ("pcl_v2", {"batch_norm": "synchronized", "batch_norm_group": 0}, ("synchronized", 0), {"shuffle": True}),
        ("simclr", {"batch_norm": "per_process", "batch_norm_group": 4}, ("per_process", 4), {}),
        ("byol", {"batch_norm": "synchronized", "batch_norm_group": 0}, ("synchronized", 0), {}),
    ],
)
def test_the_record_of_an_old_run_is_that_of_the_same_run_today(tmp_path, method, old, run, now):
    record = {"method": method, "method_options": {"dim": 64, **old}, "epochs": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record))
    options = {"method": method, "method_options": {"dim": 64, **now}, "epochs": 2}
    assert read_config(tmp_path) == {**options, "batch_norm": run[0], "batch_norm_group": run[1]}
    assert load_recipe(tmp_path / "config.yaml") == read_config(tmp_path)  # with --config


def test_a_method_without_batch_norms_had_those_of_each_process(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"method": "mae", "method_options": {}}))
    assert read_config(tmp_path) == {
        "method": "mae",
        "method_options": {},
        "batch_norm": "per_process",
        "batch_norm_group": 0,
    }


def test_a_recipe_gets_no_options_that_it_does_not_set():
    assert rename_options({"method_options": {"batch_norm_group": 8}}) == {"method_options": {}, "batch_norm_group": 8}
    assert rename_options({"method": "mae", "epochs": 1}) == {"method": "mae", "epochs": 1}


def test_what_names_files_is_an_option_of_the_run(tmp_path):
    """A record is read by the names of today; in a recipe the new name is asked for, unless nothing was set."""
    files = {"concept_files": "maps", "concept_cache": None, "teacher": "", "labels": "folders", "tokenizer": "t"}
    record = {"method": "concl", "method_options": {"num_concepts": 3, **files}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record))
    now = {"regions": "maps", "cache_dir": None, "teacher": None, "labels": "folders", "tokenizer": "t"}
    norms = {"batch_norm": "per_process", "batch_norm_group": 0}
    assert read_config(tmp_path) == {"method": "concl", "method_options": {"num_concepts": 3}, **now, **norms}
    with pytest.raises(UserError, match=r"sets method_options\.concept_files, which is now regions \(--regions\)"):
        load_recipe(tmp_path / "config.yaml")
    record["method_options"] |= {"concept_files": None, "tokenizer": ""}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record))
    assert load_recipe(tmp_path / "config.yaml") == {"method": "concl", "method_options": {"num_concepts": 3}}


@pytest.mark.parametrize(
    ("method", "old", "new"),
    [("supervised", "labels", "labels"), ("concl", "concept_files", "regions"), ("eva", "teacher", "teacher")],
)
def test_an_old_name_is_refused_with_the_new_one(method, old, new):
    given = {"data": "tiles", "out": "run", "method": method, "method_options": {old: "x"}}
    with pytest.raises(UserError, match=rf"^method\.{old} is now --{new}$"):
        resolve(PretrainConfig, None, given)
    with pytest.raises(UserError, match=rf"^--method\.{old} is now --{new}$"):
        VERBS["pretrain"].command("pretrain").parse(["--method", method, f"--method.{old}", "x"])


def test_the_options_of_a_users_own_method_stay_its_own():
    own = {"method": "mine:Own", "method_options": {"teacher": "x", "batch_norm": "mine", "labels": "l"}}
    assert rename_options(own) == own == refuse_moved(own, "it")
    assert rename_record(own)["method_options"] == own["method_options"]


def test_the_steps_of_an_old_run_are_read_from_a_file_with_damaged_bytes(tmp_path):
    (tmp_path / "sessions.yaml").write_bytes(b"- step: 0\n  data:\n    steps: 56\n  command: caf\xc3\n")
    assert [planned_steps(tmp_path, steps) for steps in (55, 54)] == [56, 54]
