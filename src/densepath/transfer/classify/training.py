"""One training of a classifier: chosen without its test images, which it then answers for once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.digests import digest_of
from densepath.core.distributed import rank, total, world_size
from densepath.core.errors import UserError, counted, first_few
from densepath.core.files import atomic_write
from densepath.core.json_files import load_json
from densepath.core.streams import say
from densepath.nets.norms import plain_batch_norm, synchronize_batch_norm
from densepath.nets.weights import load_weights
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint, is_trained
from densepath.sources.conversion import as_pixels
from densepath.sources.corrupt import CorruptImage, refuse_passing
from densepath.sources.fingerprint import digests_of_contents, digests_of_packed
from densepath.sources.packed import PackedTiles
from densepath.sources.pixel_source import PixelSource
from densepath.training.hardware import Hardware
from densepath.transfer.classify.classifier import (
    CLASSIFIER_FILE,
    ClassifierNotes,
    Readout,
    probabilities,
    read_classifier,
    save_classifier,
)
from densepath.transfer.classify.cohort import Pool
from densepath.transfer.classify.config import FREE, ClassifyConfig
from densepath.transfer.classify.task import TARGET, VIEW, ClassifyTask, Objective
from densepath.transfer.embed.encode import batches_of, collect, encode
from densepath.transfer.one_training import batches_of_training, train_best
from densepath.transfer.probe.metrics import Floats, Integers
from densepath.views.declarations import without_color
from densepath.views.maker import ViewMaker

AT_ONCE = 64  # images in a pass of the network
_ANSWERS = "answers.json"


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers for the test images of a training.

    Args:
        positions: (M,) of the test images that could be read.
        chances: (M, T) probabilities.
        notes: of the classifier.
    """

    positions: Integers
    chances: Floats
    notes: ClassifierNotes


def fit(
    config: ClassifyConfig,
    notes: ClassifierNotes,
    parts: tuple[Pool, Pool],
    out: Path,
    seed: int,
    hardware: Hardware,
) -> None:
    """Train a classifier, or resume its training, and write it as it was in the epoch that the validation images chose.

    Args:
        config: the options.
        notes: the classifier to build.
        parts: training and validation images.
        out: the folder of the training.
        seed: seed of weights, orders and views.
        hardware: where to compute.
    """
    if is_trained(out, CLASSIFIER_FILE):
        return
    images, validation = parts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = notes.build()
        if not (config.resume and has_checkpoint(out / CHECKPOINTS)):
            line = load_weights(model.encoder.backbone, config.weights)
            if rank() == 0 and hardware.rank == 0:
                say(f"densepath: {line}")
    if hardware.world_size > 1 and not config.freeze:
        synchronize_batch_norm(model)
    declared, _ = without_color({VIEW: config.augment.random_view()}, {}, notes.spec)
    views = ViewMaker(declared, notes.view_size, seed, notes.spec, hardware.memory_format)
    batches = batches_of_training(config, images.images, hardware, seed, views.draw, {TARGET: images})
    task = ClassifyTask(
        model,
        views,
        Objective(images.targets, config.class_weights == "balanced"),
        config.optimizer,
        batches.total_steps,
        batches.steps_per_epoch,
        freeze=config.freeze,
        validation=validation.targets,
        validate=_Validation(model, notes, validation, hardware),
        choose=config.choose,
        patience=config.patience,
    )
    annotations = digest_of([*notes.labels, *(p.targets.values.tobytes() for p in parts), *validation.names])
    kept = train_best(task, batches, out, config, FREE, hardware, seed, annotations=annotations)
    if hardware.rank == 0:
        notes = replace(notes, **kept)
        save_classifier(out / CLASSIFIER_FILE, plain_batch_norm(model), notes)
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def answer(out: Path, test: Pool, hardware: Hardware) -> Answers:
    """The answers of the classifier in a folder for its test images; those that it wrote before are read."""
    path = out / _ANSWERS
    model, notes = read_classifier(out / CLASSIFIER_FILE)
    answers, left = kept_answers(path, test)
    damaged, failed = list[str](), list[str]()
    if left:
        hardware.lay_out(model)
        readout = Readout(model, notes).to(hardware.device)
        positions, chances, damaged, failed = answers_of(readout, test.images, hardware, left)
        answers |= dict(zip(positions, chances.tolist(), strict=True))
    keep_answers(path, test, answers)
    refuse_passing(failed)
    say_left_out_of_test(damaged, len(test), len(answers))
    positions = sorted(answers)
    return Answers(np.array(positions, np.int64), np.array([answers[p] for p in positions], np.float64), notes)


def say_left_out_of_test(damaged: Sequence[str], images: int, answered: int) -> None:
    """Say which of some test images are damaged, each with the reason.

    Raises:
        UserError: no image is answered for.
    """
    if damaged:
        say(
            f"densepath: {counted(len(damaged), 'damaged test image is', 'damaged test images are')} "
            f"left out: {first_few(damaged)}"
        )
    if not answered:
        raise UserError(f"none of {counted(images, 'test image')} can be read; check the files ({damaged[0]})")


