import errno

import pytest
import yaml

from densepath.core.errors import UserError
from densepath.core.files import writing
from densepath.core.remains import remove
from densepath.core.streams import say
from densepath.runs import folder
from densepath.runs.folder import differences, open_run, read_config
from densepath.runs.signals import Interrupted

CONFIG = {"data": "tiles", "method_options": {"queue_size": 64}, "optimizer": {"milestones": (1, 2)}, "epochs": 2}


def test_the_configuration_is_written_and_read_back(tmp_path):
    with open_run(tmp_path / "run", CONFIG, resume=False, note="densepath 1"):
        pass
    expected = {**CONFIG, "optimizer": {"milestones": [1, 2]}}
    assert read_config(tmp_path / "run") == expected
    assert (tmp_path / "run" / "config.yaml").read_text().startswith("# densepath 1\n")


def test_another_run_is_not_overwritten(tmp_path):
    with open_run(tmp_path, CONFIG, resume=False):
        pass
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="--resume"), open_run(tmp_path, {**CONFIG, "epochs": 3}, resume=False):
        pass
    assert (tmp_path / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_left_unchanged(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty"), open_run(tmp_path, CONFIG, resume=resume):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_with_other_options_names_them(tmp_path):
    with open_run(tmp_path, CONFIG, resume=False):
        pass
    changed = {**CONFIG, "method_options": {"queue_size": 32, "dim": 8}, "epochs": 3, "data": "elsewhere"}
    with (
        pytest.raises(UserError, match=r"values of epochs, method_options\.dim, method_options\.queue_size"),
        open_run(tmp_path, changed, resume=True, free=["data"]),
    ):
        pass
    with open_run(tmp_path, {**CONFIG, "data": "elsewhere"}, resume=True, free=["data"]):
        pass
    assert read_config(tmp_path)["data"] == "tiles"


def test_a_run_of_another_verb_is_not_one_to_train_longer(tmp_path):
    with open_run(tmp_path, {**CONFIG, "max_steps": None}, resume=False):
        pass
    with (
        pytest.raises(UserError, match=r"or name another folder$"),
        open_run(tmp_path, {"run": "run", "score": 0.5}, resume=True),
    ):
        pass


def test_resuming_what_never_began_begins(tmp_path):
    with open_run(tmp_path / "run", CONFIG, resume=True):
        pass
    assert read_config(tmp_path / "run") is not None


def test_differences_see_missing_and_added_names():
    assert differences({"a": 1, "b": {"c": 1}}, {"b": {"c": 2}, "d": None}, free=()) == ["a", "b.c", "d"]


def test_a_network_recorded_without_its_mark_is_the_same():
    plain, marked, other = ({"backbone": name} for name in ("resnet18", "resnet18*", "resnet50*"))
    assert differences(plain, marked, free=()) == []
    assert differences(marked, plain, free=()) == differences(plain, other, free=()) == ["backbone"]


def test_a_run_that_fails_at_once_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), open_run(tmp_path / "run", CONFIG, resume=False) as out:
        (out / "checkpoints").mkdir()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_later_keeps_what_it_has(tmp_path):
    with pytest.raises(RuntimeError), open_run(tmp_path / "run", CONFIG, resume=False) as out:
        (out / "metrics.csv").write_text("step\n1\n")
        raise RuntimeError
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("made", ["checkpoints/last.ckpt", "exported/backbone_epoch_1.safetensors"])
def test_an_error_of_the_user_leaves_what_took_time_to_compute(tmp_path, made):
    with pytest.raises(UserError), open_run(tmp_path, CONFIG, resume=False) as out:
        (out / made).parent.mkdir()
        (out / made).write_text("weights")
        raise UserError("1 of 16 images were found damaged")
    assert (tmp_path / made).exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143), Interrupted(2)])
@pytest.mark.parametrize("made", ["metrics.csv", "exported/best.safetensors"])
def test_a_run_that_is_stopped_before_its_first_measurements_leaves_nothing(tmp_path, stop, made):
    """Not only with the options whose runs begin without lists of images: the same command can start it again."""
    with pytest.raises(type(stop)), open_run(tmp_path / "run", CONFIG, resume=False, made=["images.txt"]) as out:
        (out / "images.txt").write_text("a.png")
        raise stop
    assert not (tmp_path / "run").exists()
    with pytest.raises(type(stop)), open_run(tmp_path / "run", CONFIG, resume=False) as out:
        (out / made).parent.mkdir(exist_ok=True)
        (out / made).write_text("step,loss\n1,2.5\n")
        raise stop
    assert (tmp_path / "run" / made).exists()


