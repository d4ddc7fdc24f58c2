"""Runs that learn from a frozen network, and what becomes of it."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from targets import write_tokenizer

from densepath.annotations.classes import Classes
from densepath.cli import main
from densepath.core.errors import UserError
from densepath.methods.needs import Need
from densepath.nets.tokenizers import load_tokenizer
from densepath.nets.weights import read_weights
from densepath.runs.checkpoints import read_checkpoint
from densepath.runs.metrics import read_metrics
from densepath.training.export import export
from densepath.training.inputs import checksums_of
from densepath.training.pretrain import pretrain

RUN = {"backbone": "test_vit", "batch_size": 8, "view_size": 48, "devices": "cpu", "precision": "32", "log_every": 1}


def write_teacher(path, seed):
    torch.manual_seed(seed)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return str(path)


def test_a_run_of_vq_kd_is_the_tokenizer_of_beit_v2(tmp_path, tiles):
    options = {"teacher": "test_vit", "teacher_weights": write_teacher(tmp_path / "teacher.safetensors", 0)}
    codes = {"num_codes": 12, "code_dim": 4, "decoder_depth": 1}
    learner = {"method": "vq_kd", "method_options": codes, **options}
    run = pretrain(data=tiles, out=tmp_path / "tokens", max_steps=2, **learner, **RUN)
    assert all(row["used_codes"] > 1 for row in read_metrics(run / "metrics.csv"))
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert not [name for name in state if "target" in name and name != "method.target.digest"]  # it is not saved
    tokenizer = load_tokenizer(run)
    assert all(torch.equal(v, state[f"method.tokenizer.{k}"]) for k, v in tokenizer.state_dict().items())
    assert read_weights(run / "exported" / "tokenizer.safetensors").metadata["steps"] == "2"

    model = {"method": "beit_v2", "tokenizer": run}
    learned = pretrain(data=tiles, out=tmp_path / "model", max_steps=2, **model, **RUN)
    shutil.rmtree(run)  # an export needs neither teacher nor tokenizer
    weights = read_weights(export(learned, tmp_path / "weights.safetensors")).state_dict
    assert not [name for name in weights if "head" in name or "mask" in name]
    timm.create_model("test_vit", num_classes=0, checkpoint_path=str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("method", ["eva", "beit_v2"])
def test_a_run_is_resumed_only_with_the_same_target(tmp_path, tiles, method):
    (tmp_path / "other").mkdir()
    (tmp_path / "moved").mkdir()
    if method == "eva":
        decoder = {"decoder_depth": 1, "decoder_dim": 32, "decoder_heads": 2}
        named = {"teacher": "test_vit", "method_options": decoder}
        key, first, other = "teacher_weights", *(write_teacher(tmp_path / f"{n}.safetensors", n) for n in range(2))
    else:
        named, key = {}, "tokenizer"
        first, other = (str(write_tokenizer(folder, seed=n)) for n, folder in enumerate((tmp_path, tmp_path / "other")))
    options = {"data": tiles, "out": tmp_path / "run", "method": method, "max_steps": 2, **RUN}
    pretrain(**options, **named, **{key: first})
    what = "tokenizer" if key == "tokenizer" else "teacher"
    with pytest.raises(UserError, match=f"the {what} differs from that of its training"):
        pretrain(**options, **named, **{key: other}, resume=True)
    moved = shutil.copy(first, tmp_path / "moved")
    pretrain(**options, **named, **{key: moved}, resume=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "eva_small"], "eva needs a teacher; name one with --teacher"),
        (["--config", "vq_kd_small"], "vq_kd needs a teacher; name one with --teacher"),
        (["--config", "beit_v2_small"], "beit_v2 needs a tokenizer; train one with --config vq_kd"),
        (["--config", "dirl_small", "--method.prior", "files"], "dirl needs a folder of label maps; give it"),
        (["--config", "eva_small", "--teacher", "nobody"], "there is no teacher 'nobody'"),
        (["--config", "beit_v2_small", "--tokenizer", "nowhere"], "there are no weights to read at nowhere"),
    ],
)
def test_a_missing_target_is_one_line(tmp_path, tiles, capsys, words, message):
    assert main(["pretrain", *words, "--data", str(tiles), "--out", str(tmp_path / "run"), "--devices", "cpu"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "run").exists()


def test_other_labels_and_teachers_have_other_checksums():
    needs = {"class": Need("classes"), "teacher": Need("teacher")}
    method = SimpleNamespace(needs=lambda: needs)

    def checksums(labels, weight=1.0, names=("a", "b")):
        teacher = nn.Linear(2, 2)
        nn.init.constant_(teacher.weight, weight)
        nn.init.zeros_(teacher.bias)
        classes = Classes(names, torch.tensor(labels, dtype=torch.int32))
        return checksums_of(method, {"class": classes, "teacher": teacher})

    first = checksums([0, 1])
    assert first == checksums([0, 1]) and first.keys() == {"classes", "teacher"}
    for other, changed in (
        (checksums([1, 0]), "classes"),
        (checksums([0, 1], names=("a", "c")), "classes"),
        (checksums([0, 1], weight=2.0), "teacher"),
    ):
        assert [name for name in first if first[name] != other[name]] == [changed]
