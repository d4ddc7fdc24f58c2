import sys
from dataclasses import replace
from functools import cache
from multiprocessing import current_process
from types import ModuleType

import numpy as np
import pytest
import torch

from densepath.core.errors import UserError
from densepath.methods import Method, SimCLR
from densepath.nets.backbones import build_backbone
from densepath.sources.pixel_source import PixelSpec
from densepath.training.config import PretrainConfig
from densepath.training.inputs import check_inputs
from densepath.training.optimizers import Optimizer, build_schedule
from densepath.training.recipes import all_options, find_method, is_found, load_recipe, name_of, recipe_names
from densepath.training.resolve import resolve
from densepath.views.augment import Augment
from densepath.views.declarations import view_sizes, without_color
from densepath.views.maker import ViewMaker

PAPER = [
    "byol",
    "concl",
    "concl_grid",
    "concl_saliency",
    "concl_superpixels",
    "conv_mim",
    "densecl",
    "moco_v1",
    "moco_v2",
    "pcl_v2",
    "simclr",
    "supervised",
]
OWN = ["concl_cells", "concl_files", "concl_nuclei"]
MASKED = ["mae", "spark"]
ABLATIONS = ["conv_mim_embedding_masking", "conv_mim_invariance"]
TAUGHT = ["beit_v2", "eva", "vq_kd"]
DISTILLED = ["cellback", "dino", "dirl"]
DENSE = ["esvit", "ibot", "selfpatch"]
HIPT = ["hipt_patch", "hipt_region"]
DEEPER = ["dino_13", "dino_13_two_heads"]
COMPARED = ["dino_imix", "dino_sup"]
OTHERS = ["dirl_simclr", "dirl_byol", "cellback_simclr", "cellback_byol"]  # frameworks besides DINO
CELLS = {"cellback", "dirl", "dino_sup", "dirl_simclr", "dirl_byol"}
RADIOGRAPHS = ["c2l", "model_genesis", "pcrl", "pcrl_released", "semantic_genesis", "swav"]
VOLUMES = ["c2l_3d", "concl_3d", "cpc_3d", "cube", "model_genesis_3d", "moco_v2_3d", "pcrl_3d", "pcrl_3d_released"]
VOLUMES += ["semantic_genesis_3d"]
PCRL_ROWS = ["contrast", "crossmix", "crossmix_05", "flips", "rotnet", "self", "transatt"]
SMALL = [*PAPER, *OWN, *MASKED, *TAUGHT, *DISTILLED, *DENSE, *DEEPER, *COMPARED, *OTHERS, *HIPT, *RADIOGRAPHS, *VOLUMES]
NAMES = sorted(
    [
        *PAPER,
        *OWN,
        *MASKED,
        *TAUGHT,
        *ABLATIONS,
        *DISTILLED,
        *DENSE,
        *DEEPER,
        *COMPARED,
        *OTHERS,
        *HIPT,
        *RADIOGRAPHS,
        *VOLUMES,
    ]
    + [f"pcrl_{row}" for row in PCRL_ROWS]
    + ["pcrl_contrast_small"]
    + [f"{name}_small" for name in SMALL]
)


RUN = {"data": "tiles", "out": "run"}


@cache
def config_of(name):
    """The configuration of a run by a recipe."""
    return resolve(PretrainConfig, name, RUN)


def resolved(name):
    """What a recipe sets, over the defaults of the run and of its method."""
    config = config_of(name)
    return vars(config) | {"method_options": all_options(config.method, config.method_options)}


def norms_of(options):
    """Over which images the batch norms of a run take their statistics, and the size of their groups."""
    assert options["batch_norm"] == "auto"
    return find_method(options["method"]).batch_norm, options["batch_norm_group"]


