"""Training and test images: as given, or folds by patient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from densepath.annotations.classes import Classes
from densepath.core.columns import SPLIT_OF, SPLITS
from densepath.core.errors import UserError, counted, refuse
from densepath.core.streams import say
from densepath.transfer.probe.metrics import Floats, Integers
from densepath.transfer.probe.stratified import stratified_group_folds

_PARTS = 3  # training, validation, test
PART_NUMBERS = {name: SPLITS.index(split) for name, split in SPLIT_OF.items()}  # training, validation, test


@dataclass(frozen=True, eq=False)
class Fold:
    """Positions of training and of test images.

    Args:
        train, test: (N,) and (M,) positions.
    """

    train: Integers
    test: Integers


def given_split(splits: list[str], whose: str) -> npt.NDArray[np.bool_] | None:
    """(N,) whether an image is a test image, from the names of splits; None if they name none.

    Validation images are the test images if there are no others, and training images otherwise.

    Raises:
        UserError: the names are not those of splits, or all images are of one.
    """
    test = parts_of(known_splits(splits, whose), "images") == 2
    if test.all() or not test.any():
        raise UserError(f"{whose} has only {'test' if test.all() else 'training'} images; a probe needs both")
    return test


def known_splits(splits: list[str], whose: str) -> list[str]:
    """The names of splits in small letters.

    Raises:
        UserError: there are others than those of training, validation and test.
    """
    names = [name.lower() for name in splits]
    if unknown := sorted(set(names) - set(PART_NUMBERS)):
        raise UserError(f"{whose} has the split {unknown[0]!r}; name splits train, val and test")
    return names


def parts_of(names: list[str], what: str, then: str = "") -> Integers:
    """(N,) 0, 1, 2: training, validation, test; without any test ones the validation ones are those of the test.

    Args:
        names: of the splits.
        what: what is divided, for the line that reports this.
        then: what follows from it.
    """
    parts = np.array([PART_NUMBERS[name] for name in names], np.int64)
    if (parts == 2).any() or not (parts == 1).any():
        return parts
    say(f"densepath: no {what} are of the split test: the {(parts == 1).sum()} validation {what} are the test{then}")
    return np.where(parts == 1, 2, parts)


def one_fold(test: npt.NDArray[np.bool_], classes: Classes, patients: Integers, known: bool) -> list[Fold]:
    """The given training and test images.

    Raises:
        UserError: a class has no training image.
    """
    labels = classes.labels.numpy()
    refuse_untrained(classes.names, np.isin(np.arange(len(classes.names)), labels[~test]), "the training images")
    shared = np.intersect1d(patients[test], patients[~test])
    if known and len(shared):
        say(
            f"densepath: warning: {counted(len(shared), 'patient has', 'patients have')} training and "
            "test images, which makes scores too high; "
            "divide the images by patient"
        )
    return [Fold(np.flatnonzero(~test), np.flatnonzero(test))]


def refuse_untrained(names: Sequence[str], trained: Iterable[bool], whose: str) -> None:
    """Refuse classes that nothing is trained on, but that are tested or have an output.

    Args:
        names: of the classes.
        trained: whether a training case has each.
        whose: the training cases, in words.
    """
    absent = [name for name, known in zip(names, trained, strict=True) if not known]
    refuse(absent, f"classes that {whose} lack", "add cases of them, or leave these classes out")


def refuse_few(classes: Classes, groups: Integers, what: str, group: str, remedy: str) -> None:
    """Refuse classes that cannot be in training, validation and test, as too few groups have them.

    Args:
        classes: of the images.
        groups: (N,) the number of each image's group, which is not divided.
        what, group: the images, and a group, in words.
        remedy: what can be done.
    """
    name, count = _rarest(classes, groups)
    if count < _PARTS:
        raise UserError(
            f"{name} has {what} of {counted(count, group)}, and training, validation and test need those of {_PARTS}; "
            f"{remedy}"
        )


def make_folds(
    classes: Classes,
    groups: Integers,
    count: int,
    seed: int,
    what: str = "images",
    group: str = "patient",
    remedy: str = "leave this class out, or add images",
) -> list[Fold]:
    """Folds of whole groups, such as patients, with classes in proportion, as far as groups allow.

    Args:
        classes: of the images.
        groups: (N,) the number of each image's group.
        count: number of folds.
        seed: seed of the folds.
        what, group: what is divided, and a group, for messages.
        remedy: what can be done if even two folds cannot be made.

    Raises:
        UserError: a class has fewer groups than folds, or a fold would lack test images or a class in training.
    """
    if count < 2:
        raise UserError(f"folds is {count}; give 2 or more")
    labels = classes.labels.numpy().astype(np.int64)
    rare, most = _rarest(classes, groups)
    if most < count:
        remedy = f"use --folds {most}" if most > 1 else remedy
        raise UserError(
            f"{rare} has {what} of {counted(most, group)}, fewer than the {counted(count, 'fold')}; {remedy}"
        )
    tested = stratified_group_folds(labels, groups, count, seed)
    folds = [Fold(np.flatnonzero(tested != fold), np.flatnonzero(tested == fold)) for fold in range(count)]
    for fold in folds:
        lacking = set(range(len(classes.names))) - set(labels[fold.train].tolist())
        if lacking or not len(fold.test):
            name = classes.names[min(lacking)] if lacking else "a fold"
            remedy = "use fewer --folds" if count > 2 else f"use another --seed, or {remedy}"
            raise UserError(f"{name} cannot be divided into {counted(count, 'fold')} by {group}; {remedy}")
    return folds


def _rarest(classes: Classes, groups: Integers) -> tuple[str, int]:
    """The class that the fewest groups have, and their number."""
    labels = classes.labels.numpy()
    counts = [len(np.unique(groups[labels == number])) for number in range(len(classes.names))]
    return classes.names[int(np.argmin(counts))], min(counts)


def hold_out(counts: Floats, share: float, seed: int, kept: Floats | None = None) -> npt.NDArray[np.bool_]:
    """(G,) which groups are held out, so that of each stratum about a share of the images is.

    Groups are taken in random order, if they bring the numbers of held images closer to what is asked for; a stratum
    keeps an image that is not held, and gets a held one if it can.

    Args:
        counts: (G, S) images by group and stratum.
        share: the share to hold out.
        seed: seed of the order.
        kept: (G, T) images by group and something else of which an image is not held, if there is any.
    """
    total = counts.sum(0)
    every = counts if kept is None else np.concatenate((counts, kept[:, kept.any(0)]), axis=1)
    every_total = every.sum(0)
    wanted = np.clip(np.round(share * total), 1, np.maximum(total - 1, 1))
    order = np.random.default_rng(seed).permutation(len(counts))
    held, held_total = np.zeros(len(counts), bool), np.zeros(every.shape[1])
    now = held_total[: len(total)]  # a view

    def distance(sums: Floats) -> float:  # rare classes count as much as frequent ones
        return float((((sums - wanted) ** 2) / wanted).sum())

    def can_be_held(group: int) -> bool:
        return bool((held_total + every[group] < every_total).all())

    def hold(group: int) -> None:
        held[group] = True
        np.add(held_total, every[group], out=held_total)

    for group in order:
        if can_be_held(group) and distance(now + counts[group]) < distance(now):
            hold(group)
    for stratum in range(len(total)):  # whose groups were all too large
        if not now[stratum]:
            own = [g for g in order if counts[g, stratum] and can_be_held(g)]
            if own:
                hold(min(own, key=lambda g: counts[g].sum()))
    return held
