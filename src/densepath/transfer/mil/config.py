"""The options of ``densepath mil``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from densepath.core.errors import UserError
from densepath.core.plain import plain
from densepath.core.random import check_seed
from densepath.core.single_values import check_choice, list_single_fields
from densepath.runs.folder import CONFIG
from densepath.training.hardware import Precision
from densepath.transfer.mil.cohort import Grouping, Task
from densepath.transfer.mil.models import ALL, KNN
from densepath.transfer.mil.slide_table import Columns
from densepath.transfer.mil.split_files import column_of
from densepath.transfer.mil.splits import VALIDATION
from densepath.transfer.slides.slide_list import refuse_options

_FOLDS, _NEIGHBORS = 5, 20
ClassWeights = Literal["none", "balanced"]
FREE = ("resume", "devices", "out", "data", "slides")  # may change when a run is resumed


@dataclass(frozen=True)
class MilConfig:
    """Options of multiple-instance learning.

    Args:
        data: folder with a file of features for each slide: those of densepath, CLAM, TRIDENT or STAMP (HDF5 or .pt).
        table: a CSV with a row for each slide or patient, or "folders": the class of a slide is its folder.
        out: the folder of the run.
        target: column of the target; default: label or class.
        patient: column of the patients; default: patient, case or subject, or the barcodes of TCGA.
        slide: column of the slides; default: slide_id, FILENAME, slide or file.
        slide_table: for a table of patients, a CSV with their slides (STAMP: PATIENT, FILENAME).
        site: column of sites; all patients of a site stay in one fold. "tcga": the sites in the barcodes.
        classes: classes to keep, rename or merge: NAME, or NAME=A,B for each. "bright3", "bright6": of BRIGHT.
        task: what the target is: classification, regression (numbers), or survival (times, with --event).
        event: column that is 1 where the event was observed, 0 where observation ended.
        grouping: "joined": the slides of a patient are one bag; "averaged": their answers are averaged; "single": each
            slide has its own target and answer.
        model: dsmil, dsmil_linear, abmil, abmil_gated, clam, transmil, hipt, mean, max, knn, or all: each of them on
            the same folds, with paired tests.
        folds: number of folds, by patient and stratified.
        splits: instead of folds: a splits.json of another run, a folder with CLAM's splits_0.csv ..., or a column of
            the table with train, val and test or with the numbers of folds.
        validation: share of the training cases on which epoch and thresholds are chosen.
        epochs: default: that of the model.
        lr, weight_decay: several values are a sweep: the validation cases of each fold choose. Default: the model's.
        class_weights: "balanced" weighs the loss of a class by the inverse of its number of bags.
        standardize: give each feature mean 0 and standard deviation 1 over the tiles of the training cases; for
            features that vary little beside their mean, or that differ in scale.
        max_tiles: tiles of a bag in a training step, drawn again in each epoch; 0 for all. Validation and test use all.
        neighbors: k of knn; at most half of the training bags.
        attention: number of test slides whose attention is written, or "all".
        allow_pretraining_slides: test also slides and patients that the features' backbone was pre-trained on, which
            are refused otherwise: for pre-training without labels. Scores on other slides may be lower; it is recorded.
        slides: folder of the slides, for sheets of the tiles with the highest and the lowest attention.
        seed: seed of folds, weights, orders and intervals.
        devices: "auto" (one GPU, or the CPU) or "cpu".
        precision: "auto", "32" or "bf16-mixed".
        resume: continue the run in out.
    """

    data: str | Path
    table: str | Path
    out: str | Path
    target: str | None = None
    patient: str | None = None
    slide: str | None = None
    slide_table: str | Path | None = None
    site: str | None = None
    classes: Sequence[str] = ()
    task: Task = "classification"
    event: str | None = None
    grouping: Grouping = "joined"
    model: str = "dsmil"
    folds: int = _FOLDS
    splits: str | Path | None = None
    validation: float = VALIDATION
    epochs: int | None = None
    lr: Sequence[float] = ()
    weight_decay: Sequence[float] = ()
    class_weights: ClassWeights = "none"
    standardize: bool = False
    max_tiles: int = 0
    neighbors: int = _NEIGHBORS
    attention: int | Literal["all"] = 8
    allow_pretraining_slides: bool = False
    slides: str | Path | None = None
    seed: int = 0
    devices: str = "auto"
    precision: Precision = "auto"
    resume: bool = False

    def __post_init__(self) -> None:
        list_single_fields(self)
        check_seed(self.seed)
        for name, kind in (("task", Task), ("grouping", Grouping), ("class_weights", ClassWeights)):
            check_choice(name, getattr(self, name), kind)
        for name, least in (("folds", 2), ("neighbors", 1), ("max_tiles", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; give {least} or more")
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"epochs is {self.epochs}; give 1 or more")
        if not 0 < self.validation < 1:
            raise UserError(f"validation is {self.validation}; give a share between 0 and 1")
        if not (all(0 < value < math.inf for value in self.lr) and all(0 <= x < math.inf for x in self.weight_decay)):
            raise UserError("lr must be positive, and weight_decay 0 or more, and finite")
        if self.attention != "all" and self.attention < 0:
            raise UserError(f"attention is {self.attention}; give a number of slides, or all")
        if self.task == "survival" and self.event is None:
            raise UserError("survival needs --event, the column that says whether the event was observed")
        if not (self.resume and (Path(self.out) / CONFIG).is_file()):  # runs of earlier versions may have them
            self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Refuse options that have no effect on the task or the model."""
        weighted = None if self.class_weights == "none" else self.class_weights
        if self.splits is not None and self.folds != _FOLDS:
            refuse_options("folds that are drawn, not those of --splits", {"folds": self.folds})
        if self.task != "survival":
            refuse_options("--task survival", {"event": self.event})
        if self.task != "classification":
            refuse_options("classification", {"classes": self.classes or None, "class_weights": weighted})
        if self.model == KNN:
            given: dict[str, Any] = {"epochs": self.epochs, "class_weights": weighted}
            given |= {name: getattr(self, name) or None for name in ("lr", "weight_decay", "max_tiles")}
            refuse_options("models that are trained, not knn", given)
        elif self.model != ALL and self.neighbors != _NEIGHBORS:
            refuse_options("knn", {"neighbors": self.neighbors})

    def columns(self) -> Columns:
        """The columns of the table."""
        return Columns(self.target, self.patient, self.slide, self.site, self.event, column_of(self.splits))

    def record(self) -> dict[str, Any]:
        """The options in the types of YAML."""
        return dict(plain(asdict(self)))
