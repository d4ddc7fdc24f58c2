"""Runs of pre-training on volumes."""

import pytest
import torch
import yaml
from safetensors import safe_open

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights
from densepath.runs.checkpoints import read_checkpoint
from densepath.sources.packing import write_store
from densepath.sources.volumes.store import VolumeStore
from densepath.synthetic.volumes import SyntheticVolumes
from densepath.training.pretrain import pretrain

OPTIONS = {
    "backbone": "resnet10_3d_w4_s122",
    "view_size": (16, 24, 24),
    "max_steps": 4,
    "batch_size": 8,
    "devices": "cpu",
}
OPTIONS |= {"precision": "32", "workers": 0, "save_every_steps": 2}
SMALL = {"queue_size": 16, "dim": 8, "hidden_dim": 16}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A packed store of 16 volumes of several sizes."""
    volumes, path = SyntheticVolumes(16, size=(16, 32, 32)), tmp_path_factory.mktemp("volumes") / "volumes.safetensors"
    index = torch.arange(16)
    images = [volumes.read(position) for position in index.tolist()]
    names = [volumes.names(position) for position in index.tolist()]
    write_store(path, images, names, volumes.spec, spacing=volumes.spacing(index).numpy())
    return path


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("moco_v2", {}),
        ("concl", {"num_concepts": 3, "concept_queue_size": 32, "warmup": 0.0}),
        ("semantic_genesis", {"num_classes": 4, "neighbors": 6, "discovery_epochs": 1, "classification_epochs": 0}),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(store, tmp_path, method, options):
    small = SMALL if "num_classes" not in options else {}
    run = {"data": store, "out": tmp_path / "run", "method": method, "method_options": small | options, **OPTIONS}
    checkpoints = pretrain(**run) / "checkpoints"
    whole = read_checkpoint(checkpoints / "last.ckpt")
    (checkpoints / "last.ckpt").unlink()
    assert read_checkpoint(checkpoints / "previous.ckpt")["step"] == 2
    pretrain(**run, resume=True)
    resumed = read_checkpoint(checkpoints / "last.ckpt")
    assert resumed["step"] == whole["step"] == 4
    pairs = {name: (value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items()}
    assert [name for name, (one, other) in pairs.items() if not torch.equal(one, other)] == []

    exported = tmp_path / "run" / "exported" / "backbone.safetensors"
    with safe_open(exported, "pt") as file:
        notes = file.metadata()
    assert (notes["backbone"], notes["layout"], notes["ndim"], notes["channels"]) == (
        OPTIONS["backbone"],
        "densepath",
        "3",
        "1",
    )
    backbone = build_backbone(notes["backbone"], channels=1)
    load_weights(backbone, exported)
    trained = {name.removeprefix("method.backbone."): value for name, value in whole["state_dict"].items()}
    weights = {name: value for name, value in backbone.state_dict().items() if "num_b" not in name}
    assert all(torch.equal(value, trained[name]) for name, value in weights.items())
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["pixels"]["ndim"], config["view_size"]) == (3, [16, 24, 24])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_share": 0.25}, "--val_share compares losses, and those of semantic_genesis have other terms"),
        ({"max_steps": 2}, "no restoration: this begins after 1 epoch, and the last step after 0.5; make it longer"),
        (
            {"batch_size": 10, "accumulate": 2, "max_steps": 2},
            "begins after 1 epoch, and the last step after 0.66; make it longer",
        ),
    ],
)
def test_semantic_genesis_refuses_what_its_parts_do_not_allow(store, tmp_path, options, message):
    own = {"num_classes": 4, "neighbors": 6, "discovery_epochs": 1, "classification_epochs": 0}
    run = {"data": store, "out": tmp_path / "run", "method": "semantic_genesis", "method_options": own, **OPTIONS}
    with pytest.raises(UserError, match=message):
        pretrain(**run | options)


def test_a_network_for_images_is_refused(store, tmp_path):
    run = {"data": store, "out": tmp_path / "run", "method": "moco_v2", "method_options": SMALL}
    with pytest.raises(UserError, match=r"test_resnet takes images of 2 dimensions, but those of .* have 3"):
        pretrain(**run, **{**OPTIONS, "backbone": "test_resnet"})
    assert not (tmp_path / "run").exists()


def test_only_the_boxes_of_views_are_read(store, tmp_path, monkeypatch):
    """In training, of held-out volumes, and for the pictures of predictions."""
    whole, drawn = [], []
    gather = VolumeStore.gather

    def watched(self, index, boxes=None, pin=False):
        whole.extend(index.tolist() if boxes is None else [])
        return gather(self, index, boxes, pin)

    def draw(made, path, spec):
        drawn.append(made)
        return path

    monkeypatch.setattr(VolumeStore, "gather", watched)
    options = {**OPTIONS, "val_share": 0.25, "picture_every": 1, "batch_size": 4, "draw": draw}
    pretrain(data=store, out=tmp_path / "run", method="model_genesis", **options)
    assert drawn and whole == []
    assert "val_loss" in (tmp_path / "run" / "metrics.csv").read_text()
