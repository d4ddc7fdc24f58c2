"""Three steps of training by one process, and the same by two over gloo; forked from one that has imported everything.

Usage: python multi_process.py FOLDER. Writes what each process saw to FOLDER/CASE.PROCESSES.RANK.pt.
"""

import inspect
import os
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from targets import CODES, prepare, write_tokenizer

from densepath.core.affine import compose, from_box
from densepath.core.distributed import mean, rank, world_size
from densepath.methods import (
    BYOL,
    C2L,
    CPC,
    DINO,
    EVA,
    IBOT,
    MAE,
    PCLV2,
    PCRL,
    VQKD,
    BEiTv2,
    Cellback,
    ConCL,
    ConvMIM,
    DenseCL,
    DINOSup,
    DiRL,
    DiRLBYOL,
    DiRLSimCLR,
    EsViT,
    MoCoV1,
    MoCoV2,
    ModelGenesis,
    PCRLReleased,
    SelfPatch,
    SimCLR,
    SparK,
    Supervised,
    SwAV,
)
from densepath.nets.backbones import build_backbone
from densepath.nets.decoders import build as decoders
from densepath.nets.decoders.unet import UNetDecoder
from densepath.nets.running_statistics import gather_statistics, set_statistics
from densepath.sources.batch import ImageBatch
from densepath.sources.image_files import ImageFiles
from densepath.synthetic.volumes import SyntheticVolumes
from densepath.training.batch_norm import share_statistics
from densepath.training.validation import Patience, Validation
from densepath.views.crops import Crop
from densepath.views.declarations import Cover, RandomView
from densepath.views.intensity import GaussianBlur, IntensityJitter
from densepath.views.maker import ViewMaker
from densepath.views.random_streams import Draw
from densepath.views.turns import turn_maps, turned
from densepath.views.view import View

IMAGES = 8
STEPS = 3
ATTENTION = {"attention": "factored", "attention_rank": 4}
SMALL = {"queue_size": 24, "momentum": 0.9, "hidden_dim": 32, "dim": 16}
CONCL = {"concept_queue_size": 33, "warmup": 0.0, "concept_weight": 0.6}
DECODER = {"decoder_depth": 1, "decoder_dim": 32, "decoder_heads": 2}
PCL = {"num_clusters": (10, 12), "num_negatives": 3}
DISTILLED = {"prototypes": 24, "interaction_prototypes": 10, "local_crops": 2, "drop_path": 0.3, "num_regions": 3}
DISTILLED |= {"patch_prototypes": 10, "koleo_weight": 0.1, "neighbors": 2}
DISTILLED["head_batch_norm"] = True
MIM = {"side": 12, "patch": 16, "width": 16, "heads": 2}
KMEANS, GRID = {"num_concepts": 3, "stage": 3}, {"concepts": "grid", "grid_size": 2}
SUPERPIXELS = {"concepts": "superpixels"}  # in the case "groups"
GRIDS = ("shuffled", "synchronized")  # cases with the concepts of a grid, as these surely have none in common at times
# name: the options that both have, and over what batch norms are in one process, and in each of two.
CASES = {
    "default": ({}, ("per_process", 4), ("per_process", 0)),
    "groups": ({"shuffle": False, "standardize": True}, ("per_process", 2), ("per_process", 2)),
    "shuffled": ({"shuffle": True}, ("per_process", 2), ("per_process", 2)),
    "synchronized": ({"standardize": True}, ("per_process", 0), ("synchronized", 0)),
    "transformer": ({}, ("auto", 0), ("auto", 0)),
    "volumes": ({"standardize": True}, ("per_process", 4), ("per_process", 0)),
}
BACKBONES = {"transformer": "test_vit", "volumes": "resnet10_3d_w4_s122"}
KINDS = {
    MoCoV2: tuple(CASES),
    ConCL: tuple(CASES),
    DenseCL: ("default", "synchronized", "volumes"),  # by features and by geometry
    SimCLR: ("default", "groups", "synchronized", "transformer"),
    BYOL: ("groups", "synchronized", "transformer"),
    MoCoV1: ("shuffled",),
    PCLV2: ("shuffled", "synchronized"),
    Supervised: ("groups", "synchronized"),
    SparK: ("groups", "synchronized"),
    MAE: ("transformer",),
    ConvMIM: ("groups", "synchronized"),
    EVA: ("transformer",),
    VQKD: ("transformer",),
    BEiTv2: ("transformer",),
    DINO: ("default", "groups", "transformer"),
    Cellback: ("transformer",),
    DiRL: ("transformer",),
    EsViT: ("transformer",),
    SelfPatch: ("transformer",),
    IBOT: ("transformer",),
    DINOSup: ("transformer",),
    DiRLSimCLR: ("default", "transformer"),
    DiRLBYOL: ("transformer",),
    PCRL: ("groups", "shuffled", "volumes"),
    PCRLReleased: ("shuffled",),
    C2L: ("groups",),
    ModelGenesis: ("synchronized",),
    CPC: ("synchronized",),
    SwAV: ("default", "synchronized"),
}

