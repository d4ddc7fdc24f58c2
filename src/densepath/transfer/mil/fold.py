"""One fold: trained and chosen without its test cases, then asked for their answers once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from densepath.core.digests import digest_of
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.json_files import load_json
from densepath.core.spacing import varies
from densepath.runs.checkpoints import CHECKPOINTS, is_trained
from densepath.training.hardware import Hardware
from densepath.training.intervals import Intervals
from densepath.training.loop import train
from densepath.transfer.best_epoch import ranked
from densepath.transfer.mil.bag_task import BagBatches, BagSet, BagTask
from densepath.transfer.mil.choosing import choose_thresholds, predict_classes
from densepath.transfer.mil.config import MilConfig
from densepath.transfer.mil.model_file import MODEL_FILE, ModelNotes, load_model, save_model
from densepath.transfer.mil.models import KNN, MODELS
from densepath.transfer.mil.models.base import BagModel, Solver, Standardization
from densepath.transfer.mil.objectives import Classification, Objective, Regression, Survival
from densepath.transfer.probe.classifiers import nearest_neighbors
from densepath.transfer.probe.metrics import Floats, Integers

SAVE_EVERY = 0  # steps; besides this a run is saved every ten minutes, and when it is stopped
_ANSWERS = "answers.json"


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers for the test cases of a fold.

    Args:
        values: (C, K) probabilities of classes, numbers, or log risks.
        predicted: (C,) classes; zeros for other tasks.
    """

    values: Floats
    predicted: Integers


@dataclass(frozen=True)
class Study:
    """What is the same for all folds of a model.

    Args:
        config: the options.
        model: the model's name.
        classes, target: of the cohort.
        dim: D.
        extractor: what made the features.
        hardware: where to compute.
    """

    config: MilConfig
    model: str
    classes: tuple[str, ...]
    target: str
    dim: int
    extractor: str
    hardware: Hardware


def answer_fold(study: Study, train_set: BagSet, validation: BagSet, test: BagSet, out: Path, seed: int) -> Answers:
    """Train a model for a fold, unless that is done, and answer for its test cases.

    The training functions get no test bags: only what they return meets them.

    Args:
        study: what is trained.
        train_set, validation, test: the bags of the fold.
        out: the folder of the fold.
        seed: seed of weights and orders.
    """
    done = out / _ANSWERS
    if done.is_file():
        kept = load_json(done, "a whole copy, or remove it")
        return Answers(np.array(kept["values"]), np.array(kept["predicted"], np.int64))
    if study.model == KNN:
        answers = _neighbors(study, train_set, validation, test)
    else:
        fit(study, train_set, validation, out, seed)
        answers = ask(out / MODEL_FILE, test, study.hardware)
    with atomic_write(done) as part:
        part.write_text(json.dumps({"values": answers.values.tolist(), "predicted": answers.predicted.tolist()}) + "\n")
    return answers


def fit(study: Study, train_set: BagSet, validation: BagSet, out: Path, seed: int) -> None:
    """Train a model and write it as it was in the epoch that the validation cases chose.

    Of several learning rates and weight decays, the validation cases choose one, too.
    """
    if is_trained(out, MODEL_FILE):
        return
    solver = MODELS[study.model].solver
    config = study.config
    rates, decays = config.lr or (solver.lr,), config.weight_decay or (solver.weight_decay,)
    options = [
        replace(solver, lr=lr, weight_decay=decay, epochs=config.epochs or solver.epochs)
        for lr, decay in product(rates, decays)
    ]
    folders = [out if len(options) == 1 else out / f"lr{each.lr:g}_wd{each.weight_decay:g}" for each in options]
    missing = [pair for pair in zip(options, folders, strict=True) if not is_trained(pair[1], MODEL_FILE)]
    standardization = train_set.standardization() if config.standardize and missing else None
    for each, folder in missing:
        _train(study, each, train_set, validation, folder, seed, standardization)
    notes = [load_model(folder / MODEL_FILE)[1] for folder in folders]
    best = folders[max(range(len(folders)), key=lambda k: ranked((notes[k].score, -notes[k].loss)))]
    if best != out:
        with atomic_write(out / MODEL_FILE) as part:
            shutil.copyfile(best / MODEL_FILE, part)


