"""Refuses tests on slides, and on patients, that the features' backbone was pre-trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from densepath.core.errors import UserError, counted, refuse
from densepath.core.streams import say
from densepath.nets.weights.trained_on import slides_of_weights
from densepath.transfer.mil.cohort import Cohort
from densepath.transfer.mil.feature_files import Names, slide_name
from densepath.transfer.mil.slide_table import patient_of_tcga
from densepath.transfer.mil.splits import Split

REMEDY = (
    "pre-train on training slides only, give --splits with other test cases, or, if it was without labels, add "
    "--allow_pretraining_slides"
)
_SLIDES, _PATIENTS = "test_slides_in_pretraining", "test_patients_in_pretraining"  # in the file of scores


class PretrainingSlides:
    """The slides that the backbone of some files of features was pre-trained on.

    Attributes:
        names: of all files.
        unknown: whether a file does not say.
        tested: how many of them are test slides, where :meth:`check` allows it, for the file of scores.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.unknown = False
        self.tested: dict[str, int] = {}
        self._of_weights: dict[str, set[str] | None] = {}
        self._listed: set[str] = set()  # as the files have them: thousands of files list the same thousands of slides

    def add(self, notes: Mapping[str, Any]) -> None:
        """Add those of a file, by its notes: ``pretraining_slides``, or else ``weights``, which record them."""
        listed, weights = notes.get("pretraining_slides"), str(notes.get("weights", ""))
        if listed is not None:
            new = {str(name) for name in listed} - self._listed
            self._listed |= new
            found: set[str] | None = set(map(slide_name, new))
        else:
            if weights not in self._of_weights:
                self._of_weights[weights] = _recorded(weights)
            found = self._of_weights[weights]
        self.names |= found or set()
        self.unknown |= found is None

    def check(self, cohort: Cohort, splits: Sequence[Split], allow: bool) -> None:
        """As :func:`check_pretraining`, and say what is allowed or unknown."""
        self.tested = check_pretraining(cohort, splits, self.names, allow)
        if self.tested:
            say(f"densepath: warning: {describe_pretraining(self.tested)}")
        if self.unknown:
            what = "the slides that the features' backbone was pre-trained on"
            say(f"densepath: {what} are unknown, so a leak cannot be seen")


def _recorded(weights: str) -> set[str] | None:
    if weights == "random":
        return set()
    try:
        listed = slides_of_weights(weights) if weights else None
    except UserError:  # it is no file of weights any more
        return None
    return None if listed is None else set(map(slide_name, listed))


def check_pretraining(
    cohort: Cohort, splits: Sequence[Split], seen: Iterable[str], allow: bool = False
) -> dict[str, int]:
    """Refuse test cases with slides of pre-training, and those whose patient has other slides in it.

    A name means a slide if one of them is the end of the other's path; slides of TCGA are known by their barcodes.

    Args:
        cohort, splits: the study.
        seen: the names of the slides of pre-training.
        allow: whether to count them instead.

    Returns:
        How many there are: "test_slides_in_pretraining", and "test_patients_in_pretraining"; empty without any.

    Raises:
        UserError: there are some.
    """
    names = sorted(set(map(slide_name, seen)))
    met = Names(names).hold
    tested = np.unique(np.concatenate([split.test for split in splits]))
    leaked = [slide for case in tested for slide in cohort.slides[case] if met(slide)]
    barcodes = {patient_of_tcga(name) for name in names} - {""}
    owners = {owner for owner, slides in zip(cohort.owners, cohort.slides, strict=True) if any(map(met, slides))}
    shared = sorted(
        {
            cohort.patients[owner]
            for owner, slides in zip(cohort.owners[tested], (cohort.slides[case] for case in tested), strict=True)
            if owner in owners or any(patient_of_tcga(slide) in barcodes for slide in slides)
        }
    )
    if allow:
        return {_SLIDES: len(leaked), _PATIENTS: len(shared)} if leaked or shared else {}
    what = "that the features' backbone was pre-trained on"
    refuse(leaked, f"leak: {counted(len(leaked), 'test slide is a slide', 'test slides are slides')} {what}", REMEDY)
    refuse(
        shared, f"leak: {counted(len(shared), 'test patient has', 'test patients have')} other slides {what}", REMEDY
    )
    return {}


def describe_pretraining(counts: Mapping[str, Any]) -> str:
    """What the scores of a run with such test cases mean, by the file of scores; "" without any."""
    slides, patients = counts.get(_SLIDES), counts.get(_PATIENTS)
    if not isinstance(slides, int) or not isinstance(patients, int):
        return ""
    of = f"{counted(slides, 'test slide')} and on slides of {counted(patients, 'test patient')}"
    return (
        f"the features' backbone was pre-trained on {of}, as --allow_pretraining_slides permits: scores on slides that "
        "it has not seen may be lower"
    )
