"""Configurations and weights made to harm, or of random content: nothing is executed, and the message is one line."""

import inspect
import json
import math
import os
import pickle
import shutil
import zipfile

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from densepath.annotations.coco_writing import write_coco
from densepath.cli import main
from densepath.core.errors import UserError
from densepath.methods import METHODS
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights, read_weights, save_backbone
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.runs import checkpoints
from densepath.runs.checkpoints import newest_checkpoint, read_checkpoint, write_checkpoint
from densepath.training import learner as learner_module
from densepath.training import pretrain as pretrain_module
from densepath.training.config import PretrainConfig
from densepath.training.export import export
from densepath.training.optimizers import Optimizer
from densepath.training.pretrain import pretrain
from densepath.transfer.detection import detect as detection_module
from densepath.transfer.detection.detect import DETECTOR_FILE, detect
from densepath.transfer.detection.detector_file import DetectorNotes, load_detector, save_detector
from densepath.views.augment import Augment

from .conftest import draw_tiles

# pycocotools' way to make arrays is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = {"backbone": "test_resnet", "method": "moco_v2", "method_options": {"queue_size": 16}, "batch_size": 8}
SMALL |= {"view_size": 48, "max_steps": 2, "devices": "cpu", "precision": "32"}

ODD = st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**70), 1e-320, 1e300, "", "1", "\0", "../..", "null", "resnet18"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | ODD
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two steps and what it was trained on."""
    folder = tmp_path_factory.mktemp("hostile")
    draw_tiles(folder / "tiles")
    return pretrain(data=folder / "tiles", out=folder / "run", **SMALL)


def defaults_of(function):
    parameters = inspect.signature(function).parameters.items()
    return {name: each.default for name, each in parameters if name not in ("backbone", "probe", "args", "options")}


def plausible(default):
    """Values of the type of a default: near it, or at the ends of what such a number can be."""
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(default // 2, 2 * default + 2) | st.sampled_from([0, -1, 1, 2**31, 2**63])
    if isinstance(default, float):
        return st.floats(default / 2, 2 * default + 0.1) | st.sampled_from([0.0, -1.0, 1.0, 1e-320, 1e300, math.nan])
    if isinstance(default, tuple) and default:
        return st.tuples(*map(plausible, default)).map(list)
    if isinstance(default, str):
        return st.just(default)
    return st.none() | st.integers(0, 4) | st.floats(0, 2) | st.booleans()


OPTIONS = {
    name: default
    for name, default in defaults_of(PretrainConfig).items()
    if name not in ("data", "out", "devices", "workers", "weights")
}
PARTS = {"optimizer": defaults_of(Optimizer), "augment": defaults_of(Augment)}


@st.composite
def recipes(draw):
    """Options of pre-training: values that some other run could have, values of any kind, and names that none has."""
    method = draw(st.sampled_from(sorted(METHODS)))
    parts = PARTS | {"method_options": defaults_of(METHODS[method])}
    recipe = {"method": method} if draw(st.booleans()) else {}
    likely = draw(st.integers(0, 3)) > 0
    for name in draw(st.lists(st.sampled_from(sorted(OPTIONS)) | st.text(max_size=6), min_size=1, max_size=4)):
        if name in parts and draw(st.integers(0, 3)):
            known = parts[name]
            names = draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3))
            recipe[name] = {each: draw(plausible(known[each]) if likely else VALUES) for each in names}
        elif name in OPTIONS or not likely:
            recipe[name] = draw(plausible(OPTIONS[name]) if likely else VALUES)
    return recipe


def one_line(captured, code):
    """What the command line says to its user: for a mistake one line, and never a traceback."""
    said = [line for line in captured.err.splitlines() if not line.startswith(("densepath: test_resnet with", "step"))]
    assert code in (0, 2), captured.err
    assert "Traceback" not in captured.err
    if code == 2:
        assert len(said) == 1 and said[0].startswith("densepath: error: "), captured.err


def test_whatever_a_recipe_says_it_is_run_or_refused(run, tmp_path, monkeypatch, capsys, bounded_memory):
    """Up to the first step: all that a recipe decides is built."""
    begun = []
    monkeypatch.setattr(pretrain_module, "train", lambda task, *rest, **options: begun.append(task) or 1)
    monkeypatch.setattr(learner_module, "choose_backbone", lambda name, channels, stride: build_backbone("test_resnet"))
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    words = ["--data", str(run.parent / "tiles"), "--out", str(out), "--devices", "cpu", "--workers", "0"]
    given_here = ["--batch_size", "8", "--view_size", "48", "--backbone", "test_resnet"]

    @settings(max_examples=25)
    @given(recipe=recipes(), base=st.booleans())
    @example(recipe={"optimizer": {"lr": 0.1}}, base=True)
    def fuzz(recipe, base):
        path.write_text(yaml.safe_dump(recipe, allow_unicode=False))
        shutil.rmtree(out, ignore_errors=True)
        code = main(["pretrain", "--config", str(path), *words, *(given_here if base else [])])
        one_line(capsys.readouterr(), code)

    with bounded_memory(2000, most=4000):
        fuzz()
    assert begun


@pytest.mark.parametrize("verb", ["export", "pretrain", "detect", "show"])
def test_whatever_the_configuration_of_a_run_says_it_is_used_or_refused(
    verb, run, tmp_path, monkeypatch, capsys, bounded_memory
):
    monkeypatch.setattr(pretrain_module, "train", lambda task, *rest, **options: 2)
    out = tmp_path / "run"
    shutil.copytree(run, out)
    config = yaml.safe_load((run / "config.yaml").read_text())
    monkeypatch.setattr(detection_module, "fine_tune", enough)
    labelled = tmp_path / "labelled"
    write_coco(labelled, {split: [("a", *picture())] for split in ("train", "test")})
    words = {
        "export": ["export", str(out)],
        "pretrain": ["pretrain", "--config", str(out / "config.yaml"), "--resume", "--out", str(out)],
        "detect": ["detect", "--data", str(labelled), "--out", str(out), "--resume", "--devices", "cpu"],
        "show": ["show", "views", "--data", str(run.parent / "tiles"), "--config", str(out / "config.yaml")],
    }[verb]
    words += ["--out", str(tmp_path / "a.png"), "--count", "1"] if verb == "show" else []
    if verb == "detect":
        config = {"detector": "mask_rcnn_fpn", "mean": [0.5] * 3, "std": [0.5] * 3, "precision": "32", "workers": 0}

    @settings(max_examples=8)
    @given(changes=st.dictionaries(st.sampled_from(sorted(config)), VALUES, min_size=1, max_size=2), data=st.data())
    def fuzz(changes, data):
        for part in ("method_options", "optimizer", "augment"):
            if part in changes and data.draw(st.booleans()):
                known = sorted(config.get(part) or {"flip": 0, "scale": 0})
                inner = data.draw(st.dictionaries(st.sampled_from(known), VALUES, min_size=1, max_size=2))
                changes[part] = (config.get(part) or {}) | inner
        (out / "config.yaml").write_text(yaml.safe_dump(config | changes))
        code = main(words)
        one_line(capsys.readouterr(), code)

    with bounded_memory(2000, most=4000):
        fuzz()


def enough(*arguments, **options):
    raise UserError("a training would begin here")


CODE = {
    "call": "method: !!python/object/apply:os.system ['touch owned']\n",
    "new": "seed: !!python/object/new:subprocess.Popen [['touch', 'owned']]\n",
    "name": "method: !!python/name:os.system\n",
    "module": "method: !!python/module:antigravity\n",
    "class": "optimizer: {class_path: os.system, init_args: {command: touch owned}}\n",
    "class of the method": "method: {class_path: os.system, init_args: {command: touch owned}}\n",
    "dotted method": "method: os.system\nmethod_options: {command: touch owned}\n",
    "dotted backbone": "backbone: os.system\n",
    "hub": "backbone: 'hf_hub:somebody/model'\n",
    "laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)),
}


@pytest.mark.parametrize("kind", CODE)
@pytest.mark.parametrize("place", ["recipe", "run", "checkpoint"])
def test_yaml_names_nothing_that_is_executed(kind, place, run, tmp_path, monkeypatch, capsys, bounded_memory):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "run")
    text = CODE[kind]
    data = ["--data", str(run.parent / "tiles"), "--max_steps", "1", "--devices", "cpu"]
    if place == "recipe":
        (tmp_path / "evil.yaml").write_text(text)
        words = ["pretrain", "--config", "evil.yaml", *data, "--out", "new"]
    elif place == "run":
        (tmp_path / "run" / "config.yaml").write_text(text)
        words = ["export", "run"]
    else:
        state = newest_checkpoint(tmp_path / "run" / "checkpoints")
        write_checkpoint(tmp_path / "run" / "checkpoints", {**state, "config": text})
        words = ["export", "run"]
    with bounded_memory(500):
        code = main(words)
    error = capsys.readouterr().err
    assert code == (0 if place == "checkpoint" else 2)  # the copy in the checkpoint is only for its reader
    assert place == "checkpoint" or (len(error.splitlines()) == 1 and len(error) < 1000)
    assert not (tmp_path / "owned").exists() and not (tmp_path / "new").exists()


class Bomb:
    """Unpickling this makes a file."""

    def __reduce__(self):
        return os.mkdir, ("owned",)


def dress(writer, path):
    """A file that runs code when it is unpickled."""
    content = {"state_dict": {"conv1.weight": torch.zeros(1)}, "metadata": {}, "bomb": Bomb()}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
        if writer == "torch":
            checkpoints._seal(path)


@pytest.mark.parametrize("writer", ["torch", "old torch", "pickle"])
@pytest.mark.parametrize(
    "use",
    [
        "weights.pth", "weights.pt", "weights.ckpt", "weights.pkl", "weights.safetensors", "run", "export", "resume",
        "detect", "evaluate", "store",
    ],
)  # fmt: skip
def test_a_pickle_is_never_run_whatever_it_is_called_and_whoever_reads_it(
    use, writer, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "run")
    data = ["--data", str(run.parent / "tiles"), "--devices", "cpu"]
    small = ["--method", "moco_v2", "--method.queue_size", "16", "--batch_size", "8", "--view_size", "48"]
    small += ["--max_steps", "2", "--backbone", "test_resnet", "--precision", "32", *data]
    path = tmp_path / use
    words = ["pretrain", *small, "--weights", use, "--out", "new"]
    if use in ("run", "export", "resume"):
        path = tmp_path / "run" / "checkpoints" / "last.ckpt"
        shutil.rmtree("run/exported")
        words = words if use == "run" else ["export", "run"] if use == "export" else [*words[:-4], "--resume"]
        words += ["--out", "run"] if use == "resume" else []
    elif use == "detect":
        write_coco("data", {split: [("a", *picture())] for split in ("train", "test")})
        words = ["detect", "--data", "data", "--weights", "detect", "--out", "new", "--devices", "cpu"]
    elif use == "evaluate":
        path = tmp_path / "run" / DETECTOR_FILE
        words = ["detect", "--data", "data", "--out", "run", "--evaluate", "--devices", "cpu"]
    elif use == "store":
        path = tmp_path / "tiles.safetensors"
        words = ["pretrain", *small[:-4], "--data", "tiles.safetensors", "--devices", "cpu", "--out", "new"]
    path.parent.mkdir(exist_ok=True)
    dress(writer, path)
    capsys.readouterr()
    code = main(words)
    error = capsys.readouterr().err
    assert code == 2, error
    assert path.name in error.splitlines()[-1] and "Traceback" not in error
    assert not (tmp_path / "owned").exists() and not (tmp_path / "new").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "owned").exists()


def picture():
    labels = torch.zeros(64, 64, dtype=torch.int32)
    labels[10:30, 10:30] = 1
    return torch.full((64, 64, 3), 100, dtype=torch.uint8).numpy(), labels.numpy()


def test_whatever_happens_to_a_checkpoint_it_is_refused_by_name(run, tmp_path, bounded_memory):
    """Its checksum covers every bit of it."""
    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    path = tmp_path / "last.ckpt"

    @settings(max_examples=40)
    @given(place=st.integers(0, len(whole) - 1), flip=st.integers(1, 255), keep=st.just(1.0) | st.floats(0, 1))
    def fuzz(place, flip, keep):
        content = bytearray(whole)
        content[place] ^= flip
        path.write_bytes(content[: round(keep * len(content))])
        with pytest.raises(UserError, match=r"last\.ckpt"):
            read_checkpoint(path)

    with bounded_memory(300):
        fuzz()


def rewritten(source, target, change):
    """A copy of a file of torch whose pickle is another one, with checksums that are right."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(bytearray(content)) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("sealed", [True, False])
