"""The steps on images: a classifier of their classes, and what frozen features tell of how they were changed."""

from __future__ import annotations

from densepath.benchmark.labelled_sets import CLASS_OPTIONS, read_classes, read_labelled, read_plain
from densepath.benchmark.steps.folds import SCRATCH, images_of_folds, mean_scores
from densepath.benchmark.steps.step import Step
from densepath.transfer.classify.config import ClassifyConfig
from densepath.transfer.probe.probe import probe

CLASSIFY: Step = Step(
    "classify",
    ClassifyConfig,
    metrics=("accuracy", "balanced_accuracy", "macro_auc", "macro_ap", "macro_f1"),
    families=("auc_", "ap_"),
    read=read_classes,
    read_options=CLASS_OPTIONS,
    images=lambda options, data: images_of_folds(CLASSIFY, options, data),
    recipes="classify",
    own=("labels", "test_data", "test_labels", "train_images", "seeds"),
    scores=mean_scores,
    scratch=SCRATCH,
)
_PROBED = tuple(
    f"{how}_{name}" for how in ("logistic", "knn") for name in ("accuracy", "balanced_accuracy", "macro_auc")
)
PROBE_CLASSES = Step(
    "probe classes",
    probe,
    metrics=_PROBED,
    read=read_labelled,
    read_options=("target",),
    images=lambda options, data: len({*data.train.names, *data.test.names}),
    own=("labels", "task", "features", "test_data", "orientation", "each_stage", "l2"),
    resumes=False,
    one_device=True,
    written="scores.json",
    command="probe",
)
PROBE_TASK = Step(
    "probe task",
    probe,
    metrics=_PROBED,
    read=read_plain,
    own=("labels", "features", "test_data", "target", "orientation", "each_stage", "l2", "folds"),
    needed=("task",),
    resumes=False,
    one_device=True,
    written="scores.json",
    command="probe",
)
