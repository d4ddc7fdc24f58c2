"""The probe of images: how well frozen features tell the classes of images apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import nn

from densepath.annotations.classes import warn_of_uncertain
from densepath.annotations.fraction import check_fraction, choose_fraction
from densepath.core.errors import UserError, counted, first_few
from densepath.core.streams import say
from densepath.core.system import with_progress
from densepath.sources.corrupt import refuse_passing
from densepath.sources.image_files import passed_over
from densepath.sources.pixel_source import PixelSource
from densepath.training.hardware import Hardware, choose_hardware, keep_freed_memory
from densepath.transfer.embed.encode import Encodes, batches_of, collect, encode
from densepath.transfer.embed.encoder import Encoder, Pool, input_size, load_encoder
from densepath.transfer.embed.feature_file import VOLUMES, Features
from densepath.transfer.embed.inputs import Inputs
from densepath.transfer.probe.classifiers import Fitted, logistic_regression, nearest_neighbors
from densepath.transfer.probe.folds import Fold, make_folds, one_fold
from densepath.transfer.probe.labelled import Labelled, Labels, join, label
from densepath.transfer.probe.metrics import Floats, Integers, Score, evaluate

_BATCH = 64  # images


@dataclass(frozen=True)
class Encoding:
    """The network whose features are probed.

    Args:
        weights, backbone, stage, pool, size, seed, devices: as for :func:`densepath.embed`.
    """

    weights: str | Path = "random"
    backbone: str | nn.Module | None = None
    stage: int | None = None
    pool: Pool = "auto"
    size: int | None = None
    seed: int = 0
    devices: int | str = "auto"


@dataclass(frozen=True, eq=False, repr=False)
class ImageProbe:
    """The scores of frozen features.

    Args:
        scores: classifier -> metric -> score; classifiers are "knn" and "logistic", metrics accuracy, balanced_accuracy
            and macro_auc, in percent.
        images: the images, with their classes and patients.
        folds: the training and test images.
        tested: (M,) positions of the test images.
        chances: classifier -> (M, K), the probabilities of the classes of the test images.
        strengths: the C of logistic regression in each fold.
        notes: of the features.
        seconds: how long it took.
    """

    scores: dict[str, dict[str, Score]]
    images: Labelled
    folds: list[Fold]
    tested: Integers
    chances: dict[str, Floats]
    strengths: list[float]
    notes: dict[str, Any]
    seconds: float

    def __repr__(self) -> str:
        lines = [
            f"{counted(len(self.tested), 'test image')}, {counted(len(self.folds), 'fold')}; percent, with 95% "
            "intervals"
        ]
        for name, scores in self.scores.items():
            lines.append(f"  {name}: " + ", ".join(f"{metric} {score}" for metric, score in scores.items()))
        return "\n".join(lines)

    def plot(self) -> Image.Image:
        """The confusion matrices as a PIL image, which notebooks show."""
        from densepath.transfer.probe.record import draw_confusion

        file = BytesIO()
        draw_confusion(self, file)
        return Image.open(file)

    @property
    def truth(self) -> Integers:
        """(M,) the classes of the test images."""
        labels: Integers = self.images.classes.labels.numpy()[self.tested].astype(np.int64)
        return labels

    def confusion(self, classifier: str) -> npt.NDArray[np.int64]:
        """(K, K) numbers of test images by class and by predicted class."""
        count = len(self.images.classes.names)
        cells = self.truth * count + self.chances[classifier].argmax(1)
        return np.bincount(cells, minlength=count * count).reshape(count, count)


def probe_images(
    features: Features,
    labels: Labels,
    *,
    data: str | Path | None = None,
    test_features: Features | None = None,
    test_data: str | Path | None = None,
    folds: int = 5,
    neighbors: int = 20,
    fraction: float = 1.0,
    seed: int = 0,
) -> ImageProbe:
    """Classify images by frozen features, with kNN and with logistic regression.

    Args:
        features: of the images.
        labels: where classes and patients are found.
        data: the images, if they are at hand.
        test_features, test_data: of other images for the test; by default the data's own split, if it has one, else
            folds by patient.
        folds: number of folds.
        neighbors: k of kNN; all training images of a fold if there are fewer, which tells nothing apart.
        fraction: share of the training images of each fold, by patient.
        seed: seed of the folds, the fraction and the intervals.

    Raises:
        UserError: an image has no class, there are too few patients, or an option is invalid.
    """
    images = label(features, labels, data)
    if test_features is not None:
        images = join(images, label(test_features, labels, test_data))
    notes = {name: value for name, value in features.notes.items() if name != VOLUMES}
    return probe_labelled(images, notes, folds=folds, neighbors=neighbors, fraction=fraction, seed=seed)


def probe_labelled(
    images: Labelled, notes: dict[str, Any], *, folds: int, neighbors: int, fraction: float, seed: int
) -> ImageProbe:
    """Classify features with their classes. Other arguments and errors as for :func:`probe_images`."""
    start = time.perf_counter()
    check_fraction(fraction)
    if neighbors < 1:
        raise UserError(f"neighbors is {neighbors}; give 1 or more")
    if not np.isfinite(images.features).all():
        raise UserError("the features hold NaN or Inf; compute them in --precision 32")
    warn_of_uncertain(images.classes.names)
    if not images.by_patient:
        say(
            "densepath: warning: the patients are unknown, so images of one may be in training and test, which makes "
            "scores too high; name them with --patient or --patient_regex"
        )
    if images.test is None:
        parts = make_folds(images.classes, images.patients, folds, seed)
    else:
        parts = one_fold(images.test, images.classes, images.patients, bool(images.by_patient))
    trained = [_share(part.train, images, fraction, seed) for part in parts]
    smallest = min(map(len, trained))
    if 2 * neighbors > smallest:
        say(
            f"densepath: warning: {neighbors} neighbors are more than half of {counted(smallest, 'training image')}; "
            "use fewer --neighbors"
        )
    truth, count = images.classes.labels.numpy().astype(np.int64), len(images.classes.names)
    fits: dict[str, Callable[..., Fitted]] = {
        "knn": lambda x, y, z, owners: nearest_neighbors(x, y, z, count, neighbors),
        "logistic": lambda x, y, z, owners: logistic_regression(x, y, z, count, owners, seed),
    }
    tested = np.concatenate([part.test for part in parts])
    number_of_fold = np.repeat(np.arange(len(parts)), [len(part.test) for part in parts])
    found: dict[str, list[Fitted]] = {name: [] for name in fits}
    for part, train in with_progress(list(zip(parts, trained, strict=True)), len(parts), "classifying"):
        for name, fit in fits.items():
            x, z = images.features[train], images.features[part.test]
            found[name].append(fit(x, truth[train], z, images.patients[train]))
    chances = {name: np.concatenate([fitted.chances for fitted in own]) for name, own in found.items()}
    owners = np.unique(images.patients[tested], return_inverse=True)[1]
    score = partial(evaluate, folds=number_of_fold, patients=owners, seed=seed)
    return ImageProbe(
        {name: score(truth[tested], own) for name, own in chances.items()},
        images,
        parts,
        tested,
        chances,
        [fitted.strength for fitted in found["logistic"] if fitted.strength is not None],
        notes,
        time.perf_counter() - start,
    )


def _share(train: Integers, images: Labelled, fraction: float, seed: int) -> Integers:
    """A share of the training images, with all classes."""
    if fraction == 1:
        return train
    chosen = train[choose_fraction([images.patient_names[images.patients[p]] for p in train], fraction, seed)]
    labels = images.classes.labels.numpy()
    if len(np.unique(labels[chosen])) < len(np.unique(labels[train])):
        raise UserError(f"a fraction of {fraction:g} of the training images lacks a class; use a larger --fraction")
    return chosen


def encode_all(
    encodes: Encodes, encoder: Encoder, inputs: Inputs, hardware: Hardware
) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Positions (N,) and vectors (N, D) of the readable images; the damaged ones are reported.

    Args:
        encodes: makes the vectors with ``encoder``, or is it.
        encoder: moved to the hardware.
        inputs: the images.
        hardware: where to compute, in float32.

    Raises:
        UserError: no image can be read.
    """
    keep_freed_memory(hardware)
    hardware.lay_out(encoder)
    encoder.to(hardware.device)
    batches = batches_of(range(len(inputs)), _BATCH)
    parts = with_progress(encode(encodes, inputs, batches, hardware.device), len(batches), "embedding")
    positions, values, damaged, failed = collect(parts)
    refuse_passing(failed)
    if not positions:
        raise UserError(f"none of {counted(len(inputs), 'image')} can be read; check the files ({damaged[0]})")
    if damaged:
        say(f"densepath: {counted(len(damaged), 'damaged image')} passed over: {first_few(damaged)}")
    return positions, values


def features_of(source: PixelSource, data: str | Path, encoding: Encoding) -> Features:
    """The features of all readable images of a source, in memory; in float32, for scores that do not depend on the
    hardware.

    Args:
        source: the images.
        data: where they are.
        encoding: the network.

    Raises:
        UserError: as for :func:`densepath.embed`.
    """
    hardware = choose_hardware(encoding.devices, "32")
    encoder, line = load_encoder(
        encoding.weights, encoding.backbone, source, stage=encoding.stage, pool=encoding.pool, seed=encoding.seed
    )
    inputs = Inputs(source, data, encoder.spec, input_size(encoder, encoding.size))
    what = f"{counted(len(inputs), 'image')}, {counted(encoder.dim, 'number')} each"
    say(f"densepath: {line}; {what}{passed_over(source)}")
    positions, values = encode_all(encoder, encoder, inputs, hardware)
    notes = {"weights": str(encoding.weights), "data": str(data), **encoder.notes(), "size": inputs.size}
    return Features([inputs.names[position] for position in positions], values, notes)