def test_whatever_the_pickle_of_a_checkpoint_says_it_is_used_or_refused(sealed, tmp_path, monkeypatch, bounded_memory):
    monkeypatch.chdir(tmp_path)
    kept = {"step": 3, "state_dict": {"conv1.weight": torch.arange(6.0).view(2, 3)}, "config": "{}", "facts": {"a": 1}}
    torch.save({"format": "densepath checkpoint 1", **kept}, "whole.ckpt")
    read = read_checkpoint if sealed else read_weights
    path = tmp_path / "cut.ckpt"

    @settings(max_examples=80)
    @given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
    def fuzz(changes):
        def change(content):
            for place, value in changes:
                content[int(place * len(content))] = value
            return bytes(content)

        rewritten("whole.ckpt", path, change)
        if sealed:
            checkpoints._seal(path)
        try:
            read(path)
        except UserError as error:
            assert "cut.ckpt" in str(error) and "\n" not in str(error)

    with bounded_memory(300):
        fuzz()
    assert sorted(os.listdir(tmp_path)) == ["cut.ckpt", "whole.ckpt"]


@pytest.mark.parametrize("kind", ["weights.safetensors", "weights.pth", "detector.safetensors"])
def test_whatever_happens_to_weights_they_are_used_or_refused(kind, tmp_path, bounded_memory):
    path = tmp_path / kind
    notes = DetectorNotes("mask_rcnn_fpn_small", "test_resnet", (1,), ("gland",), 64, (0.5,) * 3, (0.2,) * 3)
    if kind == "detector.safetensors":
        save_detector(path, notes.build(), notes)
    elif kind == "weights.pth":
        torch.save(build_backbone("test_resnet").net.state_dict(), path)
    else:
        save_backbone(path, build_backbone("test_resnet"))
    whole = path.read_bytes()
    backbone = build_backbone("test_resnet")

    @settings(max_examples=25)
    @given(data=st.data())
    def fuzz(data):
        content = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            span = data.draw(st.sampled_from([16, 3000, len(content)]))
            place = data.draw(st.integers(0, span - 1))
            place = place if data.draw(st.booleans()) or kind.endswith("safetensors") else len(content) - 1 - place
            content[place] = data.draw(st.integers(0, 255) | st.sampled_from(list(b'"[]{},:0919')))
        path.write_bytes(content)
        try:
            load_detector(path) if kind.startswith("detector") else load_weights(backbone, path)
        except UserError as error:
            assert kind in str(error) and "\n" not in str(error)

    with bounded_memory(400):
        fuzz()


