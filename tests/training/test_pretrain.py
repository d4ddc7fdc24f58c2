import json
import math
import shutil
import sys
from dataclasses import fields

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import densepath
from densepath.core.errors import UserError
from densepath.methods import MAE, SemanticGenesis
from densepath.nets.backbones import Backbone, build_backbone
from densepath.nets.weights import load_weights
from densepath.nets.weights.pretrained import backbone_of_weights
from densepath.runs.checkpoints import read_checkpoint
from densepath.runs.metrics import read_metrics
from densepath.sources.pixel_source import PixelSpec
from densepath.synthetic.tissue import write_tissue
from densepath.training.config import PretrainConfig
from densepath.training.export import export
from densepath.training.kept_epochs import kept_epochs
from densepath.training.optimizers import Optimizer
from densepath.training.pretrain import pretrain
from densepath.training.pretrain import run as run_pretraining
from densepath.training.resolve import resolve
from densepath.views.augment import Augment

SMALL = {"backbone": "test_resnet", "batch_size": 8, "view_size": 48, "log_every": 2, "devices": "cpu"}
MOCO = {"method": "moco_v2", "method_options": {"queue_size": 32}}


@pytest.fixture
def run(tmp_path, tiles):
    """A run of four steps."""
    return pretrain(data=tiles, out=tmp_path / "run", **SMALL, **MOCO, max_steps=4, precision="32")


def test_a_run_folder_is_self_contained(run):
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    exported = {"exported/backbone.safetensors", "exported/backbone.safetensors.md"}
    records = {"config.yaml", "metrics.csv", "train.log", "sessions.yaml"}
    assert files == {*records, "checkpoints/last.ckpt", *exported}
    rows = read_metrics(run / "metrics.csv")
    assert [row["step"] for row in rows] == [2, 4]
    # 40 images in batches of 8: the two batches of a row began at 0.4 and 0.6 epochs.
    assert rows[1]["epoch"] == pytest.approx(0.5)
    assert rows[1]["loss"] == rows[1]["instance_loss"]


def test_the_configuration_is_complete_and_can_be_run_again(run, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert set(config) == {field.name for field in fields(PretrainConfig)} - {"resume"} | {"pixels"}
    assert config["method_options"]["momentum"] == 0.999
    assert config["optimizer"]["lr"] == 0.03
    again = pretrain(run / "config.yaml", out=tmp_path / "again")
    exported = [load_file(out / "exported" / "backbone.safetensors") for out in (run, again)]
    assert all(torch.equal(exported[0][name], exported[1][name]) for name in exported[0])


def test_the_exported_backbone_is_the_query_encoder_and_loads_in_timm(run):
    path = run / "exported" / "backbone.safetensors"
    network = timm.create_model("test_resnet", num_classes=0, checkpoint_path=str(path)).eval()
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    ours = build_backbone("test_resnet").eval()
    ours.load_state_dict({k.removeprefix("method.backbone."): v for k, v in state.items() if "method.backbone." in k})
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.forward_features(x), ours(x)[5])
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["method"], metadata["steps"], metadata["backbone"]) == ("moco_v2", "4", "test_resnet")
    assert json.loads(metadata["config"])["method_options"]["queue_size"] == 32


def test_export_writes_what_the_run_wrote(run, tmp_path):
    path = export(run, tmp_path / "again.safetensors")
    automatic = load_file(run / "exported" / "backbone.safetensors")
    assert all(torch.equal(value, automatic[name]) for name, value in load_file(path).items())
    with pytest.raises(UserError, match="layout"):
        export(run, layout="keras")


def test_export_needs_a_run(tmp_path, run):
    with pytest.raises(UserError, match="not the folder of a pre-training run"):
        export(tmp_path)
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no checkpoint yet"):
        export(run)


def test_weights_of_a_run_start_the_next(run, tmp_path, tiles):
    options = SMALL | MOCO | {"optimizer": Optimizer(lr=1e-12)}
    after = pretrain(data=tiles, out=tmp_path / "next", weights=run, max_steps=1, precision="32", **options)
    nets = [build_backbone("test_resnet") for _ in range(2)]
    for net, source in zip(nets, (run, after), strict=True):
        load_weights(net, source)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-5)