def test_all_recipes_are_there():
    assert recipe_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_accepted_by_the_run_and_by_its_method(name):
    config, options = config_of(name), resolved(name)
    assert (options["epochs"] is None) != (options["max_steps"] is None)
    backbone = options["backbone"]
    if backbone.startswith("vit_"):  # a smaller one with the same patches
        backbone = "test_vit(patch_size=8)" if "patch_size=8" in backbone else "test_vit"
    backbone = "unet_3d_w2" if backbone == "unet_3d" else backbone  # smaller
    if options["method_options"].get("attention") == "outer":  # 134 million weights
        options["method_options"]["attention"] = "factored"
    network = build_backbone(*((options["backbone"], 384) if options["method"] == "hipt_region" else (backbone,)))
    method = find_method(options["method"])(network, **options["method_options"])
    method.check(view_sizes(method.views(), options["view_size"], network.ndim), options["batch_size"])
    if network.ndim == 3:  # its operations are those of volumes of one channel
        spec = PixelSpec.default(1, (0.0, 1.0), ndim=3)
        views, _ = without_color(method.views(options["augment"]), method.views(), spec)
        ViewMaker(views, options["view_size"], 0, spec)
    needs = {need.kind for need in method.needs().values()}
    wanted = {"files": "regions", "saliency": "regions", "cells": "cells"}.get(
        options["method_options"].get("concepts")
    )
    wanted = wanted or {"eva": "teacher", "vq_kd": "teacher", "beit_v2": "tokenizer"}.get(options["method"])
    wanted = wanted or ("cells" if options["method"] in CELLS else None)
    if wanted:
        assert needs == {wanted}
        with pytest.raises(UserError, match=rf"{options['method']} needs .*--{wanted}"):
            check_inputs(method, config)
        check_inputs(method, replace(config, **{wanted: "x"}))
    else:
        check_inputs(method, config)
        for option in ("regions", "cells", "teacher", "tokenizer"):
            with pytest.raises(UserError, match=f"does not use --{option}; leave that out"):
                check_inputs(method, replace(config, **{option: "x"}))


