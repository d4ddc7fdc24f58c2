"""The public functions with recipes: they take a recipe, and options that override it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densepath.core.result import Result
    from densepath.training.config import PretrainConfig
    from densepath.transfer.classify.config import ClassifyConfig
    from densepath.transfer.detection.config import DetectConfig
    from densepath.transfer.segment.config import SegmentConfig


def pretrain(config: PretrainConfig | str | Path | None = None, **options: Any) -> Result:
    """Learn features from unlabelled images.

    ``batch_size`` counts the images of one optimizer step over all devices, so that a recipe's meaning does not depend
    on the hardware; only batch norms may (``batch_norm``, ``batch_norm_group``). The run folder holds ``config.yaml``,
    ``metrics.csv``, ``checkpoints/`` and, at the end, ``exported/backbone.safetensors``. With ``resume`` a run that
    was stopped or killed continues as if it had not been: on a CPU with the same number of threads, and on a GPU with
    ``deterministic``, to the same bits.

    Args:
        config: the name of a recipe, the path of a YAML file, e.g. a run's ``config.yaml``, or a ``PretrainConfig``.
        options: fields of :class:`~densepath.training.config.PretrainConfig`, which override those of ``config``:
            ``densepath.pretrain("concl_small", data="tiles", out="run", optimizer={"lr": 0.1})``.

    Returns:
        The run folder, which other functions take as ``weights``; its scores are the last measurements.

    Raises:
        UserError: options that are not consistent with each other or the data, or a folder that holds another run.
        Interrupted: Ctrl-C or SIGTERM; the state has been saved. In a notebook it is a KeyboardInterrupt.
    """
    from densepath.analysis.curves import draw_run
    from densepath.analysis.learned import draw_learned
    from densepath.analysis.pictures import draw_views
    from densepath.analysis.reconstruction import draw_reconstruction
    from densepath.runs.signals import as_keyboard_interrupt
    from densepath.training.caller_state import state_of_the_caller
    from densepath.training.config import PretrainConfig
    from densepath.training.pretrain import run
    from densepath.training.resolve import resolve
    from densepath.transfer.probe.pixels import probe_backbone

    with as_keyboard_interrupt(), state_of_the_caller():
        configured = resolve(PretrainConfig, config, options)
        return run(configured, probe_backbone, draw_reconstruction, draw_views, draw_run, draw_learned)


def classify(config: ClassifyConfig | str | Path | None = None, **options: Any) -> Result:
    """Train classifiers of images and test them by patient: fine-tuned, or linear on a frozen backbone.

    Images have one class, or several labels, some of which may be unknown. Validation images, held out of the training
    images, choose the epoch; test images are used once. Folds and seeds repeat this.

    Args:
        config: the name of a recipe, the path of a YAML file, or a ``ClassifyConfig``.
        options: fields of :class:`~densepath.transfer.classify.config.ClassifyConfig`, which override those of
            ``config``.

    Returns:
        The run folder, which ``densepath.predict`` takes, with its scores in percent: accuracy, balanced_accuracy,
        macro_auc, macro_ap, macro_f1, auc_NAME and ap_NAME for each class or label; for several trainings their
        standard deviation, macro_auc_spread and so on (without scores on all processes but the first).

    Raises:
        UserError: the images, the labels, the weights or an option are invalid, or a test would leak.
        Interrupted: Ctrl-C or SIGTERM; the state has been saved. In a notebook it is a KeyboardInterrupt.
    """
    from densepath.runs.signals import as_keyboard_interrupt
    from densepath.training.caller_state import state_of_the_caller
    from densepath.training.resolve import resolve
    from densepath.transfer.classify.classify import run
    from densepath.transfer.classify.config import ClassifyConfig

    with as_keyboard_interrupt(), state_of_the_caller():
        return run(resolve(ClassifyConfig, config, options, recipes="classify"))


def segment(config: SegmentConfig | str | Path | None = None, **options: Any) -> Result:
    """Train networks that give each pixel of an image, or voxel of a volume, a class, and test them by patient.

    They are trained on patches: a U-Net on any backbone, from the decoder of a pre-training run where it has one.
    Validation images, held out of the training images, choose the epoch; test images are segmented once, as wholes, in
    overlapping windows. Folds and seeds repeat this.

    Args:
        config: the name of a recipe, the path of a YAML file, or a ``SegmentConfig``.
        options: fields of :class:`~densepath.transfer.segment.config.SegmentConfig`, which override those of
            ``config``.

    Returns:
        The run folder, which ``densepath.predict`` takes, with its scores: mean_dice, mean_iou, pooled_iou, dice_NAME,
        iou_NAME in percent, mean_hd95 and hd95_NAME in mm or pixels, and in how many cases a class is missed_NAME or
        false_NAME (without scores on all processes but the first).

    Raises:
        UserError: the images, the labels, the weights or an option are invalid, or a test would leak.
        Interrupted: Ctrl-C or SIGTERM; the state has been saved. In a notebook it is a KeyboardInterrupt.
    """
    from densepath.runs.signals import as_keyboard_interrupt
    from densepath.training.caller_state import state_of_the_caller
    from densepath.training.resolve import resolve
    from densepath.transfer.segment.config import SegmentConfig
    from densepath.transfer.segment.segment import run

    with as_keyboard_interrupt(), state_of_the_caller():
        return run(resolve(SegmentConfig, config, options, recipes="segment"))


def detect(config: DetectConfig | str | Path | None = None, **options: Any) -> Result:
    """Fine-tune a detector on outlined objects and score it on the test images.

    The defaults are the paper's for GlaS. The recipes glas, crag and monuseg have the settings for these data sets;
    glas_small trains without a GPU.

    Args:
        config: the name of a recipe, the path of a YAML file, or a ``DetectConfig``.
        options: fields of :class:`~densepath.transfer.detection.config.DetectConfig`, which override those of
            ``config``.

    Returns:
        The run folder, which ``densepath.predict`` takes, with the scores box_ap, box_ap50, box_ap75, and for detectors
        with masks mask_ap, mask_ap50, mask_ap75, in percent, and the metrics of objects with a score of at least 0.5:
        object_f1, object_dice, aji, aji_plus, dq, sq, pq in percent, object_hausdorff_px in pixels (without scores on
        all processes but the first).

    Raises:
        UserError: the data, the weights or an option are invalid.
        Interrupted: Ctrl-C or SIGTERM; the state has been saved. In a notebook it is a KeyboardInterrupt.

    Source: Yang et al., "ConCL", ECCV 2022, section 4.1, and its released Detectron2 configurations.
    """
    from densepath.analysis.curves import draw_run
    from densepath.runs.signals import as_keyboard_interrupt
    from densepath.training.caller_state import state_of_the_caller
    from densepath.training.resolve import resolve
    from densepath.transfer.detection.config import DetectConfig
    from densepath.transfer.detection.detect import run

    with as_keyboard_interrupt(), state_of_the_caller():
        return run(resolve(DetectConfig, config, options, recipes="detect"), draw_run)