def test_only_random_weights_are_initialized_as_the_method_asks(tmp_path, tiles, monkeypatch):
    calls = []
    monkeypatch.setattr(MAE, "initialize", lambda method: calls.append(method))
    options = {**SMALL, "backbone": "test_vit", "method": "mae", "view_size": 64, "max_steps": 1, "precision": "32"}
    options |= {"data": tiles, "method_options": {"decoder_depth": 1, "decoder_dim": 32, "decoder_heads": 4}}
    first = pretrain(out=tmp_path / "first", **options)
    assert len(calls) == 1
    pretrain(out=tmp_path / "next", **options, weights=first)
    pretrain(out=first, **options, resume=True)
    pretrain(out=tmp_path / "own", **options | {"backbone": build_backbone("test_vit")})
    assert len(calls) == 1


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_from_its_weights(run, tmp_path, tiles):
    options = {"data": tiles, "weights": run, **SMALL, **MOCO, "max_steps": 2, "precision": "32"}
    whole, cut = (pretrain(out=tmp_path / name, **options) for name in ("whole", "cut"))
    for made in ("checkpoints", "exported"):
        shutil.rmtree(cut / made)
    pretrain(out=cut, **options, resume=True)
    exported = [load_file(out / "exported" / "backbone.safetensors") for out in (whole, cut)]
    assert all(torch.equal(exported[0][name], exported[1][name]) for name in exported[0])


def test_resuming_refuses_other_options_and_takes_over_the_precision(run, tiles):
    same = {"data": tiles, "out": run, **SMALL, **MOCO, "resume": True}
    with pytest.raises(UserError, match=r"other values of batch_size, max_steps, optimizer\.lr"):
        pretrain(**same | {"batch_size": 4, "max_steps": 8, "optimizer": Optimizer(lr=0.1)})
    assert pretrain(**same | {"max_steps": 4, "precision": "auto", "workers": 1, "log_every": 7}) == run
    (tiles / "new.png").write_bytes((tiles / "00.png").read_bytes())
    with pytest.raises(UserError, match="started with 40 images, but there are 41"):
        pretrain(**same, max_steps=4)


def test_epochs_are_passes_over_the_images(tmp_path, tiles):
    out = pretrain(data=tiles, out=tmp_path / "run", **SMALL, **MOCO, epochs=1.4, precision="32")
    assert read_checkpoint(out / "checkpoints" / "last.ckpt")["step"] == 7


def test_an_optimizer_step_has_as_many_images_however_it_is_split(tmp_path, tiles):
    options = {"data": tiles, **SMALL, **MOCO, "epochs": 1, "precision": "32", "accumulate": 2}
    out = pretrain(out=tmp_path / "run", **options)
    state = read_checkpoint(out / "checkpoints" / "last.ckpt")
    assert state["step"] == 5  # 40 images, 8 to a step
    assert int(state["state_dict"]["method.queue.pointer"]) == 40 % 32
    with pytest.raises(UserError, match="multiple of 3"):
        pretrain(out=tmp_path / "other", **options | {"accumulate": 3})


def test_all_batches_of_a_step_have_its_position_in_the_run(tmp_path, tiles):
    class Watched(SemanticGenesis):
        def forward(self, batch):
            losses = super().forward(batch)
            seen.append((batch.epoch, batch.progress, batch.drawn_in, self.discovered, set(losses.terms)))
            return losses

    seen, terms = [], ({"discovery_loss"}, {"pattern_loss"}, {"pattern_loss", "restoration_loss"})
    options = {"num_classes": 4, "neighbors": 6, "discovery_epochs": 1, "classification_epochs": 1}
    run = {**SMALL, "batch_size": 24, "accumulate": 3, "max_steps": 5, "precision": "32"}
    pretrain(data=tiles, out=tmp_path / "run", method=Watched, method_options=options, **run)
    for batch, (epoch, progress, drawn_in, discovered, found) in enumerate(seen):
        step = batch // 3
        assert (epoch, progress, drawn_in) == (step * 3 / 5, step / 5, batch // 5)
        assert found == terms[int(epoch)] and discovered == (epoch >= 1)
    assert len(seen) == 15


def test_bfloat16_leaves_weights_and_geometry_in_float32(tmp_path, tiles, monkeypatch):
    from densepath.methods import MoCoV2

    seen = []
    forward = MoCoV2.forward

    def spy(self, batch):
        seen.append((torch.is_autocast_enabled("cpu"), batch["query"].map, batch["query"].pixels.clone()))
        return forward(self, batch)

    monkeypatch.setattr(MoCoV2, "forward", spy)
    options = {"data": tiles, **SMALL, **MOCO, "max_steps": 1}
    out = pretrain(out=tmp_path / "bf16", **options, precision="bf16-mixed")
    pretrain(out=tmp_path / "32", **options, precision="32")
    (mixed, one_map, one), (plain, other_map, other) = seen
    assert (mixed, plain) == (True, False)
    assert torch.equal(one_map, other_map) and torch.equal(one, other)
    state = read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}