@pytest.mark.parametrize("name", [name for name in PAPER if name.startswith(("moco_v2", "densecl", "concl", "pcl"))])
def test_the_papers_recipes_hold_its_constants(name):
    options = resolved(name)
    assert (options["epochs"], options["batch_size"], options["view_size"]) == (200, 256, 224)
    assert options["backbone"] == "resnet18"
    assert options["optimizer"] == Optimizer(name="sgd", lr=0.03, momentum=0.9, weight_decay=1e-4, schedule="cosine")
    assert (options["augment"] or Augment()) == Augment()
    method = options["method_options"]
    assert (method["temperature"], method["queue_size"], method["momentum"]) == (0.2, 16384, 0.999)
    assert (method["dim"], method["hidden_dim"]) == (128, 512)
    assert (method["shuffle"], options["batch_norm"], options["batch_norm_group"]) == (True, "auto", 256 // 8)  # 8 GPUs
    if name == "densecl":
        assert (method["match"], method["dense_weight"]) == ("features", 0.5)
    if name == "pcl_v2":
        assert (method["num_clusters"], method["num_negatives"], method["warmup"]) == (None, 2000, 0.1)
    if "concl" in name:
        assert (method["concept_queue_size"], method["warmup"], method["concept_weight"]) == (16384, 0.1, 1.0)
    if name == "concl":
        assert (method["concepts"], method["num_concepts"], method["stage"]) == ("kmeans", 8, 4)
    if name == "concl_grid":
        assert (method["concepts"], method["grid_size"]) == ("grid", 3)
    if name == "concl_superpixels":
        assert (method["concepts"], method["superpixel_scale"]) == ("superpixels", 50)
    if name == "concl_saliency":
        assert method["concepts"] == "saliency"


def test_the_recipes_for_volumes_hold_the_papers_constants():
    options = {name: resolved(name) for name in VOLUMES}
    for name, each in options.items():
        assert each["backbone"] == "unet_3d" and each["view_size"] == (128 if name == "cpc_3d" else (32, 64, 64))
    pcrl, released = (options[name]["method_options"] for name in ("pcrl_3d", "pcrl_3d_released"))
    assert [options[name]["batch_size"] for name in ("pcrl_3d", "pcrl_3d_released")] == [32, 16]
    assert (pcrl["min_iou"], pcrl["momentum"], pcrl["attention"], pcrl["temperature"]) == (0.2, 0.99, "outer", 0.2)
    assert (released["min_iou"], released["momentum"], released["temperature"]) == (0.25, 0.999, 0.2)
    largest = [max(map(tuple, each["windows"]), key=lambda sides: sides[1]) for each in (pcrl, released)]
    assert largest == [(56, 112, 112), (64, 112, 112)] and tuple(released["border"]) == (15, 70, 70)
    assert [options[name]["augment"].rotation_axes for name in ("pcrl_3d", "pcrl_3d_released")] == ["xy", "all"]
    genesis = options["model_genesis_3d"]
    assert (genesis["batch_size"], genesis["method_options"]) == (6, {"resize": False})
    assert genesis["optimizer"] == Optimizer(lr=1.0, weight_decay=0.0)
    patience = [(options[name]["val_share"], options[name]["patience"]) for name in ("pcrl_3d", "model_genesis_3d")]
    assert patience == [(0.1, 30 * 16), (0.1, 50 * 32)]
    semantic = options["semantic_genesis_3d"]["method_options"]
    assert (semantic["num_classes"], semantic["neighbors"], semantic["classification_weight"]) == (44, 200, 0.01)
    cpc = options["cpc_3d"]["method_options"]
    assert (cpc["side"], cpc["rows"], cpc["dim"], cpc["hidden_dim"]) == (32, 4, 1024, 256)
    assert options["cube"]["method_options"]["side"] == 16


@pytest.mark.parametrize("name", DISTILLED + DEEPER + COMPARED)
def test_the_recipes_of_dirl_hold_its_constants_and_dinos(name):
    options = resolved(name)
    if name in DEEPER:
        assert options["method_options"].pop("early_head") == (name == "dino_13_two_heads")
        options["backbone"] = options["backbone"].replace("depth=13, ", "")
    assert (options["epochs"], options["batch_size"], options["view_size"]) == (100, 256, 224)
    assert options["backbone"] == "vit_small_patch16_224(class_token=False, global_pool='avg', fc_norm=False)"
    assert options["augment"] is None
    decay = {"weight_decay": 0.04, "final_weight_decay": 0.4, "exclude_norm_and_bias": True, "decay_tokens": True}
    limits = {"clip_norm": 3.0, "clip": "tensor", "freeze": ("heads.*.prototypes.*",), "freeze_epochs": 1}
    rate = {"lr": 5e-4, "warmup_epochs": 10, "warmup_start": 0.0, "final_lr": 0.002}
    assert options["optimizer"] == Optimizer(name="adamw", **rate, **decay, **limits)
    method = options["method_options"]
    assert (method["prototypes"], method["hidden_dim"], method["dim"], method["fixed_lengths"]) == (
        65536,
        2048,
        256,
        True,
    )
    temperatures = [method[f"teacher_temperature{part}"] for part in ("", "_start", "_epochs")]
    assert (method["student_temperature"], *temperatures) == (0.1, 0.04, 0.04, 0)
    assert (method["momentum"], method["center_momentum"], method["drop_path"]) == (0.996, 0.9, 0.1)
    assert (method["local_crops"], round(224 * method["local_size"])) == (8, 96)
    if name in ("cellback", "dirl"):
        assert (method["region_weight"], method["num_regions"], method["prior"]) == (0.5, 2, "cells")
    if name == "dirl":
        assert (method["interaction_weight"], method["interaction_prototypes"]) == (0.1 / 4, 4096)
        assert method["shared_block"]


@pytest.mark.parametrize(("name", "steps", "size"), [("hipt_patch", 400_000, 224), ("hipt_region", 200_000, 14)])
def test_the_recipes_of_hipt_hold_its_constants_and_dinos(name, steps, size):
    options, dino = resolved(name), resolved("dino")
    assert (options["max_steps"], options["batch_size"], options["view_size"]) == (steps, 256, size)
    assert options["optimizer"] == dino["optimizer"] and options["method_options"].pop("pool") == "cls"
    assert options["method_options"].items() <= dino["method_options"].items()
    assert round(size * options["method_options"]["local_size"]) == (96 if size == 224 else 6)


@pytest.mark.parametrize("name", DENSE)
def test_the_recipes_of_dense_distillation_hold_their_constants_and_dinos(name):
    options, dino = resolved(name), resolved("dino")
    own, theirs = options["method_options"], dino["method_options"]
    paper = {"fixed_lengths": False, "teacher_temperature": 0.07, "teacher_temperature_epochs": 30}
    if name == "ibot":
        theirs |= paper | {"prototypes": 8192, "local_crops": 10, "pool": "cls", "shared_head": True}
        theirs |= {"patch_weight": 1.0, "mask_ratio": 0.3, "mask_spread": 0.2, "mask_probability": 0.5}
        dino |= {"epochs": 800, "batch_size": 1024, "optimizer": replace(dino["optimizer"], lr=2e-3, final_lr=5e-4)}
    if name == "esvit":
        theirs |= paper | {"pool": "cls"}
    if name == "selfpatch":
        theirs |= {"patch_weight": 0.1, "patch_prototypes": 4096, "neighbors": 4}
    for part in ("epochs", "batch_size", "view_size", "optimizer", "augment"):
        assert options[part] == dino[part]
    assert {key: own[key] for key in theirs if key in own} == {key: theirs[key] for key in theirs if key in own}
    assert theirs.keys() - own.keys() <= {"pool", "early_head"}
    assert options["backbone"] == (dino["backbone"] if name == "selfpatch" else "vit_small_patch16_224")


@pytest.mark.parametrize("name", OTHERS)
def test_the_recipes_of_other_frameworks_hold_dirls_and_dsmils_constants(name):
    """Table 8: 20 epochs, batches of 512; DSMIL's SimCLR; BYOL's heads and momentum."""
    options = resolved(name)
    assert (options["epochs"], options["batch_size"], options["view_size"]) == (20, 512, 224)
    assert options["backbone"] == "vit_small_patch16_224(class_token=False, global_pool='avg', fc_norm=False)"
    assert options["augment"] is None
    method = options["method_options"]
    assert (method["region_weight"], method["interaction_weight"], method["num_regions"]) == (0.5, 0.1 / 4, 2)
    assert method["interactions"] == name.startswith("dirl") and method["dim"] == 256
    if name.endswith("simclr"):
        assert (method["temperature"], method["hidden_dim"]) == (0.5, None)
        assert (options["mean"], options["std"]) == ((0.0,) * 3, (1.0,) * 3)
        assert options["optimizer"] == Optimizer(name="adamw", lr=1e-5, weight_decay=1e-5)
    else:
        assert (method["momentum"], method["hidden_dim"]) == (0.996, 4096)
        assert (options["optimizer"].lr, options["optimizer"].warmup_epochs) == (5e-4 * 512 / 256, 2)


@pytest.mark.parametrize("name", ["conv_mim", "conv_mim_embedding_masking", "conv_mim_invariance"])
def test_the_recipes_of_conv_mim_hold_its_constants(name):
    options = resolved(name)
    assert (options["epochs"], options["batch_size"], options["view_size"]) == (800, 256, 224)
    assert options["backbone"] == "resnet18"
    assert options["optimizer"] == Optimizer(name="sgd", lr=0.03, momentum=0.9, weight_decay=1e-4, schedule="cosine")
    method, invariant = options["method_options"], name != "conv_mim_embedding_masking"
    assert (method["mask_ratio"], method["patch"], method["width"]) == (0.7, 32, 256)
    assert (method["masking"], method["stem"]) == ("sparse" if name == "conv_mim_invariance" else "stem", "before_pool")
    assert (method["invariance"], method["normalize_target"]) == (invariant, False)
    assert (options["augment"] or Augment()) == (Augment() if invariant else Augment(jitter=0, grayscale=0, blur=0))


def test_the_papers_recipes_of_the_baselines_hold_their_constants():
    """SimCLR, BYOL and MoCo-v1: the table of ConCL's released configurations."""
    simclr, byol, moco = (resolved(name) for name in ("simclr", "byol", "moco_v1"))
    for options in (simclr, byol, moco):
        assert (options["epochs"], options["view_size"], options["backbone"]) == (200, 224, "resnet18")
        assert options["augment"] is None  # the method's own
    assert (simclr["batch_size"], byol["batch_size"], moco["batch_size"]) == (1024, 1024, 256)
    lars = {"name": "lars", "momentum": 0.9, "schedule": "cosine", "decay_in_warmup": True}  # as mmcv
    assert simclr["optimizer"] == Optimizer(lr=0.6, weight_decay=1e-6, warmup_epochs=10, **lars)
    assert byol["optimizer"] == Optimizer(lr=0.2, weight_decay=1.5e-6, warmup_epochs=2, **lars)
    step = {"schedule": "step", "milestones": (120, 160)}
    assert moco["optimizer"] == Optimizer(name="sgd", lr=0.03, momentum=0.9, weight_decay=1e-4, **step)
    assert [norms_of(options) for options in (simclr, byol, moco)] == [*[("synchronized", 0)] * 2, ("per_process", 32)]
    assert simclr["method_options"] == {"dim": 128, "temperature": 0.1, "hidden_dim": 512}
    assert byol["method_options"] == {"dim": 256, "momentum": 0.996, "hidden_dim": 512}
    queue = {"queue_size": 16384, "momentum": 0.999, "standardize": False, "shuffle": True}
    assert moco["method_options"] == {"dim": 128, "temperature": 0.07, **queue}


def test_simclr_and_byol_decay_from_the_start_as_the_released_code():
    """mmcv's cosine begins at epoch 0: half of the learning rate is left at epoch 100 of 200, not 0.541 of it."""
    for name in ("simclr", "byol"):
        settings = Optimizer(**load_recipe(name)["optimizer"])
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.lr)
        schedule = build_schedule(optimizer, settings, total_steps=200 * 78, steps_per_epoch=78)
        assert schedule.lr_lambdas[0](100 * 78) == pytest.approx(0.5)
        assert not Optimizer(**load_recipe(f"{name}_small")["optimizer"]).decay_in_warmup