@pytest.mark.parametrize("length", [10**8 + 1, 2**40, 2**63, 2**64 - 1])
def test_safetensors_with_a_header_of_absurd_length_are_refused(length, tmp_path, bounded_memory):
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}')
    with bounded_memory(100), pytest.raises(UserError, match=r"w\.safetensors is damaged or not a safetensors file"):
        read_weights(path)


@pytest.mark.parametrize("shape", [[2**40], [2**62, 4], [2**32, 2**32], [-1], [4.5]])
def test_safetensors_with_absurd_shapes_are_refused(shape, tmp_path, bounded_memory):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with bounded_memory(100), pytest.raises(UserError, match=r"w\.safetensors is damaged or not a safetensors file"):
        read_weights(path)


@pytest.mark.parametrize("mean", ["evil", "[1, 2]", "7", "{}", '["a", "b", "c"]', "[NaN, 0, 0]", "[" * 10**5, "null"])
def test_invalid_colors_are_refused(mean, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, path, {"mean": mean, "std": "[0.2, 0.2, 0.2]"})
    with pytest.raises(UserError, match=r"w\.safetensors has no valid mean and std of its channels"):
        pixels_of_weights(path)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "hf_hub:somebody/model"},
        {"backbone": ["resnet18"]},
        {"detector": "os.system"},
        {"category_ids": ["1"]},
        {"category_ids": []},
        {"category_ids": 1},
        {"category_names": [1, 2]},
        {"test_size": 1e9},
        {"test_size": 0},
        {"anchor_sizes": [32, 64]},
        {"anchor_sizes": ["32"] * 5},
        {"detections_per_image": 0},
        {"detections_per_image": "100"},
        {"mean": [0.5]},
        {"mean": "abc"},
        {"std": [0, 1, 1]},
        {"more": 1},
    ],
)
def test_notes_of_a_detector_that_make_no_sense_are_refused(change, tmp_path):
    notes = DetectorNotes("mask_rcnn_fpn_small", "test_resnet", (1,), ("gland",), 64, (0.5,) * 3, (0.2,) * 3)
    state = {key: value.contiguous() for key, value in notes.build().state_dict().items()}
    said = {**notes.__dict__, **change}
    save_file(state, tmp_path / "d.safetensors", {"densepath_detector": json.dumps(said)})
    with pytest.raises(UserError, match=r"d\.safetensors (is not a detector|cannot be built)"):
        load_detector(tmp_path / "d.safetensors")


