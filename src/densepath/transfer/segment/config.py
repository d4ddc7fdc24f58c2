"""The options of ``densepath segment``, and their record in the run folder."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from math import gcd
from pathlib import Path
from typing import Any, Literal

from densepath.core.errors import UserError
from densepath.core.plain import plain
from densepath.sources.open import Cache
from densepath.training.hardware import Precision
from densepath.transfer.classify.config import FineTuning
from densepath.transfer.training_options import check_training
from densepath.views.appearance import check_range
from densepath.views.augment import Augment
from densepath.views.crops import Pose, Window
from densepath.views.declarations import RandomView

Head = Literal["unet", "fcn"]
Loss = Literal["dice_ce", "dice", "ce"]
Norm = Literal["batch", "group"]
Choice = Literal["dice", "loss"]
BESIDE = "auto"  # labels and decoder: where they usually are
# Options that may change when a run is resumed, because they do not change the result.
FREE = (
    *("data", "test_data", "labels", "test_labels", "out", "workers", "cache", "devices", "resume", "pictures"),
    *("log_every", "save_every_steps", "save_every_minutes"),
)


@dataclass(frozen=True)
class Patches:
    """The training views of segmentation: parts of an image as large as the view, flipped; nothing is resized.

    Labels follow by the same map, to the nearest pixel. Colors do not change by default.

    Args:
        zoom: range of the side of a patch relative to the view; its logarithm is uniform. Above 1 patches shrink.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        depth_flip: probability of a flip along the third axis of volumes.
        rotation: an angle is drawn from [-x, x] degrees.
        rotation_axes: for volumes: "xy" rotates in that plane only, "all" about each of the three axes.
        quarter_turns: whether to also rotate by 0, 90, 180 or 270 degrees in the xy-plane.
        jitter: probability of color jitter.
        brightness, contrast, saturation, hue: its strengths.
        gamma: probability of a gamma correction.
        gamma_power: range of its power.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its standard deviation in pixels.
        noise: probability of normal noise.
        noise_std: range of its standard deviation, for values in [0, 1].
        stain: probability of H&E stain jitter.
        stain_strength: its strength.
    """

    zoom: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    vertical_flip: float = 0.0
    depth_flip: float = 0.0
    rotation: float = 0.0
    rotation_axes: Literal["xy", "all"] = "xy"
    quarter_turns: bool = False
    jitter: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gamma: float = 0.0
    gamma_power: tuple[float, float] = (0.7, 1.5)
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    noise: float = 0.0
    noise_std: tuple[float, float] = (0.0, 0.1)
    stain: float = 0.0
    stain_strength: float = 0.05

    def __post_init__(self) -> None:
        check_range("augment.zoom", self.zoom)
        self.random_view()

    def random_view(self) -> RandomView:
        """The view that the options describe, without its zoom."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "zoom"}
        view = Augment(grayscale=0.0, **options).random_view()
        return replace(view, crop=Window(**{f.name: getattr(view.crop, f.name) for f in fields(Pose)}))


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """The options of training a segmenter.

    Args:
        data: a folder of images, a text list of files or a glob; a data set as ``densepath data glas`` and others write
            it; or a store of volumes. Folders train, val and test in it are the official split.
        labels: a folder, list or glob of label maps with the names of the images, or with these and an ending that all
            of them share; each pixel has the value of its class. "auto": the outlines of a data set, the labels of a
            store of volumes, or a folder "labels" beside the folder of the images.
        test_data: images of the official test, if they are elsewhere.
        test_labels: their label maps; default: as ``labels``.
        out: the run folder: ``metrics.json``, ``scores.csv``, ``cases.csv``, ``pictures/``,
            ``exported/segmenter.safetensors``, and the files of every run.
        classes: the classes as VALUE:NAME, e.g. 0:background 1:gland, or a JSON file with them. Default: all values
            that the label maps have.
        objects: the name of the one class that all values above 0 are of: for maps of instances.
        background: the value of the background, which is learned but not scored; null if every value is a class.
        ignore: values that count neither in the loss nor in the scores.
        regions: what is scored instead of the classes, as NAME=VALUE+VALUE, e.g. WT=1+2+4 TC=1+4 ET=4.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.
        patient: column of a manifest.csv with the patients; default: patient, case or subject.
        patient_regex: a regular expression that finds the patient in an image's name.
        official: whether to keep the official split; otherwise all images are divided by patient.
        weights: initial weights of the backbone: a file, a run folder, "random", a timm name, "hf-hub:OWNER/NAME" or
            the folder of such a model.
        decoder: initial weights of the decoder: a file, "random", or "auto" for those of the run in ``weights``.
        backbone: the backbone; default: that of the weights, resnet18 (or resnet18_3d) for random ones.
        head: "unet" for a U-Net decoder; "fcn" for two dilated convolutions on the deepest map, at stride 16.
        norm: "group" replaces the batch norms by group norms with the same affine parameters, for small batches.
        freeze: train only decoder and head, on the frozen backbone.
        folds: divide the training images into folds by patient, one after the other held out to choose the epoch; all
            are tested on the official test images, or without these, on the fold. 0: a single training. Default: 5
            without an official test, else 0.
        validation: share of the training images that is held out, by patient, to choose the epoch.
        fraction: share of the training images to use, by patient. With the same seed a smaller share is a part of a
            larger one.
        seeds: number of repetitions with the seeds ``seed``, ``seed`` + 1, ...
        seed: seed of the folds, the fraction, new weights, orders and views.
        epochs: number of epochs; an epoch has one patch of each image.
        validate_every: epochs between two looks at the validation images.
        patience: stop after this many epochs without a better one; 0 for never.
        choose: what a better epoch has: a higher mean "dice", or a lower "loss", on the held-out images.
        batch_size: images per step, over all devices; a multiple of their number.
        loss: "dice_ce": soft Dice and cross-entropy; or one of both.
        oversample: share of the patches that are centered on a pixel of a class that is not background.
        view_size: side of the patches in pixels, or their size along each axis; default: 256, for volumes 64;
            less where the longest images need less.
        overlap: share of a window that the next one covers, when whole images are predicted.
        augment: flips, rotations, zoom and colors of patches.
        optimizer: the optimizer and its schedule.
        workers: processes that decode images, per device; default: chosen automatically.
        cache: "ram" decodes all images into memory, "none" reads them when needed, "auto" decides by their size.
        devices: "auto", a number, "cpu" or "cpu:N".
        precision: "auto", "32" or "bf16-mixed".
        pictures: test images to draw with their truth and prediction, in each training.
        log_every: write measurements every N steps.
        save_every_steps: write a checkpoint every N steps; 0 for never.
        save_every_minutes: write a checkpoint every N minutes; 0 for never.
        resume: continue the run in ``out``.

    Raises:
        UserError: an invalid value.
    """

    data: str | Path
    labels: str | Path = BESIDE
    test_data: str | Path | None = None
    test_labels: str | Path | None = None
    out: str | Path
    classes: tuple[str, ...] = ()
    objects: str | None = None
    background: int | None = 0
    ignore: tuple[int, ...] = ()
    regions: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    patient: str | None = None
    patient_regex: str | None = None
    official: bool = True
    weights: str | Path = "random"
    decoder: str | Path = BESIDE
    backbone: str | None = None
    head: Head = "unet"
    norm: Norm = "batch"
    freeze: bool = False
    folds: int | None = None
    validation: float = 0.2
    fraction: float = 1.0
    seeds: int = 1
    seed: int = 0
    epochs: int = 100
    validate_every: int = 1
    patience: int = 0
    choose: Choice = "dice"
    batch_size: int = 8
    loss: Loss = "dice_ce"
    oversample: float = 0.0
    view_size: int | tuple[int, ...] | None = None
    overlap: float = 0.5
    augment: Patches = field(default_factory=Patches)
    optimizer: FineTuning = field(default_factory=FineTuning)
    workers: int | None = None
    cache: Cache = "auto"
    devices: int | str = "auto"
    precision: Precision = "auto"
    pictures: int = 8
    log_every: int = 20
    save_every_steps: int = 0
    save_every_minutes: float = 10.0
    resume: bool = False

    def __post_init__(self) -> None:
        choices = {"head": Head, "loss": Loss, "norm": Norm, "choose": Choice}
        check_training(self, choices, {"validate_every": 1, "pictures": 0})
        if self.epochs % self.validate_every:
            raise UserError(
                f"validate_every is {self.validate_every}, and {self.epochs} epochs are not a multiple of it, so that "
                f"the last could never be chosen; give --validate_every {gcd(self.epochs, self.validate_every)}, or "
                "another --epochs"
            )
        if not 0 <= self.oversample <= 1:
            raise UserError(f"oversample is {self.oversample}; give a share from 0 to 1")
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap is {self.overlap}; give a share from 0 to below 1")
        if self.objects is not None and self.classes:
            raise UserError("--classes names the class of each value, --objects one for all; give one of them")

    def record(self) -> dict[str, Any]:
        """The options in the plain types of YAML; ``resume`` is not among them."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "resume"}