def kept_answers(path: Path, test: Pool) -> tuple[dict[int, Any], list[int]]:
    """What :func:`keep_answers` wrote for test images, by their position, and the positions that are left.

    Raises:
        UserError: an image has changed since, or the file is damaged.
    """
    content = _kept(path)
    by_name, before = content.get("by_name", {}), content.get("contents", {})
    kept = {position: by_name[name] for position, name in enumerate(test.names) if name in by_name}
    now = _contents(test, [*kept])
    if changed := [name for name, content in now.items() if content != before.get(name, content)]:
        raise UserError(
            f"test images of the run in {path.parent} have changed: {first_few(changed)}; name another folder"
        )
    return kept, [position for position in range(len(test)) if position not in kept]


def _kept(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = load_json(path, "a whole copy, or remove it") if path.is_file() else {}
    return content


def keep_answers(path: Path, test: Pool, answers: Mapping[int, Any]) -> None:
    """Write the answer for each position by the image's name: a damaged image that is replaced moves the positions.

    The digest of an image that is away now stays: another file of its name is not the same.
    """
    positions = sorted(answers)
    names = {test.names[p] for p in positions}
    before = _kept(path).get("contents", {})
    contents = {name: digest for name, digest in before.items() if name in names} | _contents(test, positions)
    found = {"by_name": {test.names[p]: answers[p] for p in positions}, "contents": contents}
    with atomic_write(path) as part:
        part.write_text(json.dumps(found) + "\n")


def _contents(test: Pool, positions: Sequence[int]) -> dict[str, str]:
    """Digests of images, by their names: of their files, or of their pixels in a packed store.

    Tiles of slides have none: slides are compared with their tiles when these are read.
    """
    if test.paths:
        digests = digests_of_contents(test.paths[p] for p in positions)
    elif isinstance(test.images, PackedTiles):
        digests = digests_of_packed(test.images, positions)
    else:
        return {}
    return {test.names[p]: digest for p, digest in zip(positions, digests, strict=True) if digest}


def answers_of(
    readout: Readout, images: PixelSource, hardware: Hardware, asked: Sequence[int] | None = None
) -> tuple[list[int], Floats, list[str], list[str]]:
    """Positions of the readable images of those ``asked`` for, their probabilities (M, T), damaged and failed images.

    See :class:`~densepath.transfer.embed.encode.Encoded`.
    """
    batches = batches_of(range(len(images)) if asked is None else asked, AT_ONCE)
    half = hardware.precision == "bf16-mixed"
    found = encode(readout, Stored(images), batches, hardware.device, half)
    positions, logits, damaged, failed = collect(found)
    return positions, probabilities(logits, readout.exclusive), damaged, failed


def refuse_in_all(failed: Sequence[str], device: torch.device) -> None:
    """Refuse validation images that a later attempt may read, in all processes if one of them has some.

    Args:
        failed: those of this process, as for :func:`~densepath.sources.corrupt.refuse_passing`.
        device: for the number of all.

    Raises:
        UserError: there are some.
    """
    everywhere = int(total(torch.tensor(len(failed), device=device)))
    refuse_passing(failed or ["see the messages of the other processes"] * everywhere)


class Stored:
    """The images of a source as a network takes them, one by one."""

    def __init__(self, images: PixelSource) -> None:
        self._images = images

    def read(self, position: int) -> npt.NDArray[Any] | CorruptImage:
        """An image (*size, C), or why it cannot be read."""
        try:
            pixels = self._images.read(position)
        except CorruptImage as error:
            return error
        spec = self._images.spec
        return as_pixels(pixels, spec.channels, pixels.dtype) if spec.ndim == 2 and spec.channels in (1, 3) else pixels


class _Validation:
    """Logits of the validation images; each process computes those of every n-th batch."""

    def __init__(self, model: Any, notes: ClassifierNotes, images: Pool, hardware: Hardware) -> None:
        self._readout, self._images, self._hardware = Readout(model, notes), images, hardware
        self._damaged: set[int] = set()

    def __call__(self) -> tuple[Integers, Tensor]:
        """Positions of the images that can be read, and their logits (V, T) on the CPU.

        Raises:
            UserError: none can be read, or one of them cannot be read now, but perhaps later.
        """
        device, count = self._hardware.device, len(self._images)
        batches = batches_of(range(count), AT_ONCE)[rank() :: world_size()]
        found = torch.zeros(count, 1 + len(self._images.targets.names), device=device)  # whether it is read, logits
        half, failed = self._hardware.precision == "bf16-mixed", list[str]()
        for part in encode(self._readout.eval(), Stored(self._images.images), batches, device, half):
            found[part.positions, 0] = 1
            found[part.positions, 1:] = torch.from_numpy(part.features).to(device)
            failed += part.failed
        torch.clear_autocast_cache()  # or the step would use copies of the weights that were cached without gradient
        refuse_in_all(failed, device)
        found = total(found).cpu()
        damaged = [k for k in torch.nonzero(found[:, 0] == 0).flatten().tolist() if k not in self._damaged]
        self._damaged.update(damaged)
        if damaged and self._hardware.rank == 0:
            names = first_few([self._images.names[k] for k in damaged])
            say(
                "densepath: "
                f"{counted(len(damaged), 'damaged validation image is', 'damaged validation images are')} left out: "
                f"{names}"
            )
        read = torch.nonzero(found[:, 0]).flatten()
        if not len(read):
            raise UserError(
                f"none of {counted(count, 'validation image')} can be read; check the files ({self._images.names[0]})"
            )
        return read.numpy(), found[read, 1:]
