"""A resumed run is the run that was started: its folder, its images, its checkpoint, its length."""

import json
import shutil
import subprocess
import sys
import time
from unittest.mock import Mock

import numpy as np
import pytest
import timm
from PIL import Image

from densepath.core.errors import UserError
from densepath.nets.weights import weights_file
from densepath.runs.checkpoints import newest_checkpoint, write_checkpoint
from densepath.training.export import export
from densepath.training.model_card import card_path
from densepath.training.pretrain import pretrain
from densepath.training.saver import Saver

from .toy import fit_toy

SMALL = {"backbone": "test_resnet", "batch_size": 8, "view_size": 48, "log_every": 1, "devices": "cpu", "workers": 0}
RUN = {**SMALL, "method": "moco_v2", "method_options": {"queue_size": 32}, "precision": "32", "max_steps": 3}


@pytest.fixture
def out(tmp_path, tiles):
    return pretrain(data=tiles, out=tmp_path / "run", **RUN)


def change_checkpoint(out, change):
    state = newest_checkpoint(out / "checkpoints")
    change(state)
    write_checkpoint(out / "checkpoints", state)


def change_option(out, name, old, new):
    """Change the record of an option in a run that is at its second step."""
    recorded, line = out / "config.yaml", f"\n{name}: {{}}\n"
    assert line.format(old) in recorded.read_text()
    recorded.write_text(recorded.read_text().replace(line.format(old), line.format(new)))
    config = json.loads(newest_checkpoint(out / "checkpoints")["config"]) | {name: new}
    change_checkpoint(out, lambda state: state.update(step=2, config=json.dumps(config)))
    (out / "exported" / "backbone.safetensors").unlink()


def at_step_2(state):
    state["step"] = 2


def resume(tiles, out, **options):
    return pretrain(data=tiles, out=out, resume=True, **{**RUN, **options})


def swap(tiles):
    for old, new in (("00", "x"), ("01", "00"), ("x", "01")):
        (tiles / f"{old}.png").rename(tiles / f"{new}.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: (t / "00.png").rename(t / "z.png"), "names of the images, or their order"),
        (lambda t: Image.new("RGB", (64, 64)).save(t / "05.png"), "have been replaced .*: their sizes differ"),
        (swap, "have been replaced .*: their (sizes|contents) differ"),
    ],
)
def test_other_images_are_refused(out, tiles, change, message):
    change(tiles)
    with pytest.raises(UserError, match=rf"{message}.*restore them, or start another run: --weights .*/run --out"):
        resume(tiles, out)


def test_images_that_have_moved_are_the_same_and_runs_before_the_digests_resume(out, tiles, tmp_path):
    moved = tiles.rename(tmp_path / "moved")
    change_checkpoint(out, at_step_2)
    assert resume(moved, out) == out
    (moved / "00.png").rename(moved / "z.png")
    known = {"images": 40, "steps": 3, "processes": 1}
    change_checkpoint(out, lambda state: state.update(step=2, facts=known))
    assert resume(moved, out) == out
    assert newest_checkpoint(out / "checkpoints")["step"] == 3


def test_the_checkpoint_of_another_run_is_refused(out, tiles, tmp_path):
    other = pretrain(data=tiles, out=tmp_path / "other", **RUN, seed=1)
    shutil.rmtree(out / "checkpoints")
    shutil.copytree(other / "checkpoints", out / "checkpoints")
    with pytest.raises(UserError, match=r"belongs to a run with other values of seed than .*; undo what was changed"):
        resume(tiles, out)


def test_a_run_whose_checkpoints_were_removed_keeps_its_weights_or_says_that_it_starts_again(out, tiles, capsys):
    shutil.rmtree(out / "checkpoints")
    weights, measured = ((out / name).read_bytes() for name in ("exported/backbone.safetensors", "metrics.csv"))
    with pytest.raises(UserError, match=r"its checkpoints were removed; use the weights \(--weights .*run\), or name"):
        resume(tiles, out)
    assert weights == (out / "exported/backbone.safetensors").read_bytes()
    assert measured == (out / "metrics.csv").read_bytes()
    for name in ("backbone_epoch_1", "backbone_step_2", "best"):  # also written before the first checkpoint
        shutil.copy(out / "exported" / "backbone.safetensors", out / "exported" / f"{name}.safetensors")
    (out / "exported" / "backbone.safetensors").unlink()
    resume(tiles, out)
    assert f"densepath: {out} has no checkpoint, so the run starts again" in capsys.readouterr().err
    assert (out / "metrics.csv").read_bytes().count(b"\n") == 4