def test_the_papers_recipe_of_supervised_pre_training_holds_its_constants():
    options = resolved("supervised")
    assert (options["epochs"], options["batch_size"], options["view_size"]) == (100, 256, 224)
    step = {"schedule": "step", "milestones": (80,)}
    assert options["optimizer"] == Optimizer(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, **step)
    assert options["augment"] is None  # the method's own
    assert options["method_options"] == {}
    assert norms_of(options) == ("synchronized", 0)


def test_the_papers_recipes_of_masked_image_modelling_hold_their_constants():
    """Tables of MAE and the released SparK, at the length and batch size of Conv-MIM."""
    mae, spark = (resolved(name) for name in MASKED)
    for options in (mae, spark):
        assert (options["epochs"], options["batch_size"], options["view_size"]) == (800, 256, 224)
        assert options["augment"] is None  # the method's own
    assert (mae["backbone"], spark["backbone"]) == ("vit_small_patch16_224", "resnet18")
    adamw = {"name": "adamw", "weight_decay": 0.05, "exclude_norm_and_bias": True, "warmup_start": 0.0}
    assert mae["optimizer"] == Optimizer(lr=1.5e-4, momentum=0.9, beta2=0.95, warmup_epochs=40, **adamw)
    decoder = {"decoder_depth": 8, "decoder_dim": 512, "decoder_heads": 16}
    assert mae["method_options"] == {"mask_ratio": 0.75, "fixed_positions": True, **decoder}
    decay = {"weight_decay": 0.04, "final_weight_decay": 0.2, "clip_norm": 5.0}
    course = {"warmup_epochs": 40, "warmup_start": 0.005, "final_lr": 0.001}
    assert spark["optimizer"] == Optimizer(name="lamb", lr=2e-4, momentum=0.9, beta2=0.95, **decay, **course)
    assert spark["method_options"] == {"mask_ratio": 0.6, "decoder_dim": 768}
    assert norms_of(spark) == ("synchronized", 0)