@pytest.mark.parametrize("end", [UserError("a wrong option"), Interrupted(15)])
def test_a_run_that_is_removed_leaves_what_others_have_put_there(tmp_path, end):
    with pytest.raises(type(end)), open_run(tmp_path / "run", CONFIG, resume=False, made=["seed_*"]) as out:
        say("written to the log")
        for name in ("seed_0/fold_1/study.txt", "checkpoints/x.part", "notes.txt", "sub/big.h5"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).touch()
        raise end
    left = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert left == ["config.yaml", "notes.txt", "sub/big.h5"]
    with open_run(out, CONFIG, resume=True):  # as the message says
        pass


def test_a_removed_run_holds_its_lock_to_the_end(tmp_path, monkeypatch):
    def removed(path):
        assert (path.parent / ".lock").exists()
        remove(path)

    monkeypatch.setattr(folder, "remove", removed)
    with pytest.raises(UserError), open_run(tmp_path / "run", CONFIG, resume=False):
        raise UserError("a wrong option")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_stopped_before_its_first_checkpoint_says_how_it_starts_again(tmp_path, capsys):
    with pytest.raises(SystemExit), open_run(tmp_path / "run", CONFIG, resume=False):
        raise SystemExit(143)
    said = f"densepath: stopped before anything was saved in {tmp_path / 'run'}; the same command with --resume starts"
    assert said in capsys.readouterr().err
    with open_run(tmp_path / "run", CONFIG, resume=True):
        pass


def test_a_run_that_fails_at_once_leaves_nothing_behind_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    with pytest.raises(UserError), open_run(tmp_path / "run", CONFIG, resume=False):
        raise UserError("a wrong option")
    assert (tmp_path / "run").is_symlink() and list((tmp_path / "disk").iterdir()) == []


def test_the_log_of_a_run_is_continued_and_has_the_error_that_ended_it(tmp_path):
    with open_run(tmp_path, CONFIG, resume=False) as out:
        say("first session")
        (out / "metrics.csv").write_text("step\n1\n")
    with pytest.raises(UserError), open_run(tmp_path, CONFIG, resume=True):
        raise UserError("no space")
    with pytest.raises(ZeroDivisionError), open_run(tmp_path, CONFIG, resume=True):
        print(1 / 0)
    first, second, *traceback, last = (tmp_path / "train.log").read_text().splitlines()
    assert (first, second) == ("first session", "densepath: error: no space")
    assert traceback[0].startswith("Traceback") and last == "ZeroDivisionError: division by zero"


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    with open_run(tmp_path, CONFIG, resume=False):
        pass
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".last.ckpt.123.part").write_text("half")
    (tmp_path / "checkpoints" / "last.ckpt").write_text("whole")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / ".backbone.safetensors.123.part").write_text("half")
    (tmp_path / ".mine.part").write_text("the user's own")
    with open_run(tmp_path, CONFIG, resume=True):
        pass
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".mine.part", "checkpoints/last.ckpt", "config.yaml"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_while_its_configuration_was_written_can_begin_again(tmp_path, resume):
    (tmp_path / ".config.yaml.123.part").write_text("data: ti")
    with open_run(tmp_path, CONFIG, resume=resume):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("text", ["a: [", "just text", "!!python/object/apply:os.mkdir [exploded]"])
def test_a_damaged_configuration_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_config(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_configuration_is_plain_yaml(tmp_path):
    with open_run(tmp_path, CONFIG, resume=False):
        pass
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["optimizer"] == {"milestones": [1, 2]}


@pytest.fixture
def trained(tmp_path):
    """The folder of a run with a checkpoint."""
    with open_run(tmp_path, CONFIG, resume=False):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.ckpt").touch()
    return tmp_path


@pytest.mark.parametrize("stop", [SystemExit(143), KeyboardInterrupt()])
def test_a_run_that_is_stopped_outside_its_training_says_how_it_continues(trained, stop, capsys):
    with pytest.raises(type(stop)), open_run(trained, CONFIG, resume=True):
        raise stop
    said = f"the same command with --resume continues {trained}"
    assert said in capsys.readouterr().err
    with pytest.raises(Interrupted), open_run(trained, CONFIG, resume=True):
        raise Interrupted(15)  # the training has said it
    assert capsys.readouterr().err == ""


def test_a_full_disk_at_the_end_of_a_run_says_how_it_continues(trained):
    with pytest.raises(UserError) as caught, open_run(trained, CONFIG, resume=True), writing("exported"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.remedy == f"; the run is saved: the same command with --resume continues {trained}"
    with pytest.raises(UserError) as caught, open_run(trained, CONFIG, resume=True):
        raise UserError("an option is wrong")
    assert caught.value.remedy == ""
