import errno
import os
import pickle
import resource
import zipfile
from pathlib import Path

import pytest
import torch

from densepath.core.errors import UserError
from densepath.runs import checkpoints
from densepath.runs.checkpoints import is_trained, newest_checkpoint, read_checkpoint, write_checkpoint


def state(step):
    return {"step": step, "state_dict": {"a": torch.arange(5000.0) + step}, "notes": '{"lr": 0.1}'}


def test_what_is_written_comes_back(tmp_path):
    path = write_checkpoint(tmp_path, state(3))
    back = read_checkpoint(path)
    assert back["step"] == 3 and back["notes"] == '{"lr": 0.1}'
    assert torch.equal(back["state_dict"]["a"], torch.arange(5000.0) + 3)


def test_a_checkpoint_is_an_ordinary_torch_file(tmp_path):
    path = write_checkpoint(tmp_path, state(3))
    assert torch.load(path, weights_only=True)["step"] == 3
    assert zipfile.ZipFile(path).testzip() is None


def test_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert read_checkpoint(tmp_path / "last.ckpt")["step"] == 3
    assert read_checkpoint(tmp_path / "previous.ckpt")["step"] == 2


def test_the_best_one_is_copied_before_the_run_goes_on_from_it(tmp_path, monkeypatch):
    """A run that ends in between saves the same state again, and does not go on with the copy of an earlier one."""
    best = write_checkpoint(tmp_path, state(1), best=True).with_name("best.ckpt")
    write_checkpoint(tmp_path, state(2))
    assert read_checkpoint(best)["step"] == 1

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.shutil, "copyfile", full)
    with pytest.raises(UserError, match=r"No space left on device.*; make room or fix the folder, then continue"):
        write_checkpoint(tmp_path, state(3), best=True)
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path)["step"] == 2
    write_checkpoint(tmp_path, state(3), best=True)
    assert [read_checkpoint(tmp_path / f"{name}.ckpt")["step"] for name in ("best", "last", "previous")] == [3, 3, 2]


def test_a_best_checkpoint_needs_room_for_four(tmp_path, monkeypatch):
    for step in (1, 2):
        write_checkpoint(tmp_path, state(step), best=True)
    copyfile, counts = checkpoints.shutil.copyfile, []

    def counted(source, target):
        copyfile(source, target)
        counts.append(len(list(tmp_path.iterdir())))

    monkeypatch.setattr(checkpoints.shutil, "copyfile", counted)
    write_checkpoint(tmp_path, state(3), best=True)
    assert counts == [4]


@pytest.mark.parametrize("where", [0, 0.3, 0.5, 0.9, 0.999])
def test_one_flipped_bit_is_found_and_the_previous_one_used(tmp_path, where, caplog):
    for step in (1, 2):
        write_checkpoint(tmp_path, state(step))
    last = tmp_path / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[int(where * len(content))] ^= 0x10
    last.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.ckpt"):
        read_checkpoint(last)
    assert newest_checkpoint(tmp_path)["step"] == 1
    assert "last.ckpt" in caplog.text


@pytest.mark.parametrize("share", [0, 0.1, 0.7, 0.99])
def test_a_cut_checkpoint_is_refused_by_name(tmp_path, share):
    last = write_checkpoint(tmp_path, state(1))
    content = last.read_bytes()
    last.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"last\.ckpt .*; no checkpoint there can be read, so name another"):
        newest_checkpoint(tmp_path)


def test_a_damaged_checkpoint_never_replaces_the_one_before(tmp_path, monkeypatch):
    for step in (1, 2):
        write_checkpoint(tmp_path, state(step))
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    assert newest_checkpoint(tmp_path)["step"] == 1

    def killed(source, target):
        if target == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, state(3))
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path)["step"] == 1
    write_checkpoint(tmp_path, state(3))
    assert read_checkpoint(last)["step"] == 3
    assert read_checkpoint(tmp_path / "previous.ckpt")["step"] == 1


def test_without_a_last_one_the_previous_is_used(tmp_path):
    for step in (1, 2):
        write_checkpoint(tmp_path, state(step))
    (tmp_path / "last.ckpt").unlink()
    assert newest_checkpoint(tmp_path)["step"] == 1


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("sealed", [False, True])
def test_code_in_a_foreign_file_is_not_run(tmp_path, monkeypatch, sealed):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    if sealed:
        torch.save({"format": "densepath checkpoint 1", "step": Bomb()}, path)
        checkpoints._seal(path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=r"last\.ckpt"):
        read_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


def test_a_torch_file_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"model": {}}, path)
    checkpoints._seal(path)
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        read_checkpoint(path)


def save_too_much(folder):
    too_large = r"cannot write .*last\.ckpt \([^)]*File too large\); make room .* then continue with --resume"
    with pytest.raises(UserError, match=too_large):
        write_checkpoint(folder, state(2))


@pytest.mark.parametrize("stopped", [None, KeyboardInterrupt(), RuntimeError("no image data for 1800 s")])
def test_a_file_that_may_not_grow_leaves_the_checkpoint_before(tmp_path, stopped):
    write_checkpoint(tmp_path, state(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        if stopped is not None:
            raise stopped
        save_too_much(tmp_path)
    except (KeyboardInterrupt, RuntimeError):  # a run saves before it stops
        save_too_much(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert newest_checkpoint(tmp_path)["step"] == 1


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_a_full_disk_is_reported_in_the_same_way_by_every_call(tmp_path, monkeypatch, kind):
    def save(*_):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            if kind is OSError:
                raise
            raise RuntimeError("the archive cannot be closed") from error

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError) as error_info:
        write_checkpoint(tmp_path, {"step": 1, "state_dict": {}})
    assert str(error_info.value) == (
        f"cannot write the checkpoint {tmp_path / 'last.ckpt'} ([Errno 28] No space left on device); "
        "make room or fix the folder, then start again with --resume"
    )
    assert os.listdir(tmp_path) == []


def test_what_a_kill_left_of_the_checkpoints_of_a_finished_training_is_removed(tmp_path):
    write_checkpoint(tmp_path / "checkpoints", state(1))
    assert not is_trained(tmp_path, Path("exported/classifier.safetensors"))
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "classifier.safetensors").touch()
    assert is_trained(tmp_path, Path("exported/classifier.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
