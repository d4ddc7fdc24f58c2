"""The labelled data of segmenters: images or volumes with label maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from densepath.annotations.coco_checks import Orientation
from densepath.benchmark.identity import digest_of_given, listed_patients
from densepath.benchmark.labelled_sets import LabelledSet, images_of
from densepath.core.digests import digest_of
from densepath.core.errors import UserError
from densepath.sources.names import AllNames
from densepath.transfer.classify.splits import make_study
from densepath.transfer.segment.cohort import read_cases
from densepath.transfer.segment.config import SegmentConfig
from densepath.transfer.segment.matching import beside

MASK_OPTIONS = (
    "classes",
    "objects",
    "background",
    "ignore",
    "regions",
    "exclude",
    "patient",
    "patient_regex",
    "official",
)


def read_masks(
    name: str, folder: str | Path, cache: Path, orientation: Orientation | None, options: Mapping[str, Any]
) -> LabelledSet:
    """Read images with label maps beside them, a data set of ``densepath data``, or a store of volumes.

    Raises:
        UserError: label maps are missing or invalid, or the official split leaks.
    """
    data = str(Path(folder).absolute())
    known = {key: value for key, value in options.items() if key in MASK_OPTIONS}
    pool = read_cases(SegmentConfig(data=data, out="", **known))[0].pool
    study = make_study(pool, None)
    fit, official = np.sort(np.concatenate((study.fit, study.held))), len(study.tested) > 0
    train, test = (images_of(pool, places, data, cache) for places in (fit, study.tested if official else fit))
    try:
        labels = digest_of_given(beside(data), cache)
    except UserError:  # they are in the data set
        labels = ""
    parts = [train.digest, test.digest, digest_of_given(data, cache), labels, *pool.names]
    digest = digest_of([*parts, *listed_patients(data, list(AllNames(pool.images)))])
    return LabelledSet(name, train, test, digest, None, data, {}, not official)
