"""Refuses tests on slides that the features' backbone was pre-trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from densepath.core.errors import UserError, refuse
from densepath.nets.weights.trained_on import slides_of_weights
from densepath.transfer.mil.cohort import Cohort
from densepath.transfer.mil.feature_files import slide_name
from densepath.transfer.mil.splits import Split


def pretraining_slides(notes: Mapping[str, Any]) -> set[str] | None:
    """The slides that the features' backbone was pre-trained on; None if that is unknown.

    Args:
        notes: those of a file of features: ``pretraining_slides``, or else ``weights``, which record them.
    """
    listed, weights = notes.get("pretraining_slides"), str(notes.get("weights", ""))
    if weights == "random":
        return set()
    if listed is None and weights:
        try:
            listed = slides_of_weights(weights)
        except UserError:  # it is no file of weights any more
            return None
    return None if listed is None else {_key(str(name)) for name in listed}


def check_pretraining(cohort: Cohort, splits: Sequence[Split], seen: Iterable[str]) -> None:
    """Refuse test cases with slides of pre-training.

    Args:
        cohort, splits: the study.
        seen: the names of these slides.

    Raises:
        UserError: there are some.
    """
    known = set(seen)
    tested = np.unique(np.concatenate([split.test for split in splits]))
    leaked = [slide for case in tested for slide in cohort.slides[case] if _key(slide) in known]
    refuse(
        leaked,
        f"leak: {len(leaked)} test slides are slides that the features' backbone was pre-trained on",
        "pre-train on training slides only, or give --splits with other test cases",
    )


def _key(name: str) -> str:
    return slide_name(name).rpartition("/")[2]