VALIDATED = (MoCoV2, SimCLR, SwAV)  # whose keys, negatives or codes are those of all processes in training


def views_of(step, part=slice(IMAGES)):
    """The views of a step's global batch, or of a part of it."""
    coarse = torch.rand(IMAGES, 3, 6, 6, generator=torch.Generator().manual_seed(step))
    pixels = F.interpolate(coarse, size=(48, 48), mode="bicubic").clamp(0, 1) * 255
    pixels, sizes = pixels.permute(0, 2, 3, 1).to(torch.uint8), torch.full((IMAGES, 2), 48)
    index = torch.arange(IMAGES) + IMAGES * step
    # As of superpixels: each in only one image, more than a view has positions
    labels = (index.view(-1, 1, 1) * 6 + torch.arange(6).view(2, 3)).repeat_interleave(6, 1).repeat_interleave(6, 2)
    cells = torch.rand(IMAGES, 7, 3, generator=torch.Generator().manual_seed(step)) * 2 - 1
    cells[..., 2] = (cells[..., 2] > 0).float()
    cells[step * IMAGES // 3 :, 1:] = torch.nan  # in the second step, the second process has few, and no region always
    extras = {"regions": labels[part], "cells": cells[part]}
    images = ImageBatch(pixels[part], sizes[part], index[part], step=step, progress=0.5, extras=extras)
    return ViewMaker(ConCL.views(), 48, seed=3)(images)


def volumes_of(step):
    """The views of a step's global batch of volumes."""
    volumes = SyntheticVolumes(STEPS * IMAGES, size=(12, 24, 24))
    index = torch.arange(IMAGES) + IMAGES * step
    gathered = volumes.gather(index)
    images = ImageBatch(gathered.pixels, gathered.sizes, index, step=step, progress=0.5, spacing=volumes.spacing(index))
    crop = RandomView(Crop(scale=(0.4, 1.0), rotation=10.0), (IntensityJitter(), GaussianBlur()))
    views = {"query": crop, "key": crop, "reference": Cover(of=("query", "key"))}
    return ViewMaker(views, (16, 32, 32), seed=3, spec=volumes.spec)(images)


def batch_of(kind, step, batch):
    """This process's part of a step's views. In the second step the last images' views show nothing in common."""
    count = IMAGES // world_size()
    part = slice(rank() * count, (rank() + 1) * count)
    views = {}
    for name, view in batch.views.items():
        maps = view.map.clone()
        if step == 1:
            low, high = {"query": (-1.0, 0.0), "key": (0.0, 1.0), "reference": (-1.0, 1.0)}[name]
            corner = torch.ones(IMAGES // 2, maps.shape[1])
            maps[IMAGES // 2 :] = from_box(low * corner, high * corner)
        views[name] = View(view.pixels[part].double(), maps[part])
    views |= {"first": views["query"], "second": views["key"], "image": views["query"], "target": views["key"]}
    if "local_crops" in inspect.signature(kind).parameters:  # a map holds for pixels of any size
        pixels = torch.cat((views["key"].pixels, views["query"].pixels))
        views["local"] = View(F.interpolate(pixels, (32, 32)), torch.cat((views["key"].map, views["query"].map)))
    if kind in (PCRL, PCRLReleased):
        for number, (name, of) in enumerate((("first", "first"), ("second", "second"), ("mixed", "first"))):
            clean = View(views[of].pixels.cos(), views[of].map)
            draw = Draw(0, step, batch.index[part], torch.full((count,), number))
            turns = turn_maps((0.5,) * 3, True, draw, clean.map.shape[1])
            views[f"{of}_clean"] = clean
            views[f"{name}_target"] = View(turned(clean.pixels, turns[..., :-1]), compose(clean.map, turns))
    if kind is SparK:  # whose patches are 32 px
        views["image"] = replace(views["query"], pixels=F.pad(views["query"].pixels, (8,) * 4, mode="reflect"))
    extras = {name: extra[part] for name, extra in batch.extras.items()} | {"class": batch.index[part] % 3}
    return replace(batch, views=views, index=batch.index[part], extras=extras)


def train(kind, case, norms, batches, tokenizer):
    """Losses, gradients, shared concepts of each step, and the state at the end, as data-parallel training has them."""
    torch.manual_seed(0)
    source = GRID if case in GRIDS else SUPERPIXELS if case == "groups" else KMEANS
    options = SMALL | CONCL | PCL | DECODER | CODES | MIM | ATTENTION | DISTILLED | source | CASES[case][0]
    options |= {"match": "geometry" if case in GRIDS else "features"}
    known = {name: value for name, value in options.items() if name in inspect.signature(kind).parameters}
    if case in BACKBONES and "stage" in known:
        known["stage"] = 4
    if kind is Cellback:  # with empty regions; DINO and DiRL have centers
        known["centering"] = "sinkhorn"
    if kind in (DiRLSimCLR, DiRLBYOL):  # of three regions, one would at times be in both views of no image
        known |= {"num_regions": 2, "interactions": case in BACKBONES}
    channels = 1 if case == "volumes" else 3
    method = kind(build_backbone(BACKBONES.get(case, "test_resnet"), channels), **known)
    share_statistics(method, *norms, IMAGES, world_size())
    if kind not in (ConCL, Cellback, DiRL, DINOSup, DiRLSimCLR, DiRLBYOL):  # which would read them
        images = ImageFiles(f"{number % 3}/{number}.png" for number in range(STEPS * IMAGES))
        prepare(method, images, labels="folders", tokenizer=tokenizer)
    method.double()
    described = torch.randn(STEPS * IMAGES, SMALL["dim"], generator=torch.Generator().manual_seed(5)).double()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    seen = {"losses": [], "gradients": [], "shared": [], "matched": []}
    for step, batch in enumerate(batches):
        batch = batch_of(kind, step, batch)
        if method.wants_features(batch):
            method.on_features(described, batch)
        method.before_step(batch)
        losses = method(batch)
        optimizer.zero_grad()
        losses.total.backward()
        for parameter in method.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(mean(parameter.grad))
        optimizer.step()
        method.after_step()
        seen["losses"].append({name: mean(value) for name, value in {"total": losses.total, **losses.terms}.items()})
        seen["gradients"].append({n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None})
        seen["shared"].append(losses.statistics.get("shared_concepts", torch.zeros(())))
        seen["matched"].append(losses.statistics.get("matched_positions", torch.ones(())))
    set_statistics(method, gather_statistics(method).mean(0))
    return seen | {"state": method.state_dict()}


def validate(folder, kind):
    """Validation losses, where each process has running statistics of its own."""
    torch.manual_seed(0)
    known = {name: value for name, value in SMALL.items() if name in inspect.signature(kind).parameters}
    method = kind(build_backbone("test_resnet"), **known)
    share_statistics(method, *CASES["synchronized" if kind is SwAV else "default"][2 if world_size() > 1 else 1], 8, 2)
    for name, buffer in method.named_buffers():
        if name == "queued":  # so that losses are comparable
            buffer.fill_(SMALL["queue_size"])
        if name.endswith("running_mean"):
            buffer.add_(rank() if world_size() > 1 else 0.5)
    files = ImageFiles(sorted(folder.glob("*.png")))
    patience, views = Patience(3), ViewMaker(kind.views(), 32, 3)
    losses = [Validation(method, views, files, IMAGES, patience, folder, {})(0.0, 0.0)["val_loss"]]
    with torch.no_grad():
        next(method.parameters()).mul_(1.5)
    losses.append(Validation(method, views, files, IMAGES, patience, folder, {})(0.0, 0.0)["val_loss"])
    return {"losses": losses, "lowest": patience.lowest, "since": patience.since}


def process(folder, number, processes, batches, volumes):
    if processes > 1:
        dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=number, world_size=processes)
    for kind, cases in KINDS.items():
        for case in cases:
            norms = CASES[case][2 if processes > 1 else 1]
            views = volumes if case == "volumes" else batches
            seen = train(kind, case, norms, views, str(folder / "tokenizer.safetensors"))
            torch.save(seen, folder / f"{case}.{kind.__name__}.{processes}.{number}.pt")
    for kind in VALIDATED:
        torch.save(validate(folder, kind), folder / f"validation.{kind.__name__}.{processes}.{number}.pt")
    if processes > 1:
        dist.destroy_process_group()


def fork(action, *arguments):
    child = os.fork()
    if not child:
        try:
            action(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


if __name__ == "__main__":
    decoders.UNetDecoder = partial(UNetDecoder, width=1)  # all its layers, in a hundredth of the time
    where = Path(sys.argv[1])
    torch.set_num_threads(1)
    batches = [views_of(step) for step in range(STEPS)]
    write_tokenizer(where)
    for number in range(2 * IMAGES):
        pixels = torch.rand(40, 40, 3, generator=torch.Generator().manual_seed(number)).mul(255).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(where / f"{number:02d}.png")
    volumes = [volumes_of(step) for step in range(STEPS)]
    children = [fork(process, where, number, count, batches, volumes) for number, count in ((0, 1), (0, 2), (1, 2))]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
