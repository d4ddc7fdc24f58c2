"""A trained model of bags in a file: its weights, and what they mean."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.nets.weights.checks import require_numbers
from densepath.transfer.mil.models import MODELS
from densepath.transfer.mil.models.base import BagModel, Standardization

MODEL_FILE = "model.safetensors"
_NOTES = "densepath_mil"


@dataclass(frozen=True)
class ModelNotes:
    """What a model's outputs and inputs are.

    Args:
        model: its name.
        dim: D of its features.
        task, target: what it predicts.
        classes: names of the classes; () for other tasks.
        thresholds: of the classes.
        scale: for regression, mean and standard deviation of the target.
        extractor: what made the features.
        epoch: the epoch that was kept, from 1.
        score, loss: those of the validation cases.
        lr, weight_decay: those that were used.
    """

    model: str
    dim: int
    task: str
    target: str
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    scale: tuple[float, float]
    extractor: str
    epoch: int
    score: float
    loss: float
    lr: float
    weight_decay: float


def save_model(path: Path, model: BagModel, notes: ModelNotes) -> None:
    """Write a model with its notes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_write(path) as part:
        save_file(tensors, part, {_NOTES: json.dumps(asdict(notes))})


def load_model(path: Path) -> tuple[BagModel, ModelNotes]:
    """Read a model, on the CPU.

    Raises:
        UserError: it is missing or not a model of densepath mil.
    """
    if not path.is_file():
        raise UserError(f"there is no trained model at {path}; densepath mil writes one for each fold")
    try:
        with safe_open(path, "pt") as file:
            noted = json.loads((file.metadata() or {})[_NOTES])
        noted |= {name: tuple(noted[name]) for name in ("classes", "thresholds", "scale")}
        notes = ModelNotes(**noted)
        tensors = load_file(path)
        require_numbers(tensors, path)
        model = MODELS[notes.model](notes.dim, max(1, len(notes.classes)))
        if "standardization.mean" in tensors:
            model.standardization = Standardization(torch.zeros(notes.dim), torch.ones(notes.dim))
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is not a model of densepath mil; use one that it wrote") from error
    return model.eval(), notes
