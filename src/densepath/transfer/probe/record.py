"""What a probe of images leaves: a table for the screen, a record, the predictions, and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from densepath.core.csv_files import table_writer
from densepath.core.errors import UserError, counted
from densepath.core.file_beside import file_beside
from densepath.core.files import atomic_write, check_writable, refuse_replacing
from densepath.core.fonts import drawable
from densepath.core.scores import SCALE, answer_text, without_nan
from densepath.transfer.probe.images import ImageProbe
from densepath.transfer.probe.metrics import METRICS

_TITLES = {"knn": "k nearest neighbors", "logistic": "logistic regression"}
_COLUMNS = ("image", "label", "patient", "fold")
_DPI = 120
_MOST_TEXT = 16  # classes whose cells are labelled
_LONGEST = 24  # characters of a class


def check_out(out: str | Path | None, *inputs: str | Path | None, only_record: bool = False) -> None:
    """Check the files of a probe before the work begins.

    Args:
        out: the record.
        inputs: files that the probe reads.
        only_record: whether there is only the record, without predictions (.csv) and confusion matrices (.png).

    Raises:
        UserError: the record has another ending than .json or cannot be written, or a file would replace an
            input or another file.
    """
    if out is None:
        return
    if Path(out).suffix != ".json":
        raise UserError(f"cannot write the scores to {out}; use a file name that ends in .json")
    check_writable(out)
    for path in _files(Path(out))[: 1 if only_record else None]:
        refuse_replacing(path, *inputs)
    if not only_record:
        file_beside(out, ".csv", _COLUMNS)
        file_beside(out, ".png")


def _files(out: Path) -> tuple[Path, Path, Path]:
    """The record, the predictions and the confusion matrices."""
    return out, out.with_suffix(".csv"), out.with_suffix(".png")


def table_of(probe: ImageProbe) -> str:
    """The scores with their intervals."""
    table = Table(title=f"{_protocol(probe)}\npercent, with 95% intervals", title_justify="left")
    table.add_column("")
    for metric in METRICS:
        table.add_column(metric.replace("_", " ").replace("auc", "AUC"), justify="right")
    for name, scores in probe.scores.items():
        table.add_row(_TITLES[name], *(str(scores[metric]) for metric in METRICS))
    console = Console(file=StringIO(), width=100)
    console.print(table)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


def record_of(probe: ImageProbe, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The scores and what they were made with, in plain types."""
    counts = np.bincount(probe.images.classes.labels.numpy())
    result: dict[str, Any] = {**asked, **SCALE, "protocol": _protocol(probe)}
    for name, scores in probe.scores.items():
        for metric, score in scores.items():
            result[f"{name}_{metric}"] = score.value
            result[f"{name}_{metric}_interval"] = [score.low, score.high]
    return result | {
        "classes": dict(zip(probe.images.classes.names, counts.tolist(), strict=True)),
        "images": len(probe.images),
        "test_images": len(probe.tested),
        "patients": len(np.unique(probe.images.patients)) if probe.images.by_patient else None,
        "logistic_c": probe.strengths,
        "encoding": probe.notes,
        "seconds": round(probe.seconds, 1),
    }


def write_record(probe: ImageProbe, out: Path, asked: Mapping[str, Any]) -> None:
    """Write the record, and next to it the predictions (.csv) and the confusion matrices (.png)."""
    record, predictions, picture = _files(out)
    with atomic_write(record) as part:
        part.write_text(json.dumps(without_nan(record_of(probe, asked)), indent=2, allow_nan=False) + "\n")
    with table_writer(predictions) as writer:
        _write_predictions(probe, writer)
    with atomic_write(picture) as part:
        draw_confusion(probe, part)


def _write_predictions(probe: ImageProbe, writer: Any) -> None:
    classes, images = probe.images.classes.names, probe.images
    probabilities = [f"{name} {c}" for name in probe.chances for c in classes]
    writer.writerow([*_COLUMNS, *probe.chances, *probabilities])
    folds = np.repeat(np.arange(len(probe.folds)), [len(fold.test) for fold in probe.folds])
    for row, position in enumerate(probe.tested):
        own = [chances[row] for chances in probe.chances.values()]
        patient = images.patient_names[images.patients[position]] if images.by_patient else ""
        writer.writerow(
            [
                images.names[position],
                classes[images.classes.labels[position]],
                patient,
                folds[row],
                *(classes[chances.argmax()] for chances in own),
                *(answer_text(chance) for chances in own for chance in chances),
            ]
        )


def draw_confusion(probe: ImageProbe, file: Path | BytesIO) -> None:
    """Draw the confusion matrix of each classifier as PNG: percent of the images of a class, and their numbers."""
    draw_matrices({_TITLES[name]: probe.confusion(name) for name in probe.chances}, probe.images.classes.names, file)


def draw_matrices(matrices: Mapping[str, npt.NDArray[np.int64]], classes: Sequence[str], file: Path | BytesIO) -> None:
    """Draw confusion matrices side by side as PNG.

    Args:
        matrices: title -> (K, K) numbers by class and by predicted class.
        classes: names of the classes.
        file: where to.
    """
    names = [drawable(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…") for name in classes]
    side = max(2.2, 0.55 * len(names))
    margin = 0.6 + 0.08 * max(map(len, names))
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 8}):
        width = len(matrices) * (side + 0.35) + margin + 1.0
        figure = Figure((width, side + margin + 0.7), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        all_axes = figure.subplots(1, len(matrices), squeeze=False)[0]
        for axes, (title, counts) in zip(all_axes, matrices.items(), strict=True):
            shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
            image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
            axes.set_title(drawable(title))
            axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 4 else 0)
            axes.set_yticks(range(len(names)), names if axes is all_axes[0] else [])
            axes.set_xlabel("predicted")
            if axes is all_axes[0]:
                axes.set_ylabel("true")
            for row, column in np.ndindex(*counts.shape) if len(names) <= _MOST_TEXT else []:
                ink = "white" if shares[row, column] > 55 else "#2b2b33"
                text = f"{shares[row, column]:.0f}%\n{counts[row, column]}"
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=7)
        figure.colorbar(image, ax=list(all_axes), label="percent of the true class", shrink=0.8)
        figure.savefig(file, format="png")


def _protocol(probe: ImageProbe) -> str:
    """How the images were divided, in a few words."""
    images = probe.images
    tested = len(np.unique(images.patients[probe.tested]))
    patients = counted(tested, "patient") if images.by_patient else "patients unknown"
    if images.test is not None:
        images_of_test = counted(len(probe.tested), "test image")
        return f"given split: {len(probe.folds[0].train)} training and {images_of_test}, {patients}"
    unit = "patient" if images.by_patient else "image"
    return f"{counted(len(probe.folds), 'fold')} by {unit}: {counted(len(images), 'image')}, {patients}"
