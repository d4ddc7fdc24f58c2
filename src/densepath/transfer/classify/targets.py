"""The labels of images: one class each, or several labels, some of which may be unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from densepath.annotations.classes import match_columns, warn_of_uncertain, without_decimal
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.spelling import is_missing, several_spellings
from densepath.core.streams import say
from densepath.sources.names import Named
from densepath.transfer.classify.config import ClassifyConfig
from densepath.transfer.probe.metrics import Floats, Integers

LABEL = "label"
_NOTHING = ("no finding", "no findings", "no_finding", "none", "")  # a list of labels without any
_NUMBERS = {"0": 0.0, "1": 1.0, "-1": -1.0, "false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0}


@dataclass(frozen=True, eq=False)
class Targets:
    """What is to be predicted of images.

    Args:
        names: of the classes, or of the labels.
        values: (N, 1) the class, a whole number; or (N, T) 0, 1, or NaN where a label is unknown.
        exclusive: whether each image has exactly one class.
    """

    names: tuple[str, ...]
    values: Floats
    exclusive: bool

    def __len__(self) -> int:
        return len(self.values)

    def take(self, positions: Integers) -> Targets:
        """Those of some images."""
        return replace(self, values=self.values[positions])

    @property
    def classes(self) -> Integers:
        """(N,) the classes."""
        return self.values[:, 0].astype(np.int64)

    def matrix(self) -> Floats:
        """(N, T) 0, 1 or NaN for each class or label."""
        return (
            (self.classes[:, None] == np.arange(len(self.names))).astype(np.float64) if self.exclusive else self.values
        )

    def counts(self) -> list[int]:
        """(T,) images with each class or label."""
        return [int(count) for count in np.nansum(self.matrix(), axis=0)]

    def constant(self) -> list[str]:
        """The classes or labels that all or none of the images have, as far as they are known."""
        present = [set(column[~np.isnan(column)]) for column in self.matrix().T]
        return [name for name, values in zip(self.names, present, strict=True) if len(values) < 2]

    def strata(self) -> Integers:
        """(N,) what images are stratified by: the class, or the rarest of their labels; T for those without any."""
        if self.exclusive:
            return self.classes
        present = np.nan_to_num(self.values) > 0
        rarity = np.argsort(np.argsort(present.sum(0), kind="stable"))
        place = np.where(present, rarity, len(self.names)).argmin(1)
        return np.where(present.any(1), place, len(self.names)).astype(np.int64)


def read_targets(
    config: ClassifyConfig,
    names: Sequence[str],
    listed: Named,
    table: str | None,
    divided: bool,
    whole: bool = True,
) -> tuple[Targets, npt.NDArray[np.bool_]]:
    """The labels of images, and (N,) which images have one: all but those that ``config.unmatched`` skips.

    Args:
        config: says which columns hold them.
        names: (N,) of the images, for "folders".
        listed: their paths, for a table.
        table: the table; None for folders.
        divided: whether the topmost folders are those of splits.
        whole: whether these are all images, or those of a test, which need not have all labels.

    Raises:
        UserError: a label is missing or invalid, or there is only one.
    """
    if table is None:
        inside = [name.partition("/")[2] if divided else name for name in names]
        found = [name.partition("/")[0] if "/" in name else "" for name in inside]
        bare = [name for name, label in zip(names, found, strict=True) if not label]
        refuse(bare, "images in no folder of a class", "move them into folders, or give a table with --labels")
        return _classes(found, "the folders", whole=whole), np.ones(len(names), bool)
    columns = list(config.targets) or [config.target or LABEL]
    matched = match_columns(listed, table, columns)
    kept = np.array([row is not None for row in matched.values], bool)
    rows = [row or ("",) * len(columns) for row in matched.values]
    skip = config.unmatched == "skip"
    lines = [f"line {number}" for number in matched.lines]
    typo = matched.hint or f", which names unknown images in {first_few(lines)}" if lines and not skip else ""
    bare = [n for n, k in zip(names, kept, strict=True) if not k]
    refuse_or_say(bare, (f"image without a label in {table}{typo}", f"images without a label in {table}{typo}"), skip)
    if not _has_other_split(config):
        refuse_or_say(lines, (f"label of an unknown image in {table}", f"labels of unknown images in {table}"), skip)
    if not kept.any():
        whose = f"{matched.hint}," if matched.hint else ""
        raise UserError(
            f"{table}{whose} has no label for any of the {counted(len(names), 'image')}; give paths relative to their "
            "folder"
        )
    if config.targets:
        return _columns(config, rows, kept if whole else None, names, table, matched.delimiter), kept
    texts = [row[0] for row in rows]
    lists = [{text} if config.separator is None else _parts(text, config.separator) for text in texts]
    absent = [n for n, own, k in zip(names, lists, kept, strict=True) if k and any(map(is_missing, own))]
    unknown = "is empty or NaN" if config.separator is None else "has NaN (without any label it is empty or No Finding)"
    refuse(absent, f"images whose {columns[0]} in {table} {unknown}", "fill it in, or remove these lines")
    if config.separator is not None:
        return _lists(lists, kept, table, whole), kept
    return _classes(texts, table, kept, whole), kept


def number_of(text: str, delimiter: str) -> float | None:
    """0, 1 or -1 as tables write them (also 1.0, yes and True, and 1,0 except between commas); None for other texts."""
    return _NUMBERS.get(without_decimal(text.strip().lower(), comma=delimiter != ","))


def refuse_or_say(cases: Sequence[str], what: tuple[str, str], skip: bool) -> None:
    """Refuse cases (one of them, several of them in words), or say that they are left out."""
    if skip and cases:
        say(f"densepath: left out: {counted(len(cases), *what)}: {first_few(cases)}")
    elif cases:
        refuse(cases, counted(len(cases), *what), "correct them, or leave them out with --unmatched skip")


def _has_other_split(config: ClassifyConfig) -> bool:
    """Whether a table may hold the lines of other images, those of the test or the training."""
    return config.test_data is not None and config.test_labels is None


def _classes(
    texts: Sequence[str], source: str, kept: npt.NDArray[np.bool_] | None = None, whole: bool = True
) -> Targets:
    used = sorted({text for text, k in zip(texts, kept, strict=True) if k} if kept is not None else set(texts))
    if whole and len(used) < 2:
        raise UserError(
            f"all images are of one class in {source}, {used[0]}; give the folder that contains a folder for each "
            "class, or a table of two or more classes with --labels"
        )
    _check_spelling("classes", used, source)
    if whole:
        warn_of_uncertain(used)
    number = {name: place for place, name in enumerate(used)}
    return Targets(tuple(used), np.array([number.get(text, 0) for text in texts], np.float64)[:, None], True)


def _check_spelling(what: str, names: Sequence[str], source: str) -> None:
    refuse(
        several_spellings(names), f"{what} in {source} that differ in capitals, spaces or zeros", "spell each one way"
    )


def _columns(
    config: ClassifyConfig,
    rows: Sequence[tuple[str, ...]],
    kept: npt.NDArray[np.bool_] | None,
    names: Sequence[str],
    table: str,
    delimiter: str,
) -> Targets:
    """Labels from columns of 0 and 1."""
    if len(set(config.targets)) < len(config.targets):
        raise UserError(f"targets are {list(config.targets)}; name each column once")
    uncertain = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}[config.uncertain]
    values = np.full((len(rows), len(config.targets)), np.nan)
    wrong = []
    for place, row in enumerate(rows):
        for column, text in enumerate(row):
            if is_missing(text):
                continue
            value = number_of(text, delimiter)
            if value is None:
                wrong.append(f"{names[place]} ({config.targets[column]} {text!r})")
            else:
                values[place, column] = uncertain if value < 0 else value
    refuse(wrong, f"labels in {table} that are not 0, 1, -1 or empty", "correct them")
    found = Targets(tuple(config.targets), values, False)
    return found if kept is None else _checked(found, kept, table)


def _parts(text: str, separator: str) -> set[str]:
    """The labels of a list."""
    return {part.strip() for part in text.split(separator) if part.strip().lower() not in _NOTHING}


def _lists(found: Sequence[set[str]], kept: npt.NDArray[np.bool_], table: str, whole: bool) -> Targets:
    """Labels from a column of lists, in which an image has those that are named."""
    names = sorted({name for parts, k in zip(found, kept, strict=True) if k for name in parts})
    if not names:
        raise UserError(f"no image has a label in {table}; name the column of labels with --target")
    _check_spelling("labels", names, table)
    values = np.array([[float(name in parts) for name in names] for parts in found])
    targets = Targets(tuple(names), values, False)
    return _checked(targets, kept, table) if whole else targets


def _checked(targets: Targets, kept: npt.NDArray[np.bool_], table: str) -> Targets:
    """Refuse labels that all or none of the images have."""
    constant = targets.take(np.flatnonzero(kept)).constant()
    refuse(constant, f"labels in {table} that all or none of the images have", "leave these columns out")
    return targets
