"""The pages of classifiers, of models of slides and of probes: scores, curves, confusion, calibration, worst cases."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densepath.core.csv_files import read_rows
from densepath.core.errors import UserError
from densepath.report.answer_charts import answer_charts, confusion_chart
from densepath.report.blocks import Block, Facts, Gallery, Note, Picture, Section, Table
from densepath.report.common import curve_section, ending, gallery, options, pictures_below, score_cards
from densepath.report.embedded import below, data_pictures
from densepath.report.paths import inside, own_file, where
from densepath.report.runs import Kind, Run, read_model
from densepath.report.slides import slide_blocks
from densepath.report.values import MISSING, decimals, pretty
from densepath.transfer.mil.leaks import describe_pretraining
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
_MOST_WORST, _SIDE = 12, 320  # images, and their longest side in pixels
_MOST_COLUMNS = 5  # scores in a table of models
_LARGEST = 2**26  # bytes of a table
_OF_SLIDES = {"attention": "Attention", "heat_maps": "Heat maps"}  # folders of pictures; a classifier's have its curves


@dataclass(frozen=True, eq=False)
class Answers:
    """Probabilities for images or slides.

    Args:
        what: what they are for, "image" or "case".
        names: (N,) of the images.
        classes: K names.
        chances: (N, K) probabilities.
        predicted: (N,) the number of the predicted class, which a threshold may have decided.
        truth: (N, K) whether an image is of a class; NaN if that is unknown.
        folds: (N,) the training that tested each.
        exclusive: whether each image has one class.
    """

    what: str
    names: Sequence[str]
    classes: Sequence[str]
    chances: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.int64]
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
        pairs = self.truth.argmax(1) * count + self.predicted
        return np.bincount(pairs, minlength=count * count).reshape(count, count)

    def worst(self) -> list[tuple[int, str]]:
        """The images whose own class got the lowest probability: their numbers, and a line on each."""
        own = self.chances[np.arange(len(self.names)), self.truth.argmax(1)]
        lines = []
        for k in np.argsort(own, kind="stable")[:_MOST_WORST].tolist():
            said = int(self.predicted[k])
            truth = self.classes[int(self.truth[k].argmax())]
            lines.append((k, f"{truth}, predicted {self.classes[said]} ({self.chances[k, said]:.0%})"))
        return lines


def _of_models(run: Run, most: int) -> list[Section]:
    """A run of ``mil``, which may have trained all models, each in a folder of its own."""
    scores = [] if run.scores else sorted(run.path.glob("*/scores.json"))
    folders = [path.parent for path in scores if inside(path, run.path)]
    if not folders:
        return _sections(run, most)
    share = most // len(folders)
    models = [read_model(run, folder) for folder in folders]
    known = [name for name in _SCORES if any(name in each.scores for each in models)][:_MOST_COLUMNS]
    rows = [[each.path.name, *(str(each.scores.get(name, MISSING)) for name in known)] for each in models]
    table = Table(["model", *map(pretty, known)], rows, caption="In percent, with 95% intervals")
    parts = [Section(each.path.name, parts=_own_sections(each, share), folded=True) for each in models]
    return [Section("Summary", [table]), Section("Models", parts=parts), *ending(run)]


def _sections(run: Run, most: int) -> list[Section]:
    return [*_own_sections(run, most), *ending(run)]


def _own_sections(run: Run, most: int) -> list[Section]:
    """The sections of a run without those that say how it was made."""
    blocks: list[Block] = [*score_cards(run, _SCORES), Facts({"state": run.state, **options(run, _OPTIONS)})]
    if run.scores:
        blocks.append(_score_table(run))
    if seen := describe_pretraining(run.notes):
        blocks.append(Note(f"{seen[0].upper()}{seen[1:]}.", warning=True))
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
    return [*made, *curve_section(run, most)]


def _score_table(run: Run) -> Table:
    rows = []
    for name, score in run.scores.items():
        low, high = (MISSING if edge is None else decimals(edge) for edge in (score.low, score.high))
        rows.append([pretty(name), decimals(score.value), low, high])
    return Table(["score", "value", "low", "high"], rows, caption="In percent, with 95% intervals where they are known")


def _charts(run: Run, found: Answers, most: int) -> list[Block]:
    blocks: list[Block] = [*answer_charts(found.ranked(), found.what)]
    if found.exclusive:
        blocks += [confusion_chart(found.confusion(), found.classes), _worst(run, found, most)]
    return blocks


def _worst(run: Run, found: Answers, most: int) -> Block:
    """The cases whose class got the lowest probability: as pictures if they are images, and as a table otherwise."""
    lines = [(found.names[k], line) for k, line in found.worst()]
    title = f"The {found.what}s whose class got the lowest probability"
    shown: list[Picture] = []
    if most and found.what == "image" and run.config.get("data"):
        folder = run.data.parent if run.data.is_file() else run.data
        paths = [(below(folder, name), f"{name}: {line}") for name, line in lines]
        there = [(path, caption) for path, caption in paths if path is not None and path.is_file()]
        shown = data_pictures(there, run.config, _SIDE)
        lost = {"not found": len(lines) - len(there), "not readable": len(there) - len(shown)}
        title += "".join(f"; {count} of them are {what} in {folder}" for what, count in lost.items() if count)
        title += f".{where(run.config, run.sessions)}" if not shown else ""
    return Gallery(title, shown) if shown else Table([found.what, "class"], lines, caption=title)


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
    columns = [f"p {name}" for name in classes]
    return _made(rows, "image", "predicted", columns, classes, truth, "run", exclusive)


def _of_slides(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> Answers | None:
    if "pred" not in columns:
        return None
    target = next(name for name in columns if name not in _NOT_TARGET)
    names = [name for name in columns if name.startswith(f"{target}_")]
    classes = [name.removeprefix(f"{target}_") for name in names]
    truth = _one_hot([row[target] for row in rows], classes)
    return _made(rows, "SLIDE" if "SLIDE" in columns else "PATIENT", "pred", names, classes, truth, "fold", True)


def _of_probe(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> Answers | None:
    classifier = next((name for name in ("logistic", "knn") if name in columns), None)
    if classifier is None:
        return None
    names = [name for name in columns if name.startswith(f"{classifier} ")]
    classes = [name.removeprefix(f"{classifier} ") for name in names]
    truth = _one_hot([row["label"] for row in rows], classes)
    return _made(rows, "image", classifier, names, classes, truth, "fold", True)


def _made(
    rows: Sequence[Mapping[str, str]],
    name: str,
    predicted: str,
    columns: Sequence[str],
    classes: Sequence[str],
    truth: npt.NDArray[np.float64],
    fold: str,
    exclusive: bool,
) -> Answers:
    chances = np.array([[float(row[column]) for column in columns] for row in rows]).reshape(len(rows), -1)
    said = _numbers([row[predicted] for row in rows], classes) if predicted in rows[0] else chances.argmax(1)
    folds = np.unique([row.get(fold, "") for row in rows], return_inverse=True)[1].astype(np.int64)
    what = "image" if name == "image" else "case"
    return Answers(what, [row[name] for row in rows], classes, chances, said, truth, folds, exclusive)


def _one_hot(labels: Sequence[str], classes: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.eye(len(classes))[_numbers(labels, classes)]


def _numbers(labels: Sequence[str], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """The number of the class of each label."""
    return np.array([list(classes).index(label) for label in labels], np.int64)


CLASSIFIER = Kind("classifier", lambda run: run.has("labels", "freeze"), _sections)
MIL = Kind("model of slides", lambda run: run.has("model", "folds") and not run.has("detector"), _of_models)
PROBE = Kind("probe", lambda run: run.path.suffix == ".json", _sections)
