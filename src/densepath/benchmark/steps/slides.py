"""The steps on slides: features of their tiles, models of bags that learn from these, and the distance of tokens."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densepath.analysis.show_tokens import show_tokens
from densepath.benchmark.labelled_sets import SLIDE_OPTIONS, LabelledSet, read_slides, read_tiled
from densepath.benchmark.steps.step import RUN, TRANSFER, Options, Step, as_words, with_defaults
from densepath.transfer.embed.embed import embed
from densepath.transfer.mil.config import MilConfig
from densepath.transfer.mil.models import MODELS
from densepath.transfer.mil.split_files import is_column


def _bags(options: Options, data: LabelledSet) -> int:
    values = with_defaults(MIL, options, ("model", "epochs", "folds", "lr", "weight_decay"))
    model = MODELS.get(values["model"])
    epochs = values["epochs"] or (model.solver.epochs if model is not None else 1)
    trainings = max(len(values["lr"]), 1) * max(len(values["weight_decay"]), 1)
    folds = values["folds"] if data.folds else 1
    return int(folds * trainings * epochs * len(data.train.names) + len(data.test.names))


def _scores(written: Mapping[str, Any]) -> dict[str, Any]:
    return {"scale": written.get("scale")} | {name: each["value"] for name, each in written["scores"].items()}


def features_in(output: Path) -> Path:
    """The folder of features in the output of ``embed``; there is none before it is done."""
    return next(iter(sorted(output.glob("features_*"))), output / "features")


class _Embed(Step):
    def result(self, folder: Path) -> dict[str, Any]:
        count = sum(1 for _ in features_in(folder / RUN).rglob("*.h5"))
        if not count:
            raise ValueError("no features")
        return {"slides": count}

    def is_whole(self, folder: Path) -> bool:
        return features_in(folder / RUN).is_dir()


EMBED = _Embed(
    "embed",
    embed,
    read=read_slides,
    read_options=SLIDE_OPTIONS,
    images=lambda options, data: data.tiles or len(data.test.names),
    own=("mpp", "tile_size", "mpp_table", "default_mpp", "shard"),
    resumes=False,  # the same command continues
    written=RUN,
)
MIL = Step(
    "mil",
    MilConfig,
    metrics=("accuracy", "balanced_accuracy", "macro_auc", "macro_ap", "macro_f1", "r2", "pearson", "concordance"),
    families=("auc_", "ap_"),
    read=read_slides,
    read_options=SLIDE_OPTIONS,
    images=_bags,
    own=("table", "slides"),
    source="features",
    one_device=True,
    written=f"{RUN}/scores.json",
    scores=_scores,
    names={"splits": is_column},
)


class _Tokens(Step):
    def words(self, options: Options, source: str, workers: int | None) -> list[str]:
        return [f"--weights={source}", *as_words(options), "--out=tokens.png"]

    def result(self, folder: Path) -> dict[str, Any]:
        with (folder / self.written).open(newline="") as file:
            row = next(iter(csv.DictReader(file)))
        return {metric: 100 * float(row[metric]) for metric in self.metrics}


TOKENS = _Tokens(
    "show tokens",
    show_tokens,
    metrics=("jensen_shannon", "bhattacharyya"),
    read=read_tiled,
    own=("out", "cells"),
    one_device=True,
    written="tokens.csv",
    code=(*TRANSFER, "analysis"),
)
