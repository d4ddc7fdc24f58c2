"""Checkpoints of other projects are converted: the right network in them, to any layout, and nothing is lost."""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from densepath.cli import main
from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights, read_weights
from densepath.nets.weights.layouts import to_detectron2
from densepath.transfer.export import export

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def resnet() -> State:
    """torchvision's ResNet-18 without its classifier, every number of its own."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    return {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()}


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


def concl(state: State) -> Any:
    slow = under("encoder_k.0.", other(state)) | {"queue": torch.zeros(128, 4), "neck.mlp.0.weight": torch.zeros(2, 2)}
    return {"meta": {"epoch": 200}, "state_dict": slow | under("backbone.", state), "optimizer": {"state": {}}}


def moco(state: State) -> Any:
    both = under("module.encoder_q.", state) | under("module.encoder_k.", other(state))
    return {"epoch": 200, "arch": "resnet18", "state_dict": both | {"module.encoder_q.fc.0.weight": torch.zeros(4, 4)}}


def byol(state: State) -> Any:
    return {"state_dict": under("target_net.0.", other(state)) | under("online_net.0.", state)}


def dino(state: State) -> Any:
    return {"teacher": under("backbone.", other(state)), "student": under("module.backbone.", state), "epoch": 1}


def pcrl(state: State) -> Any:
    """PCRL's U-Net for images, whose encoder is a ResNet-18."""
    decoder = {"decoder.blocks.0.conv1.0.weight": torch.zeros(8, 8, 3, 3), "segmentation_head.0.bias": torch.zeros(3)}
    return {"state_dict": under("module.", under("encoder.", state) | decoder)}


PROJECTS: dict[str, tuple[Callable[[State], Any], str, str]] = {
    "ConCL, DenseCL": (concl, "backbone.", "encoder_k.0."),
    "MoCo": (moco, "module.encoder_q.", "module.encoder_k."),
    "BYOL": (byol, "online_net.0.", "target_net.0."),
    "DINO": (dino, "student.module.backbone.", "teacher.backbone."),
    "PCRL": (pcrl, "module.encoder.", ""),
}


@pytest.mark.parametrize("project", PROJECTS)
def test_the_trained_network_of_a_checkpoint_is_exported_whole(
    project: str, resnet: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, taken, rival = PROJECTS[project]
    source, out = tmp_path / "checkpoint.pth", tmp_path / "out.safetensors"
    torch.save(write(resnet), source)
    assert main(["export", str(source), "--layout", "torchvision", "--out", str(out)]) == 0
    line = capsys.readouterr().err
    assert f"resnet18 with 100 of 100 tensors from {source} under {taken}" in line
    assert (f"other networks in the file, for --prefix: {rival}" in line) == bool(rival)
    found = load_file(out)
    assert found.keys() == resnet.keys() and all(torch.equal(found[key], resnet[key]) for key in resnet)
    if rival:
        export(source, tmp_path / "slow.safetensors", "timm", prefix=rival)
        assert not any(v.any() for k, v in load_file(tmp_path / "slow.safetensors").items() if "running" in k)


def test_a_pickle_of_detectron2_holds_arrays_and_comes_back(resnet: State, tmp_path: Path) -> None:
    torch.save(concl(resnet), tmp_path / "concl.pth")
    path = export(tmp_path / "concl.pth", tmp_path / "d2.pkl", "detectron2")
    content = pickle.loads(path.read_bytes())
    assert content["matching_heuristics"] is True and content["__author__"] == "densepath"
    wanted = to_detectron2(resnet)
    assert content["model"].keys() == wanted.keys()
    for key, value in content["model"].items():
        assert type(value) is np.ndarray and np.array_equal(value, wanted[key].numpy())
    assert read_weights(path).state_dict.keys() == wanted.keys()
    again = load_file(export(path, tmp_path / "again.safetensors", "torchvision"))
    named = {text for _, text, _ in pickletools.genops(path.read_bytes()) if isinstance(text, str)}
    assert "numpy.core.multiarray _reconstruct" in named  # so that numpy 1 reads it, too
    assert not any("numpy._core" in text for text in named)
    counts = [key for key in resnet if key.endswith("num_batches_tracked")]
    assert all(torch.equal(again[key], resnet[key]) for key in resnet if key not in counts)


def test_a_masked_autoencoder_gives_its_encoder_to_timm(tmp_path: Path) -> None:
    """MAE's names are timm's; heads of 64 channels, as in all of its networks."""
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0).eval()
    nn.init.normal_(network.cls_token)
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 192)}
    torch.save({"model": network.state_dict() | decoder}, tmp_path / "mae.pth")
    path = export(tmp_path / "mae.pth", tmp_path / "out.safetensors")
    assert read_weights(path).metadata["backbone"] == "vit_tiny_patch16_224(img_size=64)"
    loaded = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, checkpoint_path=str(path)).eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), network(pixels))


