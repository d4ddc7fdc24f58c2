"""The pages of classifiers, of models of slides and of probes: scores, curves, confusion, calibration, worst images."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.csv_files import read_rows
from densepath.core.errors import UserError
from densepath.report.answer_charts import answer_charts, confusion_chart
from densepath.report.blocks import Block, Facts, Gallery, Note, Section, Table
from densepath.report.common import curve_section, ending, gallery, options, pictures_below, score_cards
from densepath.report.embedded import below, picture
from densepath.report.paths import inside, own_file, where
from densepath.report.runs import Kind, Run, read_scores
from densepath.report.slides import slide_blocks
from densepath.report.values import MISSING, pretty
from densepath.transfer.probe.curves import Ranked

_SCORES = (
    *("macro_auc", "balanced_accuracy", "accuracy", "macro_ap", "macro_f1", "concordance", "r2", "pearson"),
    *(
        "mean_iou",
        "dice",
        "logistic_macro_auc",
        "logistic_balanced_accuracy",
        "logistic_accuracy",
        "knn_macro_auc",
        "knn_accuracy",
    ),
)
_OPTIONS = {
    "data": "images",
    "labels": "labels",
    "features": "features",
    "table": "table",
    "target": "target",
    "model": "model",
    "weights": "weights",
    "backbone": "backbone",
    "freeze": "backbone frozen",
    "folds": "folds",
    "epochs": "epochs",
    "seed": "seed",
}
_TABLES = ("predictions.csv", "patient-preds.csv")
_NOT_TARGET = {"PATIENT", "SLIDE", "pred", "fold"}
_MOST_WORST = 12
_LARGEST = 2**26  # bytes of a table
_OF_SLIDES = {"attention": "Attention", "heat_maps": "Heat maps"}  # folders of pictures; a classifier's have its curves


@dataclass(frozen=True, eq=False)
class Answers:
    """Probabilities for images or slides.

    Args:
        names: (N,) of the images.
        classes: K names.
        chances: (N, K) probabilities.
        truth: (N, K) whether an image is of a class; NaN if that is unknown.
        folds: (N,) the training that tested each.
        exclusive: whether each image has one class.
    """

    names: Sequence[str]
    classes: Sequence[str]
    chances: npt.NDArray[np.float64]
    truth: npt.NDArray[np.float64]
    folds: npt.NDArray[np.int64]
    exclusive: bool

    def ranked(self) -> list[Ranked]:
        """The probabilities of each class, of the images of which it is known."""
        found = []
        for k, name in enumerate(self.classes):
            known = ~np.isnan(self.truth[:, k])
            found.append(Ranked(name, self.chances[known, k], self.truth[known, k] > 0, self.folds[known]))
        return found

    def confusion(self) -> npt.NDArray[np.int64]:
        """(K, K) numbers by class and by predicted class."""
        count = len(self.classes)
        pairs = self.truth.argmax(1) * count + self.chances.argmax(1)
        return np.bincount(pairs, minlength=count * count).reshape(count, count)

    def worst(self) -> list[tuple[int, str]]:
        """The images whose own class got the lowest probability: their numbers, and a line on each."""
        own = self.chances[np.arange(len(self.names)), self.truth.argmax(1)]
        lines = []
        for k in np.argsort(own, kind="stable")[:_MOST_WORST]:
            said = self.classes[int(self.chances[k].argmax())]
            truth = self.classes[int(self.truth[k].argmax())]
            lines.append((int(k), f"{truth}, predicted {said} ({self.chances[k].max():.0%})"))
        return lines


def _of_models(run: Run, most: int) -> list[Section]:
    """A run of ``mil``, which may have trained all models, each in a folder of its own."""
    scores = [] if run.scores else sorted(run.path.glob("*/scores.json"))
    folders = [path.parent for path in scores if inside(path, run.path)]
    if not folders:
        return _sections(run, most)
    share = most // len(folders)
    models = [replace(run, path=folder, scores=read_scores(folder / "scores.json")) for folder in folders]
    rows = [[each.path.name, *(str(each.scores.get(name, MISSING)) for name in _SCORES[:5])] for each in models]
    table = Table(["model", *map(pretty, _SCORES[:5])], rows, caption="In percent, with 95% intervals")
    parts = [Section(each.path.name, parts=_sections(each, share)[:2], folded=True) for each in models]
    return [Section("Summary", [table]), Section("Models", parts=parts), *ending(run)]


def _sections(run: Run, most: int) -> list[Section]:
    blocks: list[Block] = [*score_cards(run, _SCORES), Facts({"state": run.state, **options(run, _OPTIONS)})]
    if run.scores:
        blocks.append(_score_table(run))
    made = [Section("Summary", blocks)]
    found, problem = _read(run)
    if found is not None:
        made.append(Section("Answers", _charts(run, found, most)))
    else:
        drawn = gallery("Pictures", pictures_below(run.path), run.path, most) if most and run.path.is_dir() else []
        blocks += [Note(problem, warning=True)] * bool(problem)
        made += [Section("Answers", drawn)] if drawn else []
    if slides := slide_blocks(run, most, _OF_SLIDES):
        made.append(Section("Slides", slides))
    return [*made, *curve_section(run, most), *ending(run)]


def _score_table(run: Run) -> Table:
    rows = []
    for name, score in run.scores.items():
        low, high = (MISSING if edge is None else f"{edge:.1f}" for edge in (score.low, score.high))
        rows.append([pretty(name), f"{score.value:.1f}", low, high])
    return Table(["score", "value", "low", "high"], rows, caption="In percent, with 95% intervals where they are known")


def _charts(run: Run, found: Answers, most: int) -> list[Block]:
    blocks: list[Block] = [*answer_charts(found.ranked())]
    if found.exclusive:
        blocks.append(confusion_chart(found.confusion(), found.classes))
        folder, shown = run.data.parent if run.data.is_file() else run.data, []
        rows = []
        for k, line in found.worst():
            rows.append([found.names[k], line])
            path = below(folder, found.names[k]) if most else None
            if path and (thumbnail := picture(path, folder, f"{found.names[k]}: {line}", 320)):
                shown.append(thumbnail)
        title = "The images whose class got the lowest probability"
        missing = len(rows) - len(shown)
        if shown:
            title += f"; {missing} of them are not found in {folder}" if missing else ""
            blocks.append(Gallery(title, shown))
        else:
            unknown = where(run.config, run.sessions) if most else ""
            blocks.append(Table(["image", "class"], rows, caption=f"{title}.{unknown}"))
    return blocks


def _read(run: Run) -> tuple[Answers | None, str]:
    """The answers of a run, or why there are none."""
    tables = [run.path / name for name in _TABLES] if run.path.is_dir() else [run.path.with_suffix(".csv")]
    for path in tables:
        if path.is_file():
            try:
                own_file(path.parent, path.name)
                if path.stat().st_size > _LARGEST:
                    raise ValueError("it is too large")
                return read_answers(path), ""
            except (UserError, OSError, ValueError, LookupError, TypeError, csv.Error) as error:
                return None, f"{path.name} is not shown: {error}"
    return None, ""


def read_answers(path: Path) -> Answers | None:
    """The answers in a table of ``classify``, ``mil`` or ``probe``; None if they are not probabilities of classes."""
    rows = read_rows(path, "make it again")
    if not rows:
        return None
    columns = [name for name in rows[0] if name is not None]
    if "PATIENT" in columns:
        return _of_slides(rows, columns)
    if any(name.startswith("p ") for name in columns):
        return _of_images(rows, columns)
    return _of_probe(rows, columns)


def _of_images(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> Answers:
    classes = [name[2:] for name in columns if name.startswith("p ")]
    exclusive = "label" in columns
    if exclusive:
        truth = _one_hot([row["label"] for row in rows], classes)
    else:
        truth = np.array([[float(row[f"label {name}"] or "nan") for name in classes] for row in rows])
    return _made(rows, "image", [f"p {name}" for name in classes], classes, truth, "run", exclusive)


def _of_slides(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> Answers | None:
    if "pred" not in columns:
        return None
    target = next(name for name in columns if name not in _NOT_TARGET)
    names = [name for name in columns if name.startswith(f"{target}_")]
    classes = [name.removeprefix(f"{target}_") for name in names]
    truth = _one_hot([row[target] for row in rows], classes)
    return _made(rows, "SLIDE" if "SLIDE" in columns else "PATIENT", names, classes, truth, "fold", True)


def _of_probe(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> Answers | None:
    classifier = next((name for name in ("logistic", "knn") if name in columns), None)
    if classifier is None:
        return None
    names = [name for name in columns if name.startswith(f"{classifier} ")]
    classes = [name.removeprefix(f"{classifier} ") for name in names]
    truth = _one_hot([row["label"] for row in rows], classes)
    return _made(rows, "image", names, classes, truth, "fold", True)


def _made(
    rows: Sequence[Mapping[str, str]],
    name: str,
    columns: Sequence[str],
    classes: Sequence[str],
    truth: npt.NDArray[np.float64],
    fold: str,
    exclusive: bool,
) -> Answers:
    chances = np.array([[float(row[column]) for column in columns] for row in rows]).reshape(len(rows), -1)
    folds = np.unique([row.get(fold, "") for row in rows], return_inverse=True)[1].astype(np.int64)
    return Answers([row[name] for row in rows], classes, chances, truth, folds, exclusive)


def _one_hot(labels: Sequence[str], classes: Sequence[str]) -> npt.NDArray[np.float64]:
    numbers: Any = [list(classes).index(label) for label in labels]
    return np.eye(len(classes))[numbers]


CLASSIFIER = Kind("classifier", lambda run: run.has("labels", "freeze"), _sections)
MIL = Kind("model of slides", lambda run: run.has("model", "folds") and not run.has("detector"), _of_models)
PROBE = Kind("probe", lambda run: run.path.suffix == ".json", _sections)
