"""What steps of trainings in folds share: their images, their scores and what is left when they are done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densepath.benchmark.labelled_sets import LabelledSet
from densepath.benchmark.steps.step import Options, Step, with_defaults
from densepath.runs.checkpoints import CHECKPOINTS
from densepath.transfer.classify.splits import FOLDS

SCRATCH = (CHECKPOINTS, f"seed_*/{CHECKPOINTS}", f"fold_*/{CHECKPOINTS}")


def images_of_folds(step: Step, options: Options, data: LabelledSet) -> int:
    """How many images all trainings and tests of a run read."""
    values = with_defaults(step, options, ("epochs", "folds", "fraction"))
    folds = (FOLDS if data.folds else 0) if values["folds"] is None else values["folds"]
    count = round(len(data.train.names) * values["fraction"])
    return max(folds, 1) * (values["epochs"] * count + len(data.test.names))


def mean_scores(written: Mapping[str, Any]) -> dict[str, Any]:
    """The means over the trainings of a run, which are its folds."""
    return {"scale": written.get("scale")} | {name: each["mean"] for name, each in written["scores"].items()}