def test_the_papers_recipes_with_a_frozen_target_hold_their_constants():
    """BEiT-v2's released scripts, and MAE's settings for EVA, at the batch size of Conv-MIM."""
    beit, eva, vq_kd = (resolved(name) for name in TAUGHT)
    for options, epochs in ((beit, 800), (eva, 800), (vq_kd, 100)):
        assert (options["epochs"], options["batch_size"], options["view_size"]) == (epochs, 256, 224)
        assert options["augment"] is None  # the method's own
    assert eva["optimizer"] == resolved("mae")["optimizer"] and eva["backbone"] == "vit_small_patch16_224"
    decoder = {"mask_ratio": 0.75, "decoder_depth": 8, "decoder_dim": 512, "decoder_heads": 16}
    assert eva["method_options"] == {"fixed_positions": True, **decoder}
    adamw = {"name": "adamw", "exclude_norm_and_bias": True, "warmup_epochs": 10}
    course = {"lr": 1.5e-3 * 256 / 2048, "final_lr": round(1e-5 / 1.5e-3, 6), "clip_norm": 3.0}
    assert beit["optimizer"] == Optimizer(weight_decay=0.05, beta2=0.999, **adamw, **course)
    layers = {"early_layer": None, "head_layers": 2, "layer_scale": 0.1}  # the early layer is 9 of 12
    masks = {"mask_ratio": 75 / 196, "smallest_block": 16}
    assert beit["method_options"] == {**masks, **layers}
    course = {"lr": 5e-5 * 256 / 128, "final_lr": 0.1}
    assert vq_kd["optimizer"] == Optimizer(weight_decay=1e-4, beta2=0.99, **adamw, **course)
    codes = {"num_codes": 8192, "code_dim": 32, "momentum": 0.99, "restart_below": 0.0}
    decoder = {"commitment": 1.0, "decoder_depth": 3}
    assert vq_kd["method_options"] == {**codes, **decoder}


