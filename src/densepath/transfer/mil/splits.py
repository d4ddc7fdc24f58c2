"""Training, validation and test cases by patient: drawn, and checked for leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from densepath.annotations.classes import Classes
from densepath.core.errors import UserError, refuse
from densepath.core.streams import say
from densepath.transfer.mil.cohort import Cohort
from densepath.transfer.mil.number_scores import concordance
from densepath.transfer.probe.folds import Fold, hold_out, make_folds, refuse_few, refuse_untrained
from densepath.transfer.probe.metrics import Floats, Integers

PARTS = ("train", "validation", "test")
VALIDATION = 0.2  # the default share of the cases that are not tested
_BINS = 4  # of numbers, to stratify by


@dataclass(frozen=True, eq=False)
class Split:
    """The cases of a fold.

    Args:
        train, validation, test: positions of cases. Epoch and thresholds are chosen on the validation cases; the test
            cases are used once, by the model that was chosen.
    """

    train: Integers
    validation: Integers
    test: Integers

    def parts(self) -> tuple[Integers, Integers, Integers]:
        """The three parts."""
        return self.train, self.validation, self.test


def make_splits(cohort: Cohort, folds: int, validation: float, seed: int) -> list[Split]:
    """Draw folds, stratified by class, whose groups (patients, or sites) are never divided.

    Args:
        cohort: the cases.
        folds: number of folds.
        validation: share of the other cases that is held out for validation.
        seed: seed of the draw.

    Raises:
        UserError: a class has too few groups.
    """
    if not 0 < validation < 1:
        raise UserError(f"validation is {validation}; give a share between 0 and 1")
    _refuse_few_groups(cohort)
    strata = _strata(cohort, np.arange(len(cohort)), folds)
    remedy = "leave this class out, or add cases" if cohort.classes else "add cases"
    every = Classes(_names(cohort, np.arange(len(cohort)), strata), torch.from_numpy(strata.astype(np.int32)))
    drawn = make_folds(every, cohort.groups, folds, seed, "cases", cohort.group, remedy)
    splits = [
        with_validation(cohort, Fold(by_name(cohort, fold.train), by_name(cohort, fold.test)), validation, seed + n)
        for n, fold in enumerate(drawn)
    ]
    for number, split in enumerate(splits):
        _check_targets(cohort, split, f"fold {number}")
    return splits


def by_name(cohort: Cohort, cases: Integers) -> Integers:
    """Cases in the order of their names, in which a model sees them, whatever the order of the table."""
    return np.array(sorted(cases.tolist(), key=lambda case: cohort.cases[case]), np.int64)


def with_validation(cohort: Cohort, fold: Fold, share: float, seed: int) -> Split:
    """Hold out a share of the training cases of a fold, by group and stratified.

    Only targets of training cases are looked at. Groups are taken in random order, if they bring the numbers of held
    cases of the classes closer to what is asked for; a class keeps a training case, and gets a validation case if it
    can. An event is trained on.

    Raises:
        UserError: a class of the training cases has only one group.
    """
    strata, groups = _strata(cohort, fold.train, 2), np.unique(cohort.groups[fold.train], return_inverse=True)[1]
    counts = np.zeros((groups.max() + 1, strata.max() + 1))  # cases by group and stratum
    np.add.at(counts, (groups, strata), 1)
    rare = int((counts > 0).sum(0).argmin())
    if (counts[:, rare] > 0).sum() < 2:
        more = f"use more --folds (up to the number of its {cohort.group}s)"
        raise UserError(
            f"{_names(cohort, fold.train, strata)[rare]} has one {cohort.group} among the training cases of a fold, "
            f"and validation needs another; {more}, "
            f"{'other --splits, or leave this class out' if cohort.classes else 'or other --splits'}"
        )
    events = np.zeros((len(counts), 1))
    np.add.at(events, groups, _events(cohort, fold.train)[:, None])
    chosen = hold_out(counts, share, seed, events)[groups]
    if not chosen.any():
        raise UserError(
            f"the training cases of a fold cannot be divided for validation by {cohort.group}; use more --folds"
        )
    wanted = np.clip(np.round(share * counts.sum(0)), 1, counts.sum(0) - 1).sum()
    if abs(chosen.sum() - wanted) > max(1, 0.2 * wanted):
        say(
            f"densepath: {chosen.mean():.0%} of the training cases of a fold are held out for validation instead of "
            f"{share:.0%}, as patients and sites are not divided"
        )
    return Split(fold.train[~chosen], fold.train[chosen], fold.test)


def check_splits(cohort: Cohort, splits: Sequence[Split], source: str, warn: bool = False) -> None:
    """Refuse folds that leak or cannot be used.

    Args:
        cohort: the cases.
        splits: the folds.
        source: where they were read, for messages.
        warn: whether to print a warning instead where the training cases have no event, or one number only.

    Raises:
        UserError: a patient is in two parts of a fold, or a part is empty, or the training cases lack a class or an
            event, or have one number only.
    """
    for number, split in enumerate(splits):
        members = [{cohort.patients[owner] for owner in cohort.owners[part]} for part in split.parts()]
        for one, other in ((0, 2), (1, 2), (0, 1)):
            shared = sorted(members[one] & members[other])
            refuse(
                shared,
                f"leak: patients that are {PARTS[one]} and {PARTS[other]} cases of fold {number} in {source}",
                "put all slides of a patient into one part",
            )
            both = np.intersect1d(cohort.groups[split.parts()[one]], cohort.groups[split.parts()[other]])
            tested = split.parts()[other]
            named = cohort.owners[tested[np.isin(cohort.groups[tested], both)]]
            refuse(
                sorted({cohort.patients[owner] for owner in named}),
                f"leak: patients of sites with {PARTS[one]} and {PARTS[other]} cases of fold {number} in {source}",
                "put all patients of a site into one part, or leave --site out",
            )
        for name, part in zip(PARTS, split.parts(), strict=True):
            if not len(part) and name != "validation":  # which is drawn
                raise UserError(f"fold {number} of {source} has no {name} case with features; use other splits")
        if cohort.classes:
            trained = np.isin(np.arange(len(cohort.classes)), cohort.labels[split.train])
            refuse_untrained(cohort.classes, trained, f"the training cases of fold {number} of {source}")
        _check_targets(cohort, split, f"fold {number} of {source}", warn)


def warn_of_validation(cohort: Cohort, splits: Sequence[Split]) -> None:
    """Say in which folds concordance cannot choose an epoch: it needs validation cases that can be compared."""
    if cohort.targets.shape[1] < 2:
        return
    parts = [cohort.targets[split.validation] for split in splits]
    found = [concordance(np.ones((1, len(own))), own[:, 0], own[:, 1], np.zeros(len(own)))[0] for own in parts]
    if lacking := [str(fold) for fold, value in enumerate(found) if np.isnan(value)]:
        folds = f"fold{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
        say(
            f"densepath: warning: no two validation cases of {folds} can be compared (an event before the time of "
            "another case), so that concordance cannot choose an epoch; use a larger --validation, or other --splits"
        )


def _check_targets(cohort: Cohort, split: Split, fold: str, warn: bool = False) -> None:
    """Refuse, or warn of, training cases without an event, or with one number."""
    targets, problem = cohort.targets[split.train], ""
    if targets.shape[1] == 2 and not targets[:, 1].any():
        problem = f"the training cases of {fold} have no event, from which survival is learned"
    elif targets.shape[1] == 1 and not cohort.classes and len(np.unique(targets)) < 2:
        problem = f"all training cases of {fold} have the same {cohort.target}"
    if problem and not warn:
        raise UserError(f"{problem}; use other --folds or --splits")
    if problem:
        say(f"densepath: warning: {problem}; use other --folds or --splits for other runs")


def _refuse_few_groups(cohort: Cohort) -> None:
    """Refuse cases of which no folds with validation can be drawn, whatever their number."""
    cases = np.arange(len(cohort))
    events = _event_strata(cohort, cases, len(PARTS))
    strata = cohort.labels if cohort.classes else np.unique(events, return_inverse=True)[1]
    classes = Classes(_names(cohort, cases, strata), torch.from_numpy(strata.astype(np.int32)))
    remedies = ["leave --site out" if cohort.group == "site" else "add cases"]
    if cohort.classes:
        remedies.append("merge this class with another, or leave it out (--classes)")
    refuse_few(classes, cohort.groups, "cases", cohort.group, ", ".join(remedies))


def _strata(cohort: Cohort, cases: Integers, least: int) -> Integers:
    """(n,) what some cases are stratified by, from 0, from their targets alone.

    The class; or the quartile of the number, for survival with whether there was an event, if not nearly all have one.
    Bins are as many as leave ``least`` groups in each.
    """
    if cohort.classes:
        return cohort.labels[cases]
    numbers, groups, events = cohort.targets[cases, 0], cohort.groups[cases], _event_strata(cohort, cases, least)
    strata = np.zeros(len(cases), np.int64)
    for bins in range(_BINS, 0, -1):
        edges = np.quantile(numbers, np.linspace(0, 1, bins + 1)[1:-1])
        strata = np.unique(events * bins + np.searchsorted(edges, numbers), return_inverse=True)[1].astype(np.int64)
        if all(len(np.unique(groups[strata == stratum])) >= least for stratum in np.unique(strata)):
            break
    return strata


def _event_strata(cohort: Cohort, cases: Integers, least: int) -> Floats:
    """(n,) 1 where an event was observed; 0 for all cases if fewer than ``least`` groups have cases without one."""
    events = _events(cohort, cases)
    without = np.unique(cohort.groups[cases][events == 0])
    return events if len(without) >= least else np.zeros(len(cases))


def _events(cohort: Cohort, cases: Integers) -> Floats:
    """(n,) 1 where an event was observed; 0 for other tasks than survival."""
    return cohort.targets[cases, 1] if cohort.targets.shape[1] == 2 else np.zeros(len(cases))


def _names(cohort: Cohort, cases: Integers, strata: Integers) -> tuple[str, ...]:
    """What the strata (n,) of some cases are, for messages: the classes, or the event."""
    events = _events(cohort, cases)
    return cohort.classes or tuple(
        "the event" if events[strata == number].all() else "the study" for number in np.unique(strata)
    )
