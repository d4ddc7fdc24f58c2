"""The step on the attention of vision transformers: the shares of tokens that get little, about equal and much."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from densepath.analysis.attention import BINS
from densepath.analysis.show_attention import TABLE, show_attention
from densepath.benchmark.labelled_sets import LabelledSet, read_unlabelled
from densepath.benchmark.steps.step import RUN, TRANSFER, Options, Step, with_defaults

_LOW, _EVEN, _HIGH = (bin.replace(" ", "_") for bin in BINS)  # columns of the table


class _Attention(Step):
    def result(self, folder: Path) -> dict[str, Any]:
        with (folder / self.written).open(newline="") as file:
            row = next(row for row in csv.DictReader(file) if row["head"] == "mean")
        columns = dict(zip(self.metrics, (_LOW, _EVEN, _HIGH), strict=True))
        return {metric: 100 * float(row[column]) for metric, column in columns.items()}


def _images(options: Options, data: LabelledSet) -> int:
    known = len({*data.train.names, *data.test.names})
    return int(min(with_defaults(ATTENTION, options, ("count",))["count"], known))


ATTENTION = _Attention(
    "show attention",
    show_attention,
    metrics=("low_share", "even_share", "high_share"),
    read=read_unlabelled,
    images=_images,
    own=("query", "heat_maps"),
    resumes=False,
    one_device=True,
    written=f"{RUN}/{TABLE}",
    code=(*TRANSFER, "analysis"),
)