def other_unet() -> State:
    """Some of the tensors of a U-Net for volumes that densepath lacks."""
    names = {"context.0.conv1.weight": (4, 1, 3, 3, 3), "localization.0.up.weight": (4, 4, 2, 2, 2)}
    return {f"module.{key}": torch.rand(shape) for key, shape in names.items()} | {
        "module.context.0.bn1.running_var": torch.rand(4)
    }


def test_of_a_network_that_densepath_lacks_the_tensors_are_extracted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, source, out = other_unet(), tmp_path / "other.pt", tmp_path / "other.safetensors"
    torch.save({"epoch": 3, "state_dict": state, "optimizer_state_dict": {}}, source)
    with pytest.raises(UserError, match=r"do not show which backbone.*; or write its tensors.*--layout tensors$"):
        export(source, out, "timm")
    assert not out.exists()
    export(source, out)
    lines = capsys.readouterr().err
    assert "so its tensors are written unchanged" in lines
    assert f"3 tensors of a network for volumes from {source} under module.: context.0.conv1.weight" in lines
    found = load_file(out)
    assert found.keys() == {key.removeprefix("module.") for key in state}
    assert all(torch.equal(found[key.removeprefix("module.")], value) for key, value in state.items())


def test_what_lacks_is_named_and_nothing_is_written(
    resnet: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "w.pth", tmp_path / "out.safetensors"
    torch.save(moco({key: value for key, value in resnet.items() if key != "layer4.1.bn2.bias"}), source)
    with pytest.raises(UserError, match=r"99 of the 100 tensors \(not layer4\.1\.bn2\.bias; instead module\.encoder_q"):
        export(source, out, prefix="")
    with pytest.raises(UserError, match=r"has no tensors under 'nobody\.'; its names begin with module\."):
        export(source, out, prefix="nobody")
    with pytest.raises(UserError, match="name the file to write with --out"):
        export(source)
    with pytest.raises(UserError, match="name the file to write with --out"):
        export("resnet18.a1_in1k")
    (tmp_path / "w.txt").write_text("not weights")
    for given in (out, None):
        with pytest.raises(UserError, match="contains no weights"):
            export(tmp_path / "w.txt", given)
    assert "are written" not in capsys.readouterr().err and not out.exists()


def test_the_file_to_convert_is_not_overwritten(resnet: State, tmp_path: Path) -> None:
    source, folder = tmp_path / "w.pth", tmp_path / "model"
    torch.save(resnet, source)
    folder.mkdir()
    save_file(resnet, folder / "model.safetensors")
    for given, out in ((source, source), (folder, folder / "model.safetensors")):
        before = out.read_bytes()
        with pytest.raises(UserError, match="already exists; name another file"):
            export(given, out, "detectron2" if out == source else None)
        assert out.read_bytes() == before


def test_tensors_far_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    """A view that repeats one number would fill the memory when it is copied."""
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1).expand(10**6, 10**6)}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="tensors are far larger than the file"):
        export(tmp_path / "w.pth", tmp_path / "out.safetensors", "tensors")


