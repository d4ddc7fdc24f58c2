"""Which images are trained on, choose the epoch, and are tested, in each training: by patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from densepath.annotations.classes import Classes
from densepath.annotations.fraction import choose_fraction
from densepath.annotations.patients import NUMBERED, check_spelling
from densepath.core.csv_files import open_text
from densepath.core.errors import UserError, counted, first_few, one_line, refuse
from densepath.core.streams import say
from densepath.transfer.classify.cohort import Pool, known_as, meanings
from densepath.transfer.classify.targets import Targets
from densepath.transfer.probe.folds import PART_NUMBERS, hold_out, make_folds, parts_of, refuse_few, refuse_untrained
from densepath.transfer.probe.metrics import Integers

PARTS = ("train", "validation", "test")
FOLDS = 5  # without an official test


@dataclass(frozen=True, eq=False)
class Split:
    """The images of a training.

    Args:
        train, validation: positions in the pool of training images.
        test: positions in the pool of test images, which may be the same pool.
    """

    train: Integers
    validation: Integers
    test: Integers


@dataclass(frozen=True, eq=False)
class Study:
    """Training and test images, before they are divided.

    Args:
        train, test: their pools; the same one if images are divided by folds or by their split.
        fit, held, tested: positions of training images, of official validation images, and of test images; the last
            are empty without an official test.
    """

    train: Pool
    test: Pool
    fit: Integers
    held: Integers
    tested: Integers


def make_study(pool: Pool, test: Pool | None) -> Study:
    """The official parts of the images; refuses files and patients on both sides of the test.

    Raises:
        UserError: a part is empty, a file or a patient is in two of them, or a patient has two names.
    """
    everything, none = np.arange(len(pool)), np.array([], np.int64)
    if test is not None:
        numbers = np.array([PART_NUMBERS[split] for split in pool.splits]) if pool.splits else np.zeros(len(pool))
        study = Study(pool, test, np.flatnonzero(numbers == 0), np.flatnonzero(numbers == 1), np.arange(len(test)))
    elif pool.splits:
        parts = parts_of(pool.splits, "images", ", and a share of the training images chooses the epoch")
        study = Study(pool, pool, *(np.flatnonzero(parts == part) for part in range(3)))
        if not len(study.fit) or not len(study.tested):
            raise UserError(f"the images are all of one split, {pool.splits[0]}; name training and test images")
    else:
        return Study(pool, pool, everything, none, none)
    known = test is None or bool(pool.by_patient and test.by_patient)  # names of two sources may be equal by chance
    if known and test is not None and NUMBERED in (pool.by_patient, test.by_patient):
        say(
            "densepath: warning: patients of DICOM files are numbered within each source, so it is unknown whether "
            "some have training and test images; name them with --patient_regex or a column"
        )
        known = False
    if known and test is not None:
        check_spelling([*pool.owners, *test.owners])
    sides = (study.train, study.fit), (study.train, study.held), (study.test, study.tested)
    owners = [{source.owners[p] for p in positions} for source, positions in sides]
    files = [{source.files[p]: source.names[p] for p in positions} for source, positions in sides]
    for one, other in ((0, 2), (1, 2), (0, 1)):
        shared = sorted(owners[one] & owners[other]) if known else []
        what = f"leak: patients with {PARTS[one]} and {PARTS[other]} images"
        refuse(shared, what, "put all images of a patient into one part")
        refuse(
            [name for file, name in files[other].items() if file in files[one]],
            f"leak: images that are both {PARTS[one]} and {PARTS[other]} images",
            "name each file in one part",
        )
    return study


def only_listed(study: Study, path: str | Path) -> Study:
    """The study with only those training and validation images that a file names, by their paths or patients.

    Raises:
        UserError: the file cannot be read or names none of them, or there is no official test.
    """
    if not len(study.tested):
        raise UserError("--train_images needs official test images (folders or a column split, --test_data)")
    try:
        with open_text(path) as file:
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--train_images {path} cannot be read ({why}); check the path") from error
    pool, named = study.train, meanings(lines, study.train)
    listed = set().union(*named.values())

    def kept(positions: Integers) -> Integers:
        return positions[np.array([not listed.isdisjoint(known_as(pool, [p])) for p in positions], bool)]

    found = replace(study, fit=kept(study.fit), held=kept(study.held))
    if not len(found.fit):
        raise UserError(f"none of the training images is in {path}; list their paths, or their patients")
    known = known_as(pool, (*found.fit, *found.held))
    if unused := [line for line in lines if known.isdisjoint(named[line])]:
        shown = f"{counted(len(unused), 'line')} of {len(lines)} in {path}"
        say(f"densepath: no training image for {shown}: {one_line(first_few(unused))}")
    return found


def divide(study: Study, folds: int | None, validation: float, fraction: float, seed: int) -> list[Split]:
    """The trainings of a seed.

    Args:
        study: the images.
        folds: number of folds; 0 for one training; None for 5 without an official test, else 0.
        validation: share of the training images that choose the epoch.
        fraction: share of the training images that are used, by patient; the others are left out.
        seed: seed of folds, validation and fraction.

    Raises:
        UserError: a class has too few patients.
    """
    official = len(study.tested) > 0
    folds = (0 if official else FOLDS) if folds is None else folds
    if not official and not folds:
        raise UserError("there are no test images; name them (folders or a column split, --test_data), or use --folds")
    if not folds:
        if len(study.held):
            parts = _share(study, study.fit, fraction, seed), _share(study, study.held, fraction, seed)
            return [Split(*parts, study.tested)]
        fit = _share(study, study.fit, fraction, seed)
        return [Split(*_with_validation(study.train, fit, validation, seed, fraction), study.tested)]
    fit = np.sort(np.concatenate((study.fit, study.held)))
    if official:
        fit = _share(study, fit, fraction, seed)
    owners = np.unique([study.train.owners[p] for p in fit], return_inverse=True)[1].astype(np.int64)
    if not official:
        _refuse_few_patients(study.train.targets.take(fit), owners)
    strata = frequent_strata(study.train.targets.take(fit), [study.train.owners[p] for p in fit], folds)
    classes = _as_classes(strata, study.train.targets)
    remedy = f"leave this class out, or {_more_images(fraction if official else 1)}"
    splits = []
    for number, fold in enumerate(make_folds(classes, owners, folds, seed, remedy=remedy)):
        train, other = fit[fold.train], fit[fold.test]
        if official:
            splits.append(Split(train, other, study.tested))
        else:
            train = _share(study, train, fraction, seed)
            splits.append(Split(*_with_validation(study.train, train, validation, seed + number, fraction), other))
    return splits


def check_labels(study: Study, split: Split, name: str) -> None:
    """Refuse what a training does not learn.

    Args:
        study: the images.
        split: those of the training.
        name: of the training; "" for the only one.

    Raises:
        UserError: the training images lack a class, or all or none of them have a label.
    """
    targets, whose = study.train.targets.take(split.train), _images_of(name)
    if targets.exclusive:
        refuse_untrained(targets.names, [count > 0 for count in targets.counts()], whose)
    else:
        remedy = "take these labels out of the table or of --targets, or divide the images in another way"
        refuse(targets.constant(), f"labels that all or none of {whose} have", remedy)


def warn_of_undefined(study: Study, split: Split, name: str) -> None:
    """Say before a training which of its scores its test images leave undefined. Arguments as for check_labels."""
    targets = study.test.targets.take(split.test)
    of = f" of {name}" if name else ""
    if targets.exclusive and len({*targets.classes.tolist()}) == 1:
        only = targets.names[int(targets.classes[0])]
        say(f"densepath: warning: all test images{of} are {only}, so AUC and average precision are undefined")
    elif not targets.exclusive and (same := targets.constant()):
        say(f"densepath: warning: all or none of the test images{of} have {first_few(same)}, so their AUC is undefined")


def check_regions(study: Study, split: Split, name: str) -> None:
    """Refuse what a training does not learn, but is validated or tested on. Arguments as for :func:`check_labels`.

    Raises:
        UserError: the training images lack something that the other images have.
    """
    train, validation = (study.train.targets.take(part).counts() for part in (split.train, split.validation))
    test = study.test.targets.take(split.test).counts()
    trained = [own > 0 or held + tested == 0 for own, held, tested in zip(train, validation, test, strict=True)]
    refuse_untrained(study.train.targets.names, trained, _images_of(name))


def _images_of(name: str) -> str:
    """The training images of a training, in words."""
    return f"the training images of {name}" if name else "the training images"


def frequent_strata(targets: Targets, owners: Sequence[str], least: int) -> Integers:
    """(N,) what images are stratified by; of several labels those with fewer patients than ``least`` are not used.

    Their images are in the stratum with the most patients.
    """
    strata = targets.strata()
    if targets.exclusive:
        return strata
    names = np.asarray(owners)
    patients = {stratum: len(np.unique(names[strata == stratum])) for stratum in np.unique(strata)}
    rare = [stratum for stratum, count in patients.items() if count < least]
    strata[np.isin(strata, rare)] = max(patients, key=lambda stratum: patients[stratum])
    return strata


def _refuse_few_patients(targets: Targets, owners: Integers) -> None:
    """Refuse images of which no folds with validation can be drawn, whatever their number."""
    if targets.exclusive:
        refuse_few(
            _as_classes(targets.classes, targets), owners, "images", "patient", "add images, or leave this class out"
        )
    else:
        every = Classes(("the study",), torch.zeros(len(owners), dtype=torch.int32))
        refuse_few(every, owners, "images", "patient", "add images")


def _more_images(fraction: float) -> str:
    """How training images are added, in words, if this fraction of them is used."""
    return "add images" if fraction == 1 else "use a larger --fraction"


def _with_validation(pool: Pool, fit: Integers, share: float, seed: int, fraction: float) -> tuple[Integers, Integers]:
    """Training and validation images; ``fraction`` is the share of all training images that ``fit`` is, for errors."""
    names = [pool.owners[p] for p in fit]
    owners = np.unique(names, return_inverse=True)[1]
    strata = np.unique(frequent_strata(pool.targets.take(fit), names, 2), return_inverse=True)[1]
    counts = np.zeros((owners.max() + 1, strata.max() + 1))
    np.add.at(counts, (owners, strata), 1)
    rare = int((counts > 0).sum(0).argmin())
    if (counts[:, rare] > 0).sum() < 2:
        name = pool.targets.names[pool.targets.classes[fit][strata == rare][0]] if pool.targets.exclusive else "a label"
        raise UserError(
            f"{name} has training images of one patient, and validation needs those of another; "
            f"{_more_images(fraction)}, or leave this class out"
        )
    kept = np.zeros((len(counts), 0))
    if not pool.targets.exclusive:  # an image with and one without each label is trained on
        values = pool.targets.values[fit]
        kept = np.zeros((len(counts), 2 * values.shape[1]))
        np.add.at(kept, owners, np.concatenate((values == 1, values == 0), axis=1))
    held = hold_out(counts, share, seed, kept)[owners]
    if not held.any():
        values = pool.targets.matrix()[fit] == 1
        alone = [name for name, own in zip(pool.targets.names, values.T, strict=True) if len({*owners[own]}) == 1]
        why = f", as only one patient has {first_few(alone)}" if alone else ""
        raise UserError(
            f"the training images cannot be divided for validation by patient{why}; {_more_images(fraction)}, or name "
            "an official split"
        )
    if abs(held.mean() - share) > max(0.1, 2 / len(fit)):
        say(
            f"densepath: {held.mean():.0%} of the training images are held out for validation instead of {share:.0%}, "
            "as patients are not divided"
        )
    return fit[~held], fit[held]


def _share(study: Study, positions: Integers, fraction: float, seed: int) -> Integers:
    """A share of the images with all classes."""
    if fraction == 1:
        return positions
    chosen = positions[choose_fraction([study.train.owners[p] for p in positions], fraction, seed)]
    before, after = (np.nansum(study.train.targets.take(part).matrix(), axis=0) > 0 for part in (positions, chosen))
    lacking = [name for name, b, a in zip(study.train.targets.names, before, after, strict=True) if b and not a]
    refuse(lacking, f"labels that a fraction of {fraction:g} of the training images lacks", "use a larger --fraction")
    return chosen


def _as_classes(strata: Integers, targets: Targets) -> Classes:
    used, numbers = np.unique(strata, return_inverse=True)
    names = (*targets.names, "no label")
    return Classes(tuple(names[number] for number in used), torch.from_numpy(numbers.astype(np.int32)))