def test_losses_are_logged_relative_to_chance(tmp_path, tiles, capsys):
    """At an infinite temperature no key can be told from another: the losses are those of chance, ln(queue + 1)."""
    options = {"num_concepts": 4, "warmup": 0.0, "temperature": 1e6, "queue_size": 64, "concept_queue_size": 128}
    out = tmp_path / "run"
    pretrain(data=tiles, out=out, **SMALL, method="concl", method_options=options, max_steps=4, precision="32")
    rows = read_metrics(out / "metrics.csv")
    assert len(rows) == 2 and "concept loss 1.00 of chance" in capsys.readouterr().err
    for name, size in (("instance_loss", 64), ("concept_loss", 128)):
        assert all(row[f"{name}_vs_chance"] == pytest.approx(row[name] / math.log(size + 1)) for row in rows)
        assert rows[-1][f"{name}_vs_chance"] == pytest.approx(1, abs=1e-4)


def test_the_probe_sees_the_backbone_at_intervals(tmp_path, tiles):
    probed = []

    def probe(backbone, data, spec):
        assert not backbone.training and data == tmp_path / "labelled" and spec == PixelSpec()
        probed.append(next(backbone.parameters()).detach().clone())
        return {"miou": 0.5 + len(probed), "what": "text"}

    write_tissue(tmp_path / "labelled", train=1, test=1, size=64)
    options = {"data": tiles, **SMALL, **MOCO, "epochs": 3, "precision": "32"}
    out = pretrain(out=tmp_path / "a", **options, probe_data=tmp_path / "labelled", probe_every=1, probe=probe)
    rows = [row for row in read_metrics(out / "metrics.csv") if "probe_miou" in row]
    assert [(row["step"], row["probe_miou"]) for row in rows] == [(5, 1.5), (10, 2.5), (15, 3.5)]
    assert not torch.equal(probed[0], probed[1])
    plain = pretrain(out=tmp_path / "b", **options)
    ends = [read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (out, plain)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    with pytest.raises(UserError, match="probe"):
        pretrain(out=tmp_path / "c", **options, probe_data=tmp_path)


def test_backbones_of_epochs_are_kept_and_survive_a_resumption(tmp_path, tiles):
    """The last one is the exported backbone, the others those of runs that end there."""
    options = {"data": tiles, **SMALL, **MOCO, "precision": "32", "optimizer": Optimizer(schedule="constant")}
    out = tmp_path / "run"
    kept = {**options, "out": out, "epochs": 3, "keep_every": 1, "save_every_steps": 5}

    def files_of(**more):
        done = run_pretraining(resolve(PretrainConfig, None, kept | more))
        return {name: path for name, path in done.files.items() if name.startswith("epoch_")}

    files = files_of()
    assert files == {f"epoch_{n}": out / "exported" / f"backbone_epoch_{n}.safetensors" for n in (1, 2, 3)}
    pretrain(out=tmp_path / "early", **options, epochs=2)
    ends = {
        f"epoch_{n}": load_file(run / "exported" / "backbone.safetensors")
        for n, run in ((2, tmp_path / "early"), (3, out))
    }
    for name, end in ends.items():
        assert all(torch.equal(value, end[key]) for key, value in load_file(files[name]).items())
    with safe_open(files["epoch_2"], "pt") as opened:
        notes = opened.metadata()
    assert (notes["epoch"], notes["steps"], notes["method"]) == ("2", "10", "moco_v2")
    load_weights(build_backbone("test_resnet"), files["epoch_1"])
    early = {name: path.stat().st_mtime_ns for name, path in files.items() if name != "epoch_3"}
    files["epoch_3"].unlink()
    (out / "checkpoints" / "last.ckpt").unlink()  # to resume at step 10
    assert files_of(resume=True) == files
    assert early == {name: files[name].stat().st_mtime_ns for name in early}
    assert all(torch.equal(value, ends["epoch_3"][key]) for key, value in load_file(files["epoch_3"]).items())


def test_kept_backbones_are_named_by_their_epochs_where_these_have_no_whole_number_of_steps(tmp_path, tiles):
    options = {"data": tiles, **SMALL, **MOCO, "precision": "32", "batch_size": 16, "accumulate": 2}  # 2.5 steps
    out = pretrain(out=tmp_path / "run", epochs=4, keep_every=1, **options)
    steps = {}
    for name, path in kept_epochs(out).items():
        with safe_open(path, "pt") as opened:
            steps[name] = opened.metadata()["steps"]
    assert steps == {"epoch_1": "2", "epoch_2": "5", "epoch_3": "7", "epoch_4": "10"}


def test_turned_images_are_probed_as_the_user_says(tmp_path, tiles):
    data = write_tissue(tmp_path / "labelled", train=1, test=1, size=64)
    exif = Image.Exif()
    exif[274] = 3
    (path,) = (data / "test").iterdir()
    Image.open(path).save(path, exif=exif)
    options = {"data": tiles, **SMALL, **MOCO, "max_steps": 1, "probe_data": data, "probe_every": 0.1}
    with pytest.raises(UserError, match="say with --orientation"):
        pretrain(out=tmp_path / "a", **options, probe=lambda *_: {})
    seen = []
    probe = lambda *_, orientation: seen.append(orientation) or {}  # noqa: E731
    pretrain(out=tmp_path / "a", **options, probe=probe, probe_orientation="viewed")
    assert seen == ["viewed"]


WRONG = {
    "no method is called 'mocov2'; did you mean moco_v2": {"method": "mocov2"},
    "unknown option method.queue; did you mean method.queue_size": {"method_options": {"queue": 3}},
    "unknown backbone": {"backbone": "resnet19"},
    "both epochs and max_steps": {"epochs": 1},
    "queue of 4 keys": {"method_options": {"queue_size": 4}},
    "no weights": {"weights": "nowhere.pth"},
    "smaller batch_size": {"batch_size": 64, "method_options": {"queue_size": 64}},
    "has a side of": {"view_size": 200},
    "devices": {"devices": "tpu"},
    "log_every": {"log_every": 0},
    "no logger": {"loggers": ["excel"]},
    "accumulate is 0; give at least 1": {"accumulate": 0},
    "batch_size is -8; give at least 1": {"batch_size": -8},
    "views of 16 x 16 px are too small for test_resnet, whose deepest .* for 32 x 32 px": {"view_size": 16},
    "epochs is 1e\\+308; give a positive number": {"epochs": 1e308, "max_steps": None},
    "epochs is -1.0; give a positive number": {"epochs": -1, "max_steps": None},
    "epochs is 0.0; give a positive number": {"epochs": 0, "max_steps": None},
    "epochs takes a number, not nan": {"epochs": float("nan"), "max_steps": None},
    "max_steps is 1000000000000; give a positive number": {"max_steps": 10**12},
    "save_every_steps is -1; give a positive number, or 0 for never": {"save_every_steps": -1},
    "save_every_minutes is -1.0; give a positive number, or 0": {"save_every_minutes": -1},
    "probe_every is -1.0; give a number of epochs, or 0": {"probe_every": -1},
    "keep_every is -1.0; give a number of epochs, or 0": {"keep_every": -1},
    "augment is 3; give its options by name, as a mapping": {"augment": 3},
    "method_options is 3; give its options by name, as a mapping": {"method_options": 3},
    "optimizer is 'sgd'; give its options by name, as a mapping": {"optimizer": "sgd"},
    "one value of each channel.* a smaller accumulate, or a larger view_size": {
        "accumulate": 8,
        "view_size": 32,
    },
}


@pytest.mark.parametrize(("message", "change"), WRONG.items())
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, tiles, message, change):
    options = {"data": tiles, "out": tmp_path / "run", **SMALL, **MOCO, "max_steps": 2}
    with pytest.raises(UserError, match=message) as caught:
        pretrain(**options | change)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_logger_without_its_package_is_refused_before_images_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"the logger wandb needs a package; pip install 'densepath\[wandb\]'"):
        pretrain(data=tmp_path / "missing", out=tmp_path / "run", **SMALL, **MOCO, max_steps=2, loggers=["wandb"])