def test_a_network_is_not_named_for_tensors_as_they_are(tmp_path: Path) -> None:
    torch.save({"state_dict": other_unet()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="takes all tensors of a file as they are; leave backbone out"):
        export(tmp_path / "w.pth", tmp_path / "out.safetensors", "tensors", backbone="resnet18")


def test_grey_images_stay_grey_and_a_backbone_may_be_named(tmp_path: Path) -> None:
    grey = build_backbone("convnext_atto", 1)
    state = timm.create_model("convnext_atto", in_chans=1).state_dict()
    torch.save(under("net.", state), tmp_path / "w.pth")
    with pytest.raises(UserError, match="name it with --backbone"):
        export(tmp_path / "w.pth", tmp_path / "out.safetensors", "timm")
    path = export(tmp_path / "w.pth", tmp_path / "out.safetensors", backbone="convnext_atto")
    assert read_weights(path).metadata["channels"] == "1"
    load_weights(grey, path)
    loaded = timm.create_model("convnext_atto", in_chans=1, num_classes=0, checkpoint_path=str(path)).eval()
    assert torch.equal(loaded.stem[0].weight, grey.net.stem_0.weight)


@pytest.mark.parametrize("name", ["resnet10t", "densenet121", "efficientnet_b0"])
def test_the_first_layer_of_other_stems_is_found(tmp_path: Path, name: str) -> None:
    """Their blocks have a conv1, which is not the layer that sees the image."""
    state = timm.create_model(name, num_classes=0).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    export(tmp_path / "a.safetensors", out=tmp_path / "b.safetensors", backbone=name)
    made = load_file(tmp_path / "b.safetensors")
    stem = f"{timm.get_pretrained_cfg(name).first_conv}.weight"
    assert torch.equal(next(value for key, value in made.items() if key.endswith(stem)), state[stem])


def test_channels_are_those_of_the_network_and_not_of_its_neighbors(resnet: State, tmp_path: Path) -> None:
    torch.save(under("backbone.", resnet) | {"neck.conv1.weight": torch.ones(128, 512, 1, 1)}, tmp_path / "w.pth")
    assert read_weights(export(tmp_path / "w.pth", tmp_path / "a.safetensors")).metadata["channels"] == "3"
    torch.save(build_backbone("resnet10_3d_w2", 1).net.state_dict(), tmp_path / "v.pth")
    said = read_weights(export(tmp_path / "v.pth", tmp_path / "b.safetensors", backbone="resnet10_3d_w2")).metadata
    assert (said["channels"], said["ndim"]) == ("1", "3")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "run",))

    for name in ("w.pkl", "w.pth"):
        content = {"model": {"conv1.weight": Evil()}}
        if name == "w.pkl":
            (tmp_path / name).write_bytes(pickle.dumps(content))
        else:
            torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match="could run code if it were loaded"):
            export(tmp_path / name, tmp_path / "out.safetensors")
    assert not (tmp_path / "run").exists()


def test_weights_do_not_replace_what_they_are_made_of(resnet: State, tmp_path: Path) -> None:
    source = tmp_path / "w.safetensors"
    save_file({f"module.{key}": value for key, value in resnet.items()}, source)
    before = source.read_bytes()
    with pytest.raises(UserError, match="already exists; name another file"):
        export(source, source)
    assert source.read_bytes() == before


def test_runs_without_a_backbone_to_export_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("# densepath 1\ndata: images\nepochs: 1\n")
    with pytest.raises(
        UserError,
        match=r"has no exported/classifier.safetensors or .*; export takes runs of pretrain, and of classify",
    ):
        export(tmp_path)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "detector.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=f"{tmp_path} is not a run of pretrain; name the file to write with --out"):
        export(tmp_path)
