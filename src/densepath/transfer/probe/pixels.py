"""The linear pixel probe: evaluates the frozen features of a backbone in seconds.

Features of all stages are resampled to one grid, standardized, and each position is classified into object and rest by
logistic regression, in which every stage has the same weight. The optimum is unique and there is no schedule, so a
different score means different features.

The backbone runs in evaluation mode with its own batch-norm statistics. Re-estimating them on the training images was
tried on GlaS: it lowers the scores of random and of pre-trained weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.annotations.coco import CocoImages, annotations_of, open_split
from densepath.annotations.splits import check_objects, fit_window, say_read
from densepath.core.closing import command, say_end
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.keywords import is_on_disk, literal
from densepath.core.random import check_seed, uniform
from densepath.core.result import Result
from densepath.core.scores import SCALE, without_nan
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.core.waiting import HANGING_READER
from densepath.nets.backbones import Backbone
from densepath.nets.weights.pretrained import pretrained_backbone
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.prefetch import ahead
from densepath.training.hardware import choose_device
from densepath.training.next_steps import with_detector
from densepath.transfer.probe.logistic import fit_stages
from densepath.transfer.probe.record import check_out

_RGB = PixelSpec()
_POSITION = 8  # pixels of the resized image, the side of a position of the features
_MULTIPLE = 32  # the stride of the last stage, so that no stage has partial positions at the border
SIZE = 256  # pixels
L2 = 5e-5  # about the best value from 5e-7 to 1.5e-4 on held-out training images of GlaS
_FEATURE_VALUES = 2**27  # the training features take at most half a GiB in float32


def probe_pixels(
    *,
    data: str | Path,
    orientation: Literal["stored", "viewed"] | None = None,
    weights: str | Path = "random",
    backbone: str | nn.Module | None = None,
    seed: int = 0,
    size: int = SIZE,
    fraction: float = 1.0,
    stages: Sequence[int] | None = None,
    each_stage: bool = False,
    l2: float = L2,
    devices: str = "auto",
    out: str | Path | None = None,
) -> Result:
    """Fit a linear pixel classifier on frozen features of the training images and score it on the test images.

    Args:
        data: a folder as ``densepath data`` writes it: images, and outlined objects as COCO JSON, for train and test.
        orientation: for images with an orientation tag (of cameras), the pixels that the outlines describe: as "stored"
            in the file, or as "viewed", turned by the tag. Without it such images are refused.
        weights: a file, a run folder, "random", a timm name, "hf-hub:OWNER/NAME" or the folder of such a model.
        backbone: a timm name, or in Python a network; default: that of the weights, resnet18 for random ones.
        seed: seed of random weights, of the choice of images, and of positions if there are too many.
        size: short side in pixels to which images are resized.
        fraction: share of the training images to use, by patient where patients are known (``patient`` in the JSON, or
            a ``manifest.csv``). With the same seed a smaller share is a part of a larger one.
        stages: stages whose features the classifier uses; default: all stages of the backbone.
        each_stage: also score every single stage.
        l2: strength of the penalty: mean cross-entropy + l2 / 2 * squared norm of the weights.
        devices: "auto" (a GPU, or the CPU if there is none) or "cpu".
        out: a JSON file for the scores.

    Returns:
        The scores of :func:`probe_backbone`, their scale, the arguments, and the seconds it took.

    Raises:
        UserError: no such data, weights that do not fit, or a missing stage.
    """
    watch = Stopwatch()
    check_out(out, weights, *(annotations_of(data, split) for split in ("train", "test")), only_record=True)
    check_seed(seed)
    torch.manual_seed(seed)
    network, spec, *_ = pretrained_backbone(weights, backbone)
    network.to(choose_device(devices))
    options: dict[str, Any] = {"seed": seed, "size": size, "fraction": fraction, "l2": l2}
    chosen: dict[str, Any] = {"stages": stages, "each_stage": each_stage, "orientation": orientation}
    scores = probe_backbone(network, data, spec, say_what_is_read=True, **chosen, **options)
    asked = {"weights": str(weights), "backbone": network.name, "data": str(data), **options}
    asked |= {"stages": sorted(set(stages))} if stages else {}
    asked |= {"orientation": orientation} if orientation is not None else {}
    result = asked | SCALE | scores | {"seconds": round(watch.read(), 1)}
    if out is not None:
        with atomic_write(out) as part:
            part.write_text(json.dumps(without_nan(result), indent=2, allow_nan=False) + "\n")
    commands: tuple[str, ...] = ()
    if not isinstance(backbone, nn.Module):
        named = ["--backbone", backbone] if backbone else []
        named += with_detector(network)
        source = weights if is_on_disk(weights) and Path(weights).is_dir() else data
        named += ["--out", literal(f"{Path(source)}_detector")]
        commands = (command("detect", "--data", Path(data), "--weights", weights, *named),)
    say_end(watch, "", {} if out is None else {"scores": Path(out)}, commands)
    return Result(None if out is None else Path(out), result, next=commands)


@torch.no_grad()
def probe_backbone(
    backbone: Backbone,
    data: str | Path,
    spec: PixelSpec = _RGB,
    *,
    orientation: Literal["stored", "viewed"] | None = None,
    size: int = SIZE,
    fraction: float = 1.0,
    stages: Sequence[int] | None = None,
    each_stage: bool = False,
    l2: float = L2,
    seed: int = 0,
    say_what_is_read: bool = False,
) -> dict[str, Any]:
    """Probe a backbone on its device, without changing it.

    Arguments are as for :func:`probe`; ``spec`` says how the backbone's pixels are normalized.

    Prints a warning if most objects are smaller than a position of the features, 8 x 8 pixels of the resized image.

    Returns:
        "mean_iou" over object and rest, "iou_object", "iou_rest", "dice" of the objects and "accuracy", in percent,
        pooled over all pixels of the test images at their full size; with ``each_stage``, "mean_iou_f1" and so on.
    """
    if size < _MULTIPLE or not 0 <= l2 < math.inf:
        raise UserError(
            f"size is {size} and l2 {l2}; give {_MULTIPLE} pixels or more, and a finite penalty of 0 or more"
        )
    stages = sorted(set(stages or backbone.stages))
    for stage in stages:
        backbone.check_stage(stage)
    training_mode, device = backbone.training, next(backbone.parameters()).device
    backbone.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            train, test = (open_split(data, split, spec, orientation=orientation) for split in ("train", "test"))
            train.keep_fraction(fraction, seed)
            for images in (train, test):
                if images.crowds:
                    check_objects(images)
            spec = fit_window(train, test)
            if say_what_is_read:
                say_read(train, test)
            _warn_of_small_objects(test, size)
            x, y = _training_features(backbone, train, spec, size, stages, seed)
            if not 0 < int(y.sum()) < len(y):
                raise UserError(f"the training masks of {data} are all object or all rest; the probe needs both")
            weight, bias = fit_stages(x, y, _columns(backbone, stages), each_stage, l2)
            counts = torch.zeros(len(weight), 2, 2, dtype=torch.int64)  # (classifier, truth, prediction)
            for features, truth in _frozen(backbone, test, spec, size, stages):
                logits = torch.einsum("mc,chw->mhw", weight, features) + bias.view(-1, 1, 1)
                full = F.interpolate(logits.unsqueeze(0), truth.shape, mode="bilinear", align_corners=False)
                counts += _confusion(full[0] > 0, truth.to(device))
    finally:
        backbone.train(training_mode)
    scores = _scores(counts[0].tolist())
    if each_stage:
        scores |= {f"mean_iou_f{s}": _scores(c.tolist())["mean_iou"] for s, c in zip(stages, counts[1:], strict=True)}
    return scores | {"train_images": len(train), "test_images": len(test), "train_positions": len(x)}


def _warn_of_small_objects(images: CocoImages, size: int) -> None:
    """Warn if the features are too coarse for the median object: its box is narrower than a position."""
    truth = images.coco_ground_truth()
    scales = {image["id"]: size / min(image["height"], image["width"]) for image in truth["images"]}
    widths = [min(o["bbox"][2:]) * scales[o["image_id"]] for o in truth["annotations"] if not o.get("iscrowd", 0)]
    if widths and (width := float(np.median(widths))) < _POSITION:
        _warn(
            f"objects are smaller than a position of the probe's features: half of them are under {width:.1f} "
            f"px wide at --size {size}, where a position is {_POSITION} px; their scores say little about the "
            "features, so use a larger --size"
        )


@cache
def _warn(line: str) -> None:
    """Print a warning once, however often the same data is probed."""
    say(f"densepath: warning: {line}")


def _columns(backbone: Backbone, stages: Sequence[int]) -> list[slice]:
    """The feature columns of every stage."""
    ends = np.cumsum([0] + [backbone.channels[s] for s in stages]).tolist()
    return [slice(a, b) for a, b in pairwise(ends)]


def _training_features(
    backbone: Backbone, images: CocoImages, spec: PixelSpec, size: int, stages: Sequence[int], seed: int
) -> tuple[Tensor, Tensor]:
    """Features (N, C) and whether most of a position is object (N,); a random subset if there are too many."""
    channels = sum(backbone.channels[s] for s in stages)
    budget = max(1, _FEATURE_VALUES // channels // len(images))  # positions of one image
    features = torch.empty(budget * len(images), channels, device=next(backbone.parameters()).device)
    labels = features.new_empty(len(features))
    filled = 0
    for index, (f, truth) in enumerate(_frozen(backbone, images, spec, size, stages)):
        share = F.interpolate(truth[None, None].float(), f.shape[1:], mode="area")[0, 0]
        x, y = f.flatten(1).T, (share > 0.5).float().flatten().to(f.device)
        if len(x) > budget:
            chance = uniform(seed, 0, torch.arange(len(x)), view=0, stream=index)[:, 0]
            kept = chance.argsort()[:budget].to(x.device)
            x, y = x[kept], y[kept]
        features[filled : filled + len(x)], labels[filled : filled + len(x)] = x, y
        filled += len(x)
    return features[:filled], labels[:filled]


def _frozen(
    backbone: Backbone, images: CocoImages, spec: PixelSpec, size: int, stages: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image's features (C, h, w) at stride 8 of the resized image, and its objects (H, W) bool at full size."""
    device = next(backbone.parameters()).device
    multiple = backbone.patch_size if _MULTIPLE % backbone.patch_size else _MULTIPLE
    samples = ((images.sample(index, masks=False)["image"], images.foreground(index)) for index in range(len(images)))
    for image, foreground in ahead(samples, depth=1, remedy=HANGING_READER):
        pixels = torch.from_numpy(image).to(device).permute(2, 0, 1).unsqueeze(0).float()
        truth = torch.from_numpy(foreground.copy())
        scale = size / min(truth.shape)
        working = [max(1, round(n * scale / multiple)) * multiple for n in truth.shape]
        resized = F.interpolate(spec.normalize(spec.apply_window(pixels)), working, mode="bilinear", antialias=True)
        grid = [n // _POSITION for n in working]
        maps = backbone(resized, last=stages[-1])
        yield torch.cat([_to_grid(maps[s], grid) for s in stages], dim=1)[0], truth


def _to_grid(features: Tensor, grid: list[int]) -> Tensor:
    """Average if the grid is coarser than the features, interpolate if it is finer."""
    if features.shape[-1] >= grid[-1]:
        return F.interpolate(features, grid, mode="area")
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)


def _confusion(prediction: Tensor, truth: Tensor) -> Tensor:
    """Pixel counts (M, truth, prediction) of M predictions (M, H, W)."""

    outcome = 2 * truth.long() + prediction.long()
    return torch.stack([torch.bincount(o.flatten(), minlength=4) for o in outcome]).view(-1, 2, 2).cpu()


def _scores(counts: list[list[int]]) -> dict[str, float]:
    (tn, fp), (fn, tp) = counts
    if not tp + fn or not tn + fp:
        raise UserError("the test masks are all object or all rest; the probe needs both")
    iou_object, iou_rest = 100 * tp / (tp + fp + fn), 100 * tn / (tn + fp + fn)
    return {
        "mean_iou": (iou_object + iou_rest) / 2,
        "iou_object": iou_object,
        "iou_rest": iou_rest,
        "dice": 100 * 2 * tp / (2 * tp + fp + fn),
        "accuracy": 100 * (tp + tn) / (tp + fp + fn + tn),
    }