@pytest.mark.parametrize("name", PAPER + OWN + MASKED + TAUGHT)
def test_small_recipes_fit_two_thousand_tiles(name):
    options = resolved(f"{name}_small")
    assert options["max_steps"] * options["batch_size"] == 51_200
    method = options["method_options"]
    if "queue_size" in method:
        # Queues hold well under half of 2,000 images, and keys in them stay nearly as they were: the encoder that made
        # the oldest has moved by a few percent since.
        assert method["queue_size"] <= 2000 / 2
        assert 1 - method["momentum"] ** (method["queue_size"] / options["batch_size"]) < 0.05
        assert method["standardize"]
    if "num_clusters" in method:
        assert options["batch_size"] < min(method["num_clusters"]) and max(method["num_clusters"]) <= 2000 / 2


def test_a_users_own_file_is_read(tmp_path):
    (tmp_path / "mine.yaml").write_text("method: moco_v2\noptimizer: {lr: 1, milestones: [1, 2]}\naugment: {blur: 0}\n")
    config = resolve(PretrainConfig, tmp_path / "mine.yaml", RUN)
    assert config.optimizer == Optimizer(lr=1, milestones=(1, 2))
    assert config.augment == Augment(blur=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: null", "^--out must be given"),
        ("out: no", "mine.yaml: out takes text or path, not false; write it in quotes$"),
        ("out: [run]", r'mine.yaml: out takes text or path, not \["run"\]$'),
        ("out: 2024-01-01", 'mine.yaml: out takes text or path, not "2024-01-01"; write it in quotes$'),
        ("out: 1_0", "mine.yaml: out takes text or path, not 10; write it in quotes$"),
        ("exclude: [1]", r"mine.yaml: exclude takes values, each text, not \[1\]; write it in quotes$"),
        (
            "batch_size: '010'",
            "mine.yaml: batch_size takes a whole number, not '010'; leave out zeros at its beginning",
        ),
        ("1: 2\nmethod: moco_v2", "mine.yaml has the key 1, which is not the name of an option"),
        ("batch_size: 8.0", "mine.yaml: batch_size takes a whole number, not 8.0$"),
        ("batch_norm: null", "mine.yaml: batch_norm takes one of auto, per_process, synchronized, not null$"),
        ("accumulate: no", "mine.yaml: accumulate takes a whole number, not false$"),
        ("lr: .nan", "mine.yaml: lr takes a number, not NaN$"),
        ("optimizer: {lr: .nan}", "mine.yaml: optimizer.lr takes a number, not NaN$"),
        ("optimizer: 1\nlr: 1", "mine.yaml: optimizer is 1; give its options by name"),
        ("optimizer: {lr: 1}\nlr: 1", "mine.yaml: lr and optimizer.lr are the same option"),
        (
            "method: moco_v2\nmethod_options: {dim: few}",
            "mine.yaml: method_options.dim takes a whole number, not 'few'$",
        ),
        ("method: null", "mine.yaml: method takes the name of a method, not null$"),
        ("sed: 1", "mine.yaml: unknown option sed; did you mean seed"),
    ],
)
def test_an_invalid_value_is_named_as_the_recipe_has_it(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        resolve(PretrainConfig, tmp_path / "mine.yaml", {"data": "tiles"} | ({} if "out" in text else {"out": "run"}))


def test_what_overrides_an_invalid_value_of_a_recipe_counts(tmp_path):
    (tmp_path / "mine.yaml").write_text("batch_size: 8.0\nout: null\n")
    assert resolve(PretrainConfig, tmp_path / "mine.yaml", RUN | {"batch_size": 4}).batch_size == 4
    with pytest.raises(UserError, match=r"^--batch_size takes a whole number, not 4\.0$"):
        resolve(PretrainConfig, tmp_path / "mine.yaml", RUN | {"batch_size": 4.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": None}, "--out must be given"),
        ({"labels": None}, "--labels takes text or path, not None"),
        ({"backbone": None}, "--backbone takes text, not None"),
        ({"method": None}, "no method is called None"),
    ],
)
@pytest.mark.parametrize("recipe", [None, "moco_v2_small"])
def test_none_is_not_the_name_of_anything(recipe, options, message):
    with pytest.raises(UserError, match=message):
        resolve(PretrainConfig, recipe, RUN | options)


def test_an_object_of_a_method_is_refused_in_a_line():
    method = SimCLR(build_backbone("resnet18"))
    with pytest.raises(UserError, match=r"^method is an object of SimCLR; give its class, and method_options$"):
        resolve(PretrainConfig, None, RUN | {"method": method})


@pytest.mark.parametrize("value", [1, "yes"])
def test_what_is_not_true_or_false_is_named(value):
    with pytest.raises(UserError, match=f"^--resume takes true or false, not {value!r}$"):
        resolve(PretrainConfig, None, RUN | {"resume": value})


MINE = """
import densepath
from densepath.methods.base import Method

class Mine(Method):
    views = forward = lambda self: None

densepath.pretrain(method=Mine, data="tiles", out="run")
"""


def test_a_method_of_a_script_or_notebook_is_found_where_it_runs_and_never_starts_a_run(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r'mine:Mine cannot be imported: the script runs again .* if __name__ == "__main__"'
    ):
        find_method("mine:Mine")
    main = ModuleType("__main__")
    main.Mine = type("Mine", (Method,), {"__module__": "__main__", "views": len, "forward": len})
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert name_of(main.Mine) == "__main__:Mine" and find_method("__main__:Mine") is main.Mine
    main.__file__ = "<stdin>"
    assert name_of(main.Mine) == "__main__:Mine"
    main.__file__ = str(tmp_path / "mine.py")
    assert name_of(main.Mine) == "mine:Mine" and find_method("mine:Mine") is main.Mine and not is_found(main.Mine)
    with pytest.raises(UserError, match=r"Other was defined in a notebook .* write methods:Other into"):
        find_method("__main__:Other")
    assert is_found(find_method("concl"))


def test_another_method_than_that_of_a_recipe_has_its_own_options():
    made = resolve(PretrainConfig, "dino_small", {"method": "moco_v2", "data": "tiles", "out": "run"})
    assert (made.method, made.method_options) == ("moco_v2", all_options("moco_v2", {}))
    with pytest.raises(UserError, match=r"unknown option method\.prototypes"):
        resolve(PretrainConfig, "dino_small", {"method": "moco_v2", "method_options": {"prototypes": 9}})


def test_no_verb_trains_in_a_process_that_starts(monkeypatch):
    monkeypatch.setattr(current_process(), "_inheriting", True, raising=False)
    with pytest.raises(UserError, match="the script runs again"):
        resolve(PretrainConfig, None, {"data": "tiles", "out": "run"})


def test_the_error_about_an_unknown_name_suggests_the_closest():
    with pytest.raises(UserError, match="did you mean concl"):
        load_recipe("conkl")
    with pytest.raises(UserError, match=r"there are: beit_v2, beit_v2_small, byol,.*moco_v2_small"):
        load_recipe("xyz")
    with pytest.raises(UserError, match="did you mean moco_v2"):
        find_method("moco_v3")
    with pytest.raises(UserError, match="'num_concept'; did you mean num_concepts"):
        all_options("concl", {"num_concept": 3})
    with pytest.raises(UserError, match=r"unknown option optimizer\.warmup; did you mean optimizer\.warmup_start\?"):
        resolve(PretrainConfig, None, RUN | {"optimizer": {"warmup": 1}})


def test_numbers_of_numpy_are_numbers():
    numbers = {"seed": np.int64(3), "optimizer": {"lr": np.float32(0.5)}, "resume": np.bool_(True)}
    config = resolve(PretrainConfig, "moco_v2_small", RUN | numbers)
    assert (config.seed, config.optimizer.lr, config.resume) == (3, 0.5, True)


def test_the_backbone_is_not_a_methods_option():
    with pytest.raises(UserError, match="no option 'backbone'"):
        all_options("moco_v2", {"backbone": "resnet50"})


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"method": "simclr"}, {}, r"not as a value of type dict; give options by name: pretrain\(\*\*options\)$"),
        (3, {}, "not as a value of type int"),
        ("simclr", {"data": np.zeros((2, 8, 8, 3))}, "^data takes a path, not a value of type ndarray; .*write_store"),
        ("simclr", {"data": "d", "out": 5}, "^out takes a path, not 5$"),
        (PretrainConfig(data=torch.zeros(2), out="o"), {}, "^data takes a path, not a value of type Tensor$"),
        (
            "simclr",
            {"data": "d", "out": "o", "method_options": {"dim": np.ones(2)}},
            "dim takes a whole number",
        ),
    ],
)
def test_what_is_neither_a_recipe_nor_a_path_is_refused(config, options, message):
    with pytest.raises(UserError, match=message):
        resolve(PretrainConfig, config, options)