def test_an_export_of_a_run_in_progress_is_not_taken_for_its_weights(out, tiles):
    final = out / "exported" / "backbone.safetensors"
    change_checkpoint(out, at_step_2)
    final.unlink()
    first = export(out)
    assert first == final.with_name("backbone_step_2.safetensors") and weights_file(out).name == "last.ckpt"
    with pytest.raises(UserError, match=r"is not complete, and exported/backbone\.safetensors there means that it is"):
        export(out, final)
    card = card_path(first).read_text()
    first.replace(final)  # as earlier versions called it
    earlier = card.replace("backbone_step_2", "backbone").replace("\n- ", "\n- initial: backbone.safetensors\n- ", 1)
    card = card.replace("\n- ", "\n- initial: backbone.safetensors\n- ", 1)  # a file of another run of that name
    card_path(first).unlink()
    card_path(final).write_text(earlier)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saver, "save", Mock(side_effect=KeyboardInterrupt))
        resume(tiles, out)
    assert first.is_file() and not final.exists()
    assert earlier != card == card_path(first).read_text() and not card_path(final).exists()
    resume(tiles, out)
    assert export(out) == final == weights_file(out)


def test_a_run_whose_changed_network_was_recorded_without_a_mark_is_resumed(tmp_path, tiles):
    def network():
        return timm.create_model("test_resnet", features_only=True, act_layer="gelu")

    out = pretrain(data=tiles, out=tmp_path / "run", **(RUN | {"backbone": network()}))
    change_option(out, "backbone", "test_resnet*", "test_resnet")
    resume(tiles, out, backbone=network())
    assert newest_checkpoint(out / "checkpoints")["step"] == 3


def test_a_run_of_one_step_more_by_rounding_keeps_its_steps(tmp_path, tiles):
    """As 2.2 epochs of 25 steps, which were 56 steps up to version 0.1."""
    length = {"max_steps": None, "epochs": 1.0}
    out = pretrain(data=tiles, out=tmp_path / "run", **(RUN | length))
    for epochs in (0.8, 0.6):
        change_option(out, "epochs", length["epochs"], epochs)
        length["epochs"] = epochs
        if epochs == 0.6:
            with pytest.raises(UserError, match="started with 5 steps, but there are 3 now"):
                resume(tiles, out, **length)
        else:
            resume(tiles, out, **length)
            assert newest_checkpoint(out / "checkpoints")["step"] == 5


def test_checkpoints_without_a_configuration_are_not_thrown_away(out, tiles):
    (out / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"has checkpoints but no config\.yaml; restore that file"):
        resume(tiles, out)


def test_the_way_to_a_longer_run_is_given(out, tiles, capsys):
    way = f"train longer in another folder, from its weights: --weights {out} --out {out}_2"
    for change in ({"max_steps": 5}, {"max_steps": None, "epochs": 1}):
        with pytest.raises(UserError, match=r"started with other values of .*max_steps") as refused:
            resume(tiles, out, **change)
        assert str(refused.value).endswith(way)
    resume(tiles, out)
    assert f"densepath: the run in {out} is complete (3 steps); {way}\n" in capsys.readouterr().err
    longer = pretrain(data=tiles, out=f"{out}_2", weights=out, **{**RUN, "max_steps": 5})
    assert newest_checkpoint(longer / "checkpoints")["step"] == 5


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path, tiles):
    out = tmp_path / "run"
    options = {**RUN, "data": str(tiles), "out": str(out), "max_steps": 100000, "save_every_steps": 1}
    program = "import json, sys, densepath; densepath.pretrain(**json.loads(sys.argv[1]))"
    trains = subprocess.Popen([sys.executable, "-c", program, json.dumps(options)], stderr=subprocess.DEVNULL)
    child = trains.pid
    try:
        end = time.monotonic() + 120
        while not (out / "checkpoints" / "last.ckpt").exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        for options in ({}, {"resume": True}):
            with pytest.raises(UserError, match=rf"another process writes to .*/run \(process {child} on "):
                pretrain(data=tiles, out=out, **{**RUN, "max_steps": 100000, "save_every_steps": 1}, **options)
    finally:
        trains.kill()
        trains.wait()
    steps = (out / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in steps[1:]] == [str(n + 1) for n in range(len(steps) - 1)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_checkpoint_whose_weights_are_no_numbers_is_refused(out, tiles, value):
    def spoil(state):
        at_step_2(state)
        next(v for k, v in state["state_dict"].items() if k.endswith("conv1.0.weight"))[0] = value

    change_checkpoint(out, spoil)
    for use in (lambda: resume(tiles, out), lambda: export(out)):
        with pytest.raises(UserError, match=r"checkpoint in .*/run cannot be used: .*conv1\.0\.weight holds NaN"):
            use()


def test_facts_and_options_of_a_users_own_loop(tmp_path):
    fit_toy(tmp_path, 4, facts={"images": 5}, config={"lr": 0.1, "data": "x"})
    state = newest_checkpoint(tmp_path / "checkpoints")
    assert json.loads(state["config"]) == {"lr": 0.1, "data": "x"}
    with pytest.raises(UserError, match="other values of lr"):
        fit_toy(tmp_path, 8, facts={"images": 5}, config={"lr": 0.2, "data": "y"}, free=["data"], resume=True)
    fit_toy(tmp_path, 8, facts={"images": 5}, config={"lr": 0.1, "data": "y", "new": 1}, free=["data"], resume=True)
    assert newest_checkpoint(tmp_path / "checkpoints")["step"] == 8
