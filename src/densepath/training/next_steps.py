"""The commands that continue from a pre-training run; each can be pasted as it is."""

from __future__ import annotations

from pathlib import Path

import torch

from densepath.core.closing import command
from densepath.core.streams import say
from densepath.methods.base import Method
from densepath.nets.backbones import Backbone
from densepath.nets.weights.pretrained import GIVE_NETWORK
from densepath.sources.pixel_source import PixelSource
from densepath.training.config import PretrainConfig
from densepath.training.recipes import is_found

_SHOWN, _LEAST = 6, 128  # the images of a picture of concepts, and their shortest side in pixels
_DEFAULT_STAGES = {3, 4, 5}


def with_detector(backbone: Backbone) -> list[str]:
    """The options of ``detect`` for a backbone that its default detector does not fit, or that would take days."""
    if backbone.patch_size > 1:
        return ["--detector", "vitdet"]
    return [] if torch.cuda.is_available() else ["--config", "glas_small"]


def after_pretraining(
    config: PretrainConfig, method: Method, images: PixelSource, named: bool = True
) -> tuple[str, ...]:
    """Pictures of what was learned, and, on the labelled images that the run was probed on, a detector.

    Args:
        config: the configuration of the run.
        method: the trained method.
        images: the images that it was trained on.
        named: whether the backbone can be built from its name; no command works on another one.
    """
    backbone, out, data = method.exported_backbone(), Path(config.out), Path(config.data)
    if not named:
        say(f"densepath: {out} has a network that cannot be built from its name; {GIVE_NETWORK}")
        return ()
    if "tokenizer" in method.exported_parts():
        options = ("--data", data, "--tokenizer", out, "--out", Path(f"{out}_beit"))
        return (command("pretrain", "--config", "beit_v2", *options),)
    commands = []
    exporting = (command("export", out),) if is_found(type(method)) else ()
    if config.probe_data is not None:
        detector = with_detector(backbone)
        labelled, trained = Path(config.probe_data), Path(f"{out}_detector")
        commands.append(command("detect", "--data", labelled, "--weights", out, *detector, "--out", trained))
    count = [] if len(images) >= _SHOWN else ["--count", str(len(images))]
    if method.predicts_pixels() and exporting:
        picture = out / "reconstruction.png"
        commands.append(command("show", "reconstruction", "--data", data, "--run", out, *count, "--out", picture))
    elif images.spec.ndim == 2 and images.spec.channels in (1, 3) and images.smallest()[1] >= _LEAST:
        stages = [] if set(backbone.stages) >= _DEFAULT_STAGES else ["--stages", str(backbone.deepest)]
        picture = out / "concepts.png"
        commands.append(
            command("show", "concepts", "--data", data, "--weights", out, *stages, *count, "--out", picture)
        )
    return tuple(commands) or exporting