def test_a_device_of_torch_is_taken_by_its_name():
    assert resolve(PretrainConfig, "simclr", {"data": "d", "out": "o", "devices": torch.device("cpu")}).devices == "cpu"


@pytest.mark.parametrize(
    "text", ["[1, 2]", "", "a: [", "1: 2", "method: !!python/object/apply:os.mkdir [exploded]", "\x00"]
)
def test_a_file_that_is_not_a_recipe_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_recipe(tmp_path / "bad.yaml")
    assert not (tmp_path / "exploded").exists()


def test_the_configuration_of_another_verbs_run_is_named(tmp_path):
    for verb, other, text in (("", "detect", "test_size: 64\n"), ("detect", "", "method: concl\n")):
        path = tmp_path / f"{other}.yaml"
        path.write_text(f"# densepath 0.1.0\ndata: tiles\n{text}")
        assert load_recipe(path, other)["data"] == "tiles"
        with pytest.raises(UserError, match=r"configuration of a run of another verb; give that of "):
            load_recipe(path, verb)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml cannot be read"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blurr": 0.5}, r"unknown option augment\.blurr; did you mean augment\.blur\?"),
        ({"scale": [0.5, 0.2]}, "augment.scale must be two positive numbers"),
        ({"scale": [0.5, 2.0]}, "at most 1"),
        ({"flip": 1.5}, "augment.flip must be between 0 and 1"),
        ({"hue": 0.7}, "at most 0.5"),
        ({"brightness": -1}, "must be at least 0"),
        ({"scale": 3}, r"augment\.scale takes 2 values, each a number, not 3"),
        ({"flip": "often"}, r"augment\.flip takes a number, not 'often'"),
    ],
)
def test_wrong_options_of_the_views_are_named(options, message):
    with pytest.raises(UserError, match=message) as error:
        resolve(PretrainConfig, None, RUN | {"augment": options})
    assert "\n" not in str(error.value)


