"""The steps on images: a classifier of their classes, and what frozen features tell of how they were changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densepath.benchmark.labelled_sets import CLASS_OPTIONS, LabelledSet, read_classes, read_plain
from densepath.benchmark.steps.step import Options, Step, with_defaults
from densepath.runs.checkpoints import CHECKPOINTS
from densepath.transfer.classify.config import ClassifyConfig
from densepath.transfer.classify.splits import FOLDS
from densepath.transfer.probe.probe import probe


def _images(options: Options, data: LabelledSet) -> int:
    values = with_defaults(CLASSIFY, options, ("epochs", "folds", "fraction"))
    folds = (FOLDS if data.folds else 0) if values["folds"] is None else values["folds"]
    count = round(len(data.train.names) * values["fraction"])
    return max(folds, 1) * (values["epochs"] * count + len(data.test.names))


def _scores(written: Mapping[str, Any]) -> dict[str, Any]:
    """The means over the trainings of a run, which are its folds."""
    return {"scale": written.get("scale")} | {name: each["mean"] for name, each in written["scores"].items()}


CLASSIFY = Step(
    "classify",
    ClassifyConfig,
    metrics=("accuracy", "balanced_accuracy", "macro_auc", "macro_ap", "macro_f1"),
    families=("auc_", "ap_"),
    read=read_classes,
    read_options=CLASS_OPTIONS,
    images=_images,
    recipes="classify",
    own=("labels", "test_data", "test_labels", "seeds"),
    scores=_scores,
    scratch=(CHECKPOINTS, f"seed_*/{CHECKPOINTS}", f"fold_*/{CHECKPOINTS}"),
)
PROBE_TASK = Step(
    "probe task",
    probe,
    metrics=tuple(
        f"{how}_{name}" for how in ("logistic", "knn") for name in ("accuracy", "balanced_accuracy", "macro_auc")
    ),
    read=read_plain,
    own=("labels", "features", "test_data", "target", "orientation", "each_stage", "l2", "folds"),
    resumes=False,
    one_device=True,
    written="scores.json",
    command="probe",
)
