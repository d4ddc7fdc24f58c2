"""The labels of images, which are checked before features are computed."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path

from densepath.annotations.classes import FOLDERS, match_columns
from densepath.annotations.label_table import LABEL, table_columns
from densepath.annotations.patients import check_spelling
from densepath.core.columns import SPLIT
from densepath.core.errors import UserError
from densepath.core.spelling import is_missing
from densepath.sources.corrupt import CorruptImage
from densepath.sources.pixel_source import PixelSource
from densepath.transfer.embed.inputs import Inputs, open_source
from densepath.transfer.probe.labelled import Labels, classes_and_splits, listed_as, owners_of


def open_labelled(data: str | Path, how: Labels) -> PixelSource:
    """The images of a source, if the classes, splits and named patients of all that can be read are found.

    Of the images without one, only those up to the first that can be read are read, as a table may lack most.
    A table that is a pipe is not looked at: it can be read only once.

    Raises:
        UserError: an image has none, see :func:`densepath.transfer.probe.labelled.label`.
    """
    if str(data).lower().endswith((".h5", ".hdf5", ".parquet")):
        raise UserError(f"{data} is a file of features; give it with --features")
    source = open_source(data)
    table = None if how.labels == FOLDERS else how.labels
    if table is not None and os.path.exists(table) and not os.path.isfile(table):
        return source
    inputs = Inputs(source, data, source.spec, None)
    try:
        _check(inputs.names, how, table, data)
    except UserError:
        lacking = [] if table is None else _lacking(inputs.names, how, table, data)

        def is_damaged(position: int) -> bool:
            return isinstance(inputs.read(position), CorruptImage)

        damaged = {position for positions in lacking for position in takewhile(is_damaged, positions)}
        if not damaged:
            raise
        others = set(range(len(inputs))).difference(damaged)
        _check([inputs.names[position] for position in sorted(others)], how, table, data)
    return source


def _check(names: list[str], how: Labels, table: str | None, data: str | Path) -> None:
    listed = listed_as(names, table, str(data))
    classes_and_splits(names, listed, table, how.target)
    if how.patient is not None or how.patient_regex is not None:  # others are said, not refused
        check_spelling(owners_of(names, listed, how, table, data)[0], names)


def _lacking(names: list[str], how: Labels, table: str, data: str | Path) -> Collection[Sequence[int]]:
    """The positions of images of which a table lacks the class, the split or the named patient, by what it lacks."""
    columns = [how.target or LABEL, *filter(None, [how.patient]), *{SPLIT}.intersection(table_columns(table))]
    found = match_columns(listed_as(names, table, str(data)), table, columns).values
    lacking: dict[tuple[bool, ...], list[int]] = defaultdict(list)
    for position, texts in enumerate(found):
        missing = () if texts is None else tuple(map(is_missing, texts))
        if texts is None or any(missing):
            lacking[missing].append(position)
    return lacking.values()