def test_options_of_the_views_change_those_of_the_method():
    """A method with other views than the common ones, MAE, keeps what is not given."""
    config = resolve(PretrainConfig, None, RUN | {"augment": {"scale": [0.5, 1.0], "blur": 0.1}})
    assert config.augment == Augment(scale=(0.5, 1.0), blur=0.1)
    config = resolve(PretrainConfig, "mae_small", RUN | {"augment": {"scale": [0.5, 1.0]}})
    assert (config.augment.scale, config.augment.jitter, config.augment.blur) == ((0.5, 1.0), 0.0, 0.0)


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(UserError, match=r"is a folder, not a recipe"):
        load_recipe(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=rf"is the folder of a run; give its recipe, {tmp_path}/config.yaml$"):
        load_recipe(tmp_path)


def test_the_configuration_of_a_run_that_has_moved_names_its_folder(tmp_path, monkeypatch):
    text = "# densepath 1.0\nmethod: moco_v2\ndata: tiles\nout: runs/a\n"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for folder, is_run, out in (("runs/a", True, "runs/a"), ("moved", True, "moved"), ("copy", False, "runs/a")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "config.yaml").write_text(text)
        if is_run:
            (tmp_path / folder / "train.log").touch()
        assert str(resolve(PretrainConfig, f"{folder}/config.yaml", {"resume": True}).out) == out
    assert str(resolve(PretrainConfig, "moved/config.yaml", {"out": "b", "resume": True}).out) == "b"
    (tmp_path / "moved" / "config.yaml").write_text(text.partition("\n")[2])  # a recipe of the user
    assert str(resolve(PretrainConfig, "moved/config.yaml", {"resume": True}).out) == "runs/a"
