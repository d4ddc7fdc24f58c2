"""The models of all folds of a run together: one answer for a new bag, and how far the folds differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from densepath.core.digests import digest_of_file
from densepath.core.errors import UserError, counted
from densepath.core.scores import answer_text
from densepath.runs.folder import read_config
from densepath.training.hardware import Hardware
from densepath.transfer.mil.bag_task import answer
from densepath.transfer.mil.bags import Bag
from densepath.transfer.mil.choosing import predict_classes
from densepath.transfer.mil.fold import objective_of
from densepath.transfer.mil.model_file import MODEL_FILE, load_model
from densepath.transfer.mil.models import KNN, MODELS
from densepath.transfer.mil.results import SCORES, answer_columns
from densepath.transfer.probe.metrics import Floats


def is_mil_run(run: str | Path) -> bool:
    """Whether a path is the folder of a run of ``densepath mil``, finished or not."""
    record = read_config(Path(run)) if Path(run).is_dir() else None
    kept = bool(record) and {"table", "grouping", "folds"} <= record.keys()  # type: ignore[union-attr]
    return kept or (Path(run) / "fold_0" / MODEL_FILE).is_file()


@dataclass(frozen=True, eq=False)
class Answer:
    """What all folds say of a bag.

    Args:
        values: (F, K) probabilities of classes, numbers or log risks, by the model of each fold.
        attention: (1, N) or (K, N), the mean over the folds.
    """

    values: Floats
    attention: Floats


class Ensemble:
    """The models of the folds of a run.

    Args:
        run: the folder of the run; of one with all models, that of a model in it.
        hardware: where to compute.

    Attributes:
        notes: what the model of the first fold is.
        digest: of all models.
        hardware: where to compute.

    Raises:
        UserError: the run keeps no model, has several, or is not finished.
    """

    def __init__(self, run: Path, hardware: Hardware) -> None:
        paths = sorted(run.glob(f"fold_*/{MODEL_FILE}"), key=lambda path: int(path.parent.name.rpartition("_")[2]))
        if several := [name for name in MODELS if (run / name / "fold_0").is_dir()]:
            raise UserError(f"{run} has several models; name one of them, such as {run / several[0]}")
        if not (run / SCORES).is_file():
            raise UserError(f"the run in {run} is not finished; continue it with densepath mil --resume")
        if not paths:
            raise UserError(f"{run} keeps no model, which {KNN} has none of; train another --model of densepath mil")
        loaded = [load_model(path) for path in paths]
        self.notes, self.hardware = loaded[0][1], hardware
        self._models = [(model.to(hardware.device), objective_of(notes, model)) for model, notes in loaded]
        self._thresholds = np.mean([notes.thresholds for _, notes in loaded], axis=0)
        self.digest = " ".join(digest_of_file(path)[:16] for path in paths)

    def __len__(self) -> int:
        return len(self._models)

    @torch.no_grad()
    def answer(self, bag: Bag) -> Answer:
        """Ask the models of all folds.

        Raises:
            UserError: the features have another width than those of the training.
        """
        if (wide := bag.tiles().shape[1]) != self.notes.dim:
            raise UserError(
                f"{bag.name} has {counted(wide, 'feature')} for each tile, the run was trained on {self.notes.dim}; "
                "use the features of the same extractor"
            )
        values, attention = [], []
        for model, objective in self._models:
            outputs, found = answer(model, bag, self.hardware.device, self.hardware.precision == "bf16-mixed")
            values.append(objective.answers(outputs[None])[0].double().cpu().numpy())
            attention.append(found.reshape(-1, found.shape[-1]).double().cpu().numpy())
        return Answer(np.stack(values), np.mean(attention, axis=0))

    def predicted(self, values: Floats) -> int:
        """The class of a bag: its mean probability exceeds the mean threshold by most; 0 for other tasks.

        Args:
            values: (F, K).
        """
        return int(predict_classes(values.mean(0)[None], self._thresholds)[0]) if self.notes.classes else 0

    def columns(self) -> list[str]:
        """The columns of tables: the class, mean and standard deviation over the folds, and the answers of each."""
        classes = self.notes.classes
        names = answer_columns(self.notes.target, classes, self.notes.task)
        each = [f"{name}_fold_{fold}" for fold in range(len(self)) for name in names]
        return [*(["pred"] if classes else []), *names, *(f"{name}_sd" for name in names), *each]

    def row(self, values: Floats) -> list[str]:
        """The values of :meth:`columns` for a bag with answers (F, K)."""
        chosen: Sequence[str] = [self.notes.classes[self.predicted(values)]] if self.notes.classes else []
        spread = values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.nan)
        deviations = [answer_text(value) if np.isfinite(value) else "" for value in spread]
        return [*chosen, *_texts(values.mean(0)), *deviations, *_texts(values.ravel())]


def _texts(values: Floats) -> list[str]:
    return [answer_text(value) for value in values]