def ask(path: Path, bags: BagSet, hardware: Hardware) -> Answers:
    """The answers of a trained model."""
    model, notes = load_model(path)
    task = BagTask(model, objective_of(notes, model), model.solver, bags, 1, hardware.precision == "bf16-mixed")
    values = task.to(hardware.device).answers(bags)
    thresholds = np.array(notes.thresholds)
    return Answers(values, predict_classes(values, thresholds) if notes.classes else np.zeros(len(values), np.int64))


def objective_of(notes: ModelNotes, model: BagModel) -> Objective:
    """The objective that a model was trained with, without the weights of classes."""
    if notes.task == "classification":
        return Classification(len(notes.classes), model.exclusive)
    return Regression(*notes.scale) if notes.task == "regression" else Survival()


def _train(
    study: Study,
    solver: Solver,
    bags: BagSet,
    validation: BagSet,
    out: Path,
    seed: int,
    standardization: Standardization | None,
) -> None:
    config, hardware = study.config, study.hardware
    kind = MODELS[study.model]
    labels = bags.targets[:, 0]
    scale = _scale(labels) if config.task == "regression" else (0.0, 1.0)
    notes = ModelNotes(
        model=study.model,
        dim=study.dim,
        task=config.task,
        target=study.target,
        classes=study.classes,
        thresholds=(),
        scale=scale,
        extractor=study.extractor,
        epoch=0,
        score=0.0,
        loss=0.0,
        lr=solver.lr,
        weight_decay=solver.weight_decay,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(study.dim, max(1, len(study.classes)))
    if standardization is not None:
        model.standardization = standardization
    objective = objective_of(notes, model)
    if isinstance(objective, Classification) and config.class_weights == "balanced":
        objective.weights = torch.from_numpy(balanced(bags, len(study.classes))).float()
    batches = BagBatches(bags, min(max(solver.bags, objective.bags), len(bags)), solver.epochs, seed, config.max_tiles)
    task = BagTask(model, objective, solver, validation, batches.per_epoch, hardware.precision == "bf16-mixed")
    train(
        task,
        batches,
        out,
        hardware=hardware,
        intervals=Intervals(log_every=batches.per_epoch, save_every_steps=SAVE_EVERY, evaluate_every=batches.per_epoch),
        facts={"cases": digest_of(name for part in (bags, validation) for name in part.names()), "bags": len(bags)},
        seed=seed,
        resume=True,
        evaluate=task.evaluate,
        equal_shapes=False,
        name=f"{study.model} {out.name}",
    )
    task.to(hardware.device)
    _, epoch, score, loss = task.record.tolist()
    thresholds: Sequence[float] = ()
    if study.classes:
        thresholds = choose_thresholds(task.answers(validation), validation.targets[:, 0].astype(np.int64)).tolist()
    notes = replace(notes, thresholds=tuple(thresholds), epoch=int(epoch), score=score, loss=loss)
    save_model(out / MODEL_FILE, task.chosen, notes)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def _scale(numbers: Floats) -> tuple[float, float]:
    """The mean and the standard deviation of numbers (N,); 1 in its place if they are equal."""
    different = varies(numbers, np.ones((1, len(numbers)), bool))[0]
    return float(numbers.mean()), float(numbers.std()) if different else 1.0


def balanced(bags: BagSet, classes: int) -> Floats:
    """(K,) factors with which the bags of each class weigh the same in the loss, 1 on average over the bags."""
    counts = np.bincount(bags.targets[bags.cases, 0].astype(np.int64), minlength=classes)
    return len(bags) / (classes * np.maximum(counts, 1))


def _neighbors(study: Study, bags: BagSet, validation: BagSet, test: BagSet) -> Answers:
    """The classes of the most similar training bags by their mean features."""
    if not study.classes:
        raise UserError(f"knn answers classes only; use another --model for {study.config.task}")
    means = [_means(part) for part in (bags, validation, test)]
    if study.config.standardize:
        prepare = bags.standardization()
        means = [prepare(torch.from_numpy(mean)).double().numpy() for mean in means]
    labels = bags.targets[bags.cases, 0].astype(np.int64)
    count = min(study.config.neighbors, max(1, len(labels) // 2))
    held, asked = (
        part.mean_of_cases(nearest_neighbors(means[0], labels, mean, len(study.classes), count).chances)
        for part, mean in ((validation, means[1]), (test, means[2]))
    )
    return Answers(asked, predict_classes(asked, choose_thresholds(held, validation.targets[:, 0].astype(np.int64))))


def _means(bags: BagSet) -> Floats:
    return np.stack([bag.tiles().float().mean(0).double().numpy() for bag in bags.bags])