def test_missing_and_empty_data_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for data in ("missing", "empty"):
        with pytest.raises(UserError, match=data):
            pretrain(data=tmp_path / data, out=tmp_path / "run", **SMALL, **MOCO, max_steps=2)
    assert not (tmp_path / "run").exists()


def test_the_augmentation_can_be_changed(tmp_path, tiles):
    options = {"data": tiles, **SMALL, **MOCO, "max_steps": 2, "precision": "32"}
    plain = pretrain(out=tmp_path / "plain", **options)
    still = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0, jitter=0, grayscale=0, blur=0)
    same = pretrain(out=tmp_path / "same", **options, augment=still)
    losses = [read_metrics(out / "metrics.csv")[0]["loss"] for out in (plain, same)]
    assert losses[1] < losses[0]  # two equal views are distinguished from the queue at once
    assert yaml.safe_load((same / "config.yaml").read_text())["augment"]["blur"] == 0


def test_too_many_damaged_images_end_the_run_with_their_names(tmp_path, tiles):
    for number in (3, 17):
        (tiles / f"{number:02d}.png").write_bytes(b"not an image")
    options = {"data": tiles, **SMALL, **MOCO, "epochs": 1, "precision": "32"}
    for cache in ("ram", "none"):
        with pytest.raises(UserError, match=r"damaged.*03\.png"):
            pretrain(out=tmp_path / "run", **options, cache=cache)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("epochs", "reported"), [(1, True), (0.3, True), (0.2, False)])  # of 0.4
