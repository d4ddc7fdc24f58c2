"""The options of ``densepath classify``, and their record in the run folder."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from densepath.annotations.classes import FOLDERS
from densepath.core.errors import UserError
from densepath.core.plain import plain
from densepath.sources.open import Cache
from densepath.training.hardware import Precision
from densepath.training.optimizers import Optimizer
from densepath.transfer.embed.encoder import Pool
from densepath.transfer.training_options import check_training
from densepath.views.augment import Augment

Uncertain = Literal["ignore", "zeros", "ones"]
ClassWeights = Literal["none", "balanced"]
Unmatched = Literal["refuse", "skip"]
Choice = Literal["auc", "loss"]
# Options that may change when a run is resumed, because they do not change the result.
FREE = (
    *("data", "test_data", "labels", "test_labels", "train_images", "out", "workers", "cache", "devices", "resume"),
    *("log_every", "save_every_steps", "save_every_minutes"),
)


@dataclass(frozen=True)
class FineTuning(Optimizer):
    """The optimizer of fine-tuning: AdamW at 1e-4, which falls along half a cosine wave."""

    name: Literal["sgd", "lars", "adamw", "lamb"] = "adamw"
    lr: float = 1e-4
    weight_decay: float = 1e-2
    exclude_norm_and_bias: bool = True


@dataclass(frozen=True)
class Crops(Augment):
    """The training views of fine-tuning: crops of most of an image and horizontal flips; colors stay."""

    scale: tuple[float, float] = (0.6, 1.0)
    jitter: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """The options of training a classifier.

    Args:
        data: a folder of images, a text list of files, a glob or a packed store. Folders train, val and test in it, or
            a column "split" of the table, are the official split.
        labels: "folders" (the class of an image is its topmost folder), or a CSV or TSV file with columns file and
            label.
        test_data: images of the official test, if they are elsewhere.
        test_labels: their labels; default: ``labels``.
        train_images: of the training images only these: a text file with an image or a patient in each line, such as
            ``other_images.txt`` of a pre-training with ``--fraction``.
        out: the run folder: ``metrics.json``, ``scores.csv``, ``predictions.csv``, ``pictures/``,
            ``exported/classifier.safetensors``, and the files of every run.
        target: column of the classes; default: label or class.
        targets: columns of 0 and 1, one for each label: an image may have several. Empty and -1 are unknown.
        separator: the column ``target`` is a list of labels with this between them: "|" for NIH ChestX-ray14.
        uncertain: what -1 in ``targets`` means: "ignore" (unknown), "zeros" or "ones".
        unmatched: "refuse" images without a label and lines of the table without an image, or "skip" them.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.
        patient: column of the table, or of a manifest.csv, with the patients; default: patient, case or subject.
        patient_regex: a regular expression that finds the patient in an image's name.
        weights: initial weights of the backbone: a file, a run folder, "random", a timm name, "hf-hub:OWNER/NAME" or
            the folder of such a model.
        backbone: the backbone, a timm name; default: that of the weights, resnet18 (or resnet18_3d) for random ones.
        pool: how the deepest features become a vector: "mean" over positions, "cls" for the class token, "cls_mean" for
            both; "auto" is "cls" if there is a class token, else "mean".
        freeze: train only the linear classifier, on the frozen backbone.
        folds: divide the training images into folds by patient, one after the other held out to choose the epoch; all
            are tested on the official test images, or without these, on the fold. 0: a single training. Default: 5
            without an official test, else 0.
        validation: share of the training images that is held out, by patient, to choose the epoch.
        fraction: share of the training images to use, by patient. With the same seed a smaller share is a part of a
            larger one.
        seeds: number of repetitions with the seeds ``seed``, ``seed`` + 1, ...
        seed: seed of the folds, the fraction, new weights, orders and views.
        epochs: number of epochs.
        patience: stop after this many epochs without a better one; 0 for never.
        choose: what a better epoch has: a higher macro "auc", or a lower "loss", on the held-out images.
        batch_size: images per step, over all devices; a multiple of their number.
        class_weights: "balanced" weighs the loss of a class by the inverse of its frequency, and of a present label by
            the number of images without it over that with it.
        view_size: side of the images in pixels, or their size along each axis; default: that of the weights, or 224,
            for volumes 64.
        augment: crops, flips and colors of training views.
        optimizer: the optimizer and its schedule.
        workers: processes that decode images, per device; default: chosen automatically.
        cache: "ram" decodes all images into memory, "none" reads them when needed, "auto" decides by their size.
        devices: "auto", a number, "cpu" or "cpu:N".
        precision: "auto", "32" or "bf16-mixed".
        log_every: write measurements every N steps.
        save_every_steps: write a checkpoint every N steps; 0 for never.
        save_every_minutes: write a checkpoint every N minutes; 0 for never.
        resume: continue the run in ``out``.

    Raises:
        UserError: an invalid value.
    """

    data: str | Path
    labels: str | Path = FOLDERS
    test_data: str | Path | None = None
    test_labels: str | Path | None = None
    train_images: str | Path | None = None
    out: str | Path
    target: str | None = None
    targets: tuple[str, ...] = ()
    separator: str | None = None
    uncertain: Uncertain = "ignore"
    unmatched: Unmatched = "refuse"
    exclude: tuple[str, ...] = ()
    patient: str | None = None
    patient_regex: str | None = None
    weights: str | Path = "random"
    backbone: str | None = None
    pool: Pool = "auto"
    freeze: bool = False
    folds: int | None = None
    validation: float = 0.2
    fraction: float = 1.0
    seeds: int = 1
    seed: int = 0
    epochs: int = 40
    patience: int = 0
    choose: Choice = "auc"
    batch_size: int = 64
    class_weights: ClassWeights = "none"
    view_size: int | tuple[int, ...] | None = None
    augment: Crops = field(default_factory=Crops)
    optimizer: FineTuning = field(default_factory=FineTuning)
    workers: int | None = None
    cache: Cache = "auto"
    devices: int | str = "auto"
    precision: Precision = "auto"
    log_every: int = 20
    save_every_steps: int = 0
    save_every_minutes: float = 10.0
    resume: bool = False

    def __post_init__(self) -> None:
        choices = {"uncertain": Uncertain, "class_weights": ClassWeights, "choose": Choice, "unmatched": Unmatched}
        check_training(self, choices, {})
        if self.targets and (self.target is not None or self.separator is not None):
            raise UserError("--targets names columns of 0 and 1, --target one column of classes; give one of them")
        if str(self.labels) == FOLDERS and (self.targets or self.target or self.separator):
            raise UserError("--target and --targets name columns of a table; give the table with --labels")

    def record(self) -> dict[str, Any]:
        """The options in the plain types of YAML; ``resume`` is not among them."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "resume"}