@pytest.mark.parametrize(
    ("name", "picture_name"),
    [("../../a.png", "a.png"), ("{root}/data/train/a.png", "train/a.png"), ("deep/../a.png", "a.png")],
)
def test_names_in_a_coco_json_never_lead_out_of_the_run_folder(name, picture_name, tmp_path):
    write_coco(tmp_path / "data", {split: [("a", *picture())] for split in ("train", "test")})
    (tmp_path / "data" / "test" / "deep").mkdir()
    shutil.copy(tmp_path / "data" / "test" / "a.png", tmp_path / "a.png")
    path = tmp_path / "data" / "annotations" / "test.json"
    truth = json.loads(path.read_text())
    truth["images"][0]["file_name"] = name.format(root=tmp_path)
    path.write_text(json.dumps(truth))
    out = tmp_path / "runs" / "run"
    notes = DetectorNotes("mask_rcnn_fpn_small", "test_resnet", (1,), ("gland",), 64, (0.5,) * 3, (0.2,) * 3)
    save_detector(out / DETECTOR_FILE, notes.build(), notes)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    detect(data=tmp_path / "data", out=out, evaluate=True, devices="cpu", precision="32")
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert all(after[file] == content for file, content in before.items())
    new = sorted(str(file.relative_to(out)) for file in after.keys() - before.keys())
    assert new == ["metrics.json", f"pictures/{picture_name}", "predictions.json", "train.log"]


def test_a_run_whose_checkpoint_lacks_its_parts_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    state = newest_checkpoint(run / "checkpoints")
    for part in ("step", "state_dict"):
        write_checkpoint(tmp_path / "run" / "checkpoints", {key: state[key] for key in state if key != part})
        (tmp_path / "run" / "checkpoints" / "previous.ckpt").unlink()
        with pytest.raises(UserError, match=r"last\.ckpt is not a checkpoint of this version"):
            export(tmp_path / "run")
