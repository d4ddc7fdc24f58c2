"""The options of a pre-training run, and their record in the run folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from torch import nn

from densepath.core.errors import UserError
from densepath.core.plain import plain
from densepath.core.random import check_seed
from densepath.core.single_values import refuse_none
from densepath.core.system import check_workers
from densepath.sources.loader import Shuffle
from densepath.training.intervals import Intervals
from densepath.training.optimizers import Optimizer
from densepath.training.recipes import all_options, name_of
from densepath.views.augment import Augment

DEFAULT_EPOCHS = 200.0
_MOST = 10**9  # epochs or steps
# Options that may change when a run is resumed, because they do not change the result. (The number of processes may
# not change: it is one of the run's facts.)
FREE = (
    *("data", "out", "workers", "cache", "devices", "loggers", "probe_data", "probe_every", "picture_every"),
    *("probe_orientation", "keep_every", "log_every", "save_every_steps", "save_every_minutes", "compile"),
    *("regions", "cells", "cache_dir", "slides"),  # paths of files, like data
    *("labels", "teacher", "teacher_weights", "tokenizer"),  # known by their checksums
)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The options of a pre-training run.

    Args:
        data: a folder of images, a text list of files, a glob, a packed store, a folder of tiles from
            ``densepath tile``, or with ``mpp`` whole slides.
        exclude: patterns of image files or slides to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a
            name.
        mpp: for whole slides: the µm per pixel of the tiles, which are found in them and listed in OUT/tiles.
        tile_size: for whole slides: the side of the tiles in pixels.
        slides: train on these slides only: a text file with a name in each line, or a CSV file with a column "slide".
        fraction: train on this share of the slides, or of the images where there are no slides, by patient if a
            manifest, a list or names tell. A smaller share with the same seed is a part of a larger one. The run folder
            lists the images in images.txt, and the others, for fine-tuning, in other_images.txt.
        val_share: hold out this share of the images, by patient in the same way. The loss on them is measured after
            each epoch, and the best backbone is written to exported/best.safetensors, the state of the run then to
            checkpoints/best.ckpt. 0 for none.
        patience: end the run after this many epochs without a lower loss on the held-out images; 0 for never.
        shuffle: the order of the images. "full": any order. "block": images in a row are read together and mixed with
            those of other rows, which suits slides and files on a hard disk or a network drive.
        out: the run folder.
        method: the pre-training method, e.g. "moco_v2" or "concl", or "module:Class" for one of your own.
        method_options: the method's hyper-parameters that differ from its defaults.
        backbone: the backbone to train: a timm ConvNet or plain vision transformer, whichever the method supports.
        output_stride: pixels of a view per position of the deepest map. 16 dilates the last stage of a ConvNet, so that
            f5 has four times as many positions: for methods that contrast positions or concepts, in small views. The
            exported weights are those of an ordinary network, whose f5 is every second position of this one.
        labels: classes of the images, for a method that needs them: "folders" (the class of an image is its topmost
            folder in ``data``), or a CSV or TSV file with lines of file,label, where file is a path relative to the
            images' folder or a file name.
        regions: regions of the images, for a method that needs them: a folder with a label map for each image, or for
            saliency a model file (.pt2, TorchScript, .onnx) or a folder of masks. Load only models from people you
            trust.
        cells: cells of the images or slides, for a method that needs them: a folder that densepath cells wrote.
        cache_dir: folder where regions that were computed from the images are cached; ~/.cache/densepath/labels by
            default.
        teacher: frozen teacher, for a method that needs one: a timm name, a folder of a timm or transformers model, or
            hf-hub:OWNER/NAME.
        teacher_weights: a file or a run folder with the teacher's weights, if timm has none under its name.
        tokenizer: frozen tokenizer, for a method that needs one: the folder of a run of "vq_kd", or its
            exported/tokenizer.safetensors.
        weights: initial weights of the backbone: "random", a file, a run folder, or a timm name.
        seed: seed of the initial weights, the order of the images, and the views.
        epochs: number of passes over the images; 200 if ``max_steps`` is not given either.
        max_steps: length of the run in optimizer steps, instead of epochs.
        batch_size: images per optimizer step, over all devices and accumulated batches.
        accumulate: split each optimizer step into this many batches, which need less memory. Batch norms see the small
            batches; momentum encoders and queues are updated once per optimizer step.
        batch_norm: images that share their batch statistics: those of each process ("per_process"), those of all
            processes ("synchronized"), or as in the method's paper ("auto").
        batch_norm_group: divide the images of a process into groups of this size that share their batch statistics; 0
            for one group. With groups a run is the same on any number of processes, up to rounding.
        view_size: side of the views in pixels, or their size along each axis: height and width, of volumes depth first.
        early_view_sizes: sizes of the views in the first parts of the run, which then takes less time, as pairs of the
            share of the run at which a size ends, and the size: [[0.3, 64], [0.6, 96]]. Then ``view_size``.
        augment: augmentation of the views; by default as the method declares it.
        optimizer: the optimizer and its schedule.
        workers: processes that decode images, per device; default: chosen automatically.
        cache: "ram" keeps decoded images in memory, "auto" does so if they fit, "none" never does.
        mean: mean of each channel, for pixels in [0, 1]; default: that of ``weights`` if it is known, else ImageNet's
            for RGB, 0.449 for grey images.
        std: standard deviation of each channel; default: that of ``weights`` if it is known, else ImageNet's for RGB,
            0.226 for grey images.
        window: the two stored values that become 0 and 1; default: the range of 8 bits, and for 16-bit images the
            range of the bits that a sample of them uses.
        devices: "auto" (one GPU, or the CPU), a number of processes, "cpu" or "cpu:N".
        strategy: "ddp": each process has all weights. "fsdp" divides the weights of vision transformers, of their
            momentum copies, and the states of the optimizer among the processes, for networks from ViT-L on.
        precision: "auto", "32" or "bf16-mixed".
        channels_last: memory layout of the convolutions.
        compile: compile backbones by ``torch.compile``, for GPUs: the first steps take minutes longer, and the others
            launch fewer operations. It needs a C++ compiler, and numbers are rounded in another way.
        deterministic: use only GPU algorithms that give the same bits each time, which are slower. torch warns if it
            has none for an operation.
        resume: continue the run in ``out``, if there is one.
        save_every_steps: write a checkpoint every N optimizer steps; 0 for never.
        save_every_minutes: write a checkpoint every N minutes; 0 for never.
        log_every: write measurements every N optimizer steps.
        loggers: loggers besides the CSV file: "tensorboard", "wandb".
        probe_data: labelled images that the backbone is probed on during the run.
        probe_orientation: for labelled images with an orientation tag (of cameras), the pixels that the outlines
            describe: as "stored" in the file, or as "viewed", turned by the tag. Without it such images are refused.
        probe_every: epochs between probes; 0 for never.
        picture_every: epochs between pictures of what the backbone finds in a few images, and of the predictions of a
            method that predicts pixels; 0 for none.
        keep_every: epochs between backbones that are kept, as OUT/exported/backbone_epoch_N.safetensors; 0 for none.

    Raises:
        UserError: an invalid value, or both ``epochs`` and ``max_steps``.
    """

    data: str | Path
    out: str | Path
    exclude: tuple[str, ...] = ()
    mpp: float | None = None
    tile_size: int = 256
    slides: str | Path | None = None
    fraction: float = 1.0
    val_share: float = 0.0
    patience: int = 0
    shuffle: Shuffle = "full"
    method: str | type[nn.Module] = "concl"
    method_options: dict[str, Any] = field(default_factory=dict)
    backbone: str | nn.Module = "resnet18"
    output_stride: Literal[16, 32] = 32
    labels: str | Path = "folders"
    regions: str | Path | None = None
    cells: str | Path | None = None
    cache_dir: str | Path | None = None
    teacher: str | Path | None = None
    teacher_weights: str | Path | None = None
    tokenizer: str | Path | None = None
    weights: str | Path = "random"
    seed: int = 0
    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int = 256
    accumulate: int = 1
    batch_norm: Literal["auto", "per_process", "synchronized"] = "auto"
    batch_norm_group: int = 0
    view_size: int | tuple[int, ...] = 224
    early_view_sizes: tuple[tuple[float, int | tuple[int, ...]], ...] = ()
    augment: Augment | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    workers: int | None = None
    cache: Literal["auto", "ram", "none"] = "auto"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    window: tuple[float, float] | None = None
    devices: int | str = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    precision: Literal["auto", "32", "bf16-mixed"] = "auto"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    resume: bool = False
    save_every_steps: int = 0
    save_every_minutes: float = 10.0
    log_every: int = 10
    loggers: Sequence[str] = ()
    probe_data: str | Path | None = None
    probe_orientation: Literal["stored", "viewed"] | None = None
    probe_every: float = 10.0
    picture_every: float = 10.0
    keep_every: float = 0.0

    def __post_init__(self) -> None:
        refuse_none(self)
        if self.epochs is not None and self.max_steps is not None:
            raise UserError("both epochs and max_steps are given (a recipe may have set one of them); set one to null")
        if not isinstance(self.view_size, int) and len(self.view_size) == 1:
            object.__setattr__(self, "view_size", self.view_size[0])  # frozen; the command line gives lists
        if self.shortest_side < 1:
            raise UserError(f"view_size is {self.view_size}; give a number of pixels, or one for each axis")
        shares = [0.0, *(share for share, _ in self.early_view_sizes), 1.0]
        if any(not before < after for before, after in pairwise(shares)):
            raise UserError(f"early_view_sizes end at the shares {shares[1:-1]}; give rising shares between 0 and 1")
        if self.mpp is not None and not 0 < self.mpp < math.inf:
            raise UserError(f"mpp is {self.mpp}; give µm per pixel, such as 0.5")
        if self.tile_size < 1:
            raise UserError(f"tile_size is {self.tile_size}; give a number of pixels, such as 256")
        if not 0 < self.fraction <= 1:
            raise UserError(f"fraction is {self.fraction}; give a share of the slides or images, above 0 and up to 1")
        if not 0 <= self.val_share < 1:
            raise UserError(f"val_share is {self.val_share}; give a share of the images, at least 0 and less than 1")
        if self.patience < 0 or (self.patience and not self.val_share):
            raise UserError(f"patience is {self.patience}; give a number of epochs, together with val_share")
        if self.val_share and self.probe_data is not None:
            raise UserError("both val_share and probe_data are given; leave one out: a run is evaluated in one way")
        if self.compile and self.strategy == "fsdp":
            raise UserError("blocks that are divided among processes are not compiled; leave --compile out, or use ddp")
        check_workers(self.workers)
        for name in ("batch_size", "accumulate"):
            if not 1 <= getattr(self, name) <= _MOST:
                raise UserError(f"{name} is {getattr(self, name)}; give at least 1, up to {_MOST:,}")
        for name in ("probe_every", "picture_every", "keep_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; give a number of epochs, or 0 for never")
        if self.epochs is not None and not 0 < self.epochs <= _MOST:
            raise UserError(f"epochs is {self.epochs}; give a positive number, up to {_MOST:,}")
        if self.max_steps is not None and not 0 < self.max_steps <= _MOST:
            raise UserError(f"max_steps is {self.max_steps}; give a positive number, up to {_MOST:,}")
        Intervals(self.log_every, self.save_every_steps, self.save_every_minutes)
        check_seed(self.seed)

    @property
    def shortest_side(self) -> int:
        """The shortest side of the views, in pixels; 0 for none."""
        return self.view_size if isinstance(self.view_size, int) else min(self.view_size, default=0)

    def record(self) -> dict[str, Any]:
        """The options in the plain types of YAML, as ``config.yaml`` keeps them; ``resume`` is not among them."""
        record = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "resume"}
        return record | {"method": name_of(self.method)}

    def defaults(self) -> dict[str, Any]:
        """The record of a run of the same method with all options at their defaults, as earlier versions had them."""
        options = all_options(self.method, {})
        record = PretrainConfig(data="", out="", method=self.method, method_options=options).record()
        return record | {"augment": asdict(Augment())}