def test_a_shortened_warm_up_is_reported(tmp_path, tiles, capsys, epochs, reported):
    pretrain(data=tiles, out=tmp_path / "run", **SMALL, **MOCO, max_steps=2, optimizer=Optimizer(warmup_epochs=epochs))
    assert (
        f"the warm-up of {epochs} epoch{'s' * (epochs != 1)} is longer than half" in capsys.readouterr().err
    ) == reported


class Own(Backbone):
    """A network of a user's own, with one stage."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 16, stride=16), "own", {4: 8}, {4: (16, 16)}, patch_size=16)

    def forward(self, x, last=5):
        return {4: self.net(x)}


def test_a_frozen_backbone_is_refused(tmp_path, tiles):
    options = {"data": tiles, **SMALL, **MOCO, "max_steps": 1, "view_size": 48, "out": tmp_path / "run"}
    with pytest.raises(UserError, match=r"own is frozen: none of its parameters .*\.requires_grad_\(True\)"):
        pretrain(**options | {"backbone": Own().requires_grad_(False)})


def test_a_backbone_may_be_a_network(tmp_path, tiles):
    options = {"data": tiles, **SMALL, **MOCO, "max_steps": 2, "precision": "32", "view_size": 48}
    network = timm.create_model("test_resnet", features_only=True)
    named = pretrain(**options | {"backbone": network, "out": tmp_path / "timm"})
    assert yaml.safe_load((named / "config.yaml").read_text())["backbone"] == "test_resnet"
    export(named, tmp_path / "again.safetensors")

    torch.manual_seed(0)
    run = pretrain(**options | {"backbone": Own(), "out": tmp_path / "own", "save_every_steps": 1})
    assert yaml.safe_load((run / "config.yaml").read_text())["backbone"] == "own"
    exported = load_file(run / "exported" / "backbone.safetensors")
    assert sorted(exported) == ["bias", "weight"]
    (run / "checkpoints" / "last.ckpt").unlink()
    pretrain(**options | {"backbone": Own(), "out": run, "save_every_steps": 1, "resume": True})
    again = load_file(run / "exported" / "backbone.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in exported.items())
    with pytest.raises(
        UserError,
        match=r"the backbone of .*own cannot be built from its name \(unknown backbone 'own'.* in Python, pass",
    ):
        export(run)
    with pytest.raises(
        UserError, match=r"own has the weights of 'own', a network that cannot be built .* in Python, pass"
    ):
        backbone_of_weights(run)


def test_a_network_is_given_again_where_its_run_is_used(tmp_path, tiles, capsys):
    options = {"data": tiles, **SMALL, **MOCO, "max_steps": 1, "precision": "32", "view_size": 48}
    run = densepath.pretrain(**options | {"backbone": Own().eval(), "out": tmp_path / "run"})
    assert run.next == () and "in Python, pass the network as backbone" in capsys.readouterr().err
    given = Own()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    first, second = (tmp_path / name for name in ("from_run.safetensors", "from_file.safetensors"))
    densepath.export(run, first, backbone=given)
    densepath.export(first, second, backbone=given)
    assert all(torch.equal(value, load_file(first)[name]) for name, value in load_file(second).items())
    features = densepath.embed(data=tiles, weights=run, backbone=given, out=tmp_path / "f.safetensors", size=48)
    plain = densepath.embed(data=tiles, weights="random", backbone=given, out=tmp_path / "p.safetensors", size=48)
    assert not np.array_equal(features.load().values, plain.load().values)
    densepath.show_similarity(
        data=[tiles], weights=[run], backbone=given, view_size=48, count=2, out=tmp_path / "s.png", devices="cpu"
    )
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in before.items())
    assert given.training and all(parameter.requires_grad for parameter in given.parameters())
    with pytest.raises(UserError, match=r"the checkpoint in .* does not fit the backbone test_resnet"):
        densepath.export(run, backbone=timm.create_model("test_resnet", features_only=True))
    for verb in (densepath.detect, densepath.classify, densepath.segment):
        with pytest.raises(UserError, match=rf"what {verb.__name__} trains is built from a name"):
            verb(data=tiles, out=tmp_path / "other", backbone=given)
