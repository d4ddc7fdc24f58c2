"""What the values of label maps mean: the classes, what is scored, and what counts as nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError, first_few, refuse
from densepath.core.json_files import load_json
from densepath.core.streams import say
from densepath.transfer.segment.config import SegmentConfig

IGNORED = 255  # in place of a class: the pixel counts neither in the loss nor in the scores
MOST = 64  # classes that are found, not named: more are instances
_BACKGROUND = "background"
IGNORE = "ignore"  # nnU-Net's name of what is not annotated
_HIGHEST = 2**16 - 1  # that a PNG of predictions can have

ClassMap = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Legend:
    """The classes of label maps.

    Args:
        names: of the classes.
        values: the value of each class in label maps.
        background: the class that is not scored; -1 for none.
        ignored: values that are not a class.
        regions: what is scored: the name and the classes of each.
        merged: whether every value above 0 is the class 1.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    background: int
    ignored: tuple[int, ...] = ()
    regions: tuple[tuple[str, tuple[int, ...]], ...] = ()
    merged: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def scored(self) -> tuple[str, ...]:
        """The names of what is scored."""
        return tuple(name for name, _ in self.regions)

    def unknown(self, values: Iterable[int]) -> list[int]:
        """The values that mean nothing."""
        return sorted({v for v in values if not self.merged or v < 0} - {*self.values, *self.ignored})

    def classes_of(self, labels: npt.NDArray[Any]) -> ClassMap:
        """The classes of a map of known values."""
        meaning = {value: number for number, value in enumerate(self.values)} | dict.fromkeys(self.ignored, IGNORED)
        near = [value for value in meaning if -_HIGHEST <= value <= _HIGHEST]
        low, high = min(0, 1, *near), max(0, 1, *near)
        table = np.full(high - low + 2, 1 if self.merged else IGNORED, np.uint8)  # the last for all that is higher
        for value in near:
            table[value - low] = meaning[value]
        far = sorted(meaning.keys() - set(near))
        found = np.empty(labels.shape, np.uint8)
        for row, part in zip(found, labels, strict=True):  # an index takes 8 bytes for each pixel
            np.take(table, np.clip(part.astype(np.int64), low, high + 1) - low, out=row)
            for value in far:  # a table of these would be as long as they are large
                row[part == value] = meaning[value]
        return found

    def values_of(self, classes: ClassMap) -> npt.NDArray[Any]:
        """The values of a map of classes, in the smallest type."""
        low, high = min(self.values), max(self.values)
        kind = np.uint8 if low >= 0 and high < 2**8 else np.uint16 if low >= 0 and high < 2**16 else np.int32
        return np.array(self.values, kind)[classes]

    def record(self) -> dict[str, Any]:
        """The legend in the types of JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Legend:
        """The legend of a record; raises ValueError, TypeError or LookupError if it is none."""
        regions = tuple((str(name), tuple(map(int, members))) for name, members in values["regions"])
        known = {name: tuple(values[name]) for name in ("names", "values", "ignored")}
        return cls(**{**values, **known, "regions": regions})


def make_legend(config: SegmentConfig, found: Mapping[int, Sequence[str]], named: Mapping[int, str]) -> Legend:
    """The legend that the options describe.

    Args:
        config: the options.
        found: value -> the images that have it.
        named: names of values that the data set knows.

    Raises:
        UserError: an image has a value without a meaning, or there are fewer than two classes.
    """
    ignored = tuple(sorted(set(config.ignore)))
    if config.objects is not None:
        names = {0: _BACKGROUND, 1: config.objects}
    else:
        names, unannotated = _without_ignored(_names(config, found, named))
        if unannotated:
            several = len(unannotated) > 1
            shown = f"value{'s' * several} {', '.join(map(str, unannotated))} ({IGNORE})"
            say(f"densepath: the {shown} count{'s' * (not several)} neither in the loss nor in the scores")
        ignored = tuple(sorted({*ignored, *unannotated}))
    if both := sorted(set(ignored) & (names.keys() - ({0, 1} if config.objects is not None else set()))):
        raise UserError(f"{', '.join(map(str, both))}: both a class and to be ignored; choose one")
    values = tuple(sorted(names))
    beyond = [f"{value} ({first_few(found[value], 2) or 'no image'})" for value in values if not 0 <= value <= _HIGHEST]
    refuse(beyond, f"classes with values outside of 0 to {_HIGHEST}", "leave them out with --ignore, or change them")
    if config.background not in (None, 0, *values):
        raise UserError(f"background is {config.background}, the value of no class; give one of {values}, or null")
    background = values.index(config.background) if config.background in values else -1
    titles = tuple(names[value] for value in values)
    legend = Legend(titles, values, background, ignored, merged=config.objects is not None)
    unknown = [f"{value} ({first_few(found[value], 2)})" for value in legend.unknown(found)]
    refuse(
        unknown, "values of label maps that are no class", "name them with --classes, or leave them out with --ignore"
    )
    if len(set(titles)) < len(titles):
        raise UserError(f"classes share a name: {', '.join(titles)}; name each differently")
    present = {1 if legend.merged and value > 0 else value for value in found} & set(values)
    if len(values) < 2 or len(present) < 2:
        if not present:
            raise UserError("no pixel of the label maps is of a class; change --classes or --ignore")
        only = ", ".join(names[value] for value in sorted(present))
        raise UserError(f"all pixels of the label maps are of one class, {only}; a segmenter needs two or more")
    if lacking := [f"{value} ({names[value]})" for value in values if value not in present]:
        say(f"densepath: warning: no label map has {first_few(lacking)}; check --classes")
    if len(values) > IGNORED - 1:
        raise UserError(f"there are {len(values)} classes; at most {IGNORED - 1} are possible")
    return Legend(
        titles, values, background, ignored, _regions(config.regions, titles, values, background), legend.merged
    )


def _names(config: SegmentConfig, found: Mapping[int, Sequence[str]], named: Mapping[int, str]) -> dict[int, str]:
    """Value -> name of the classes that the options name, or else of the values that are found."""
    if config.classes:
        return parse_classes(config.classes)
    rest = sorted(found.keys() - set(config.ignore))
    if len(rest) > MOST:
        raise UserError(
            f"the label maps have {len(rest)} values, as maps of instances have; name the class of all objects with "
            "--objects NAME, or the classes with --classes"
        )
    return {value: named.get(value, _default_name(value, rest, config.background)) for value in rest}


def legend_of(classes: Sequence[str]) -> Legend:
    """The legend of classes that are named; 0 is the background, and values named ignore are ignored.

    Raises:
        UserError: they are invalid, or none of them is scored.
    """
    names, ignored = _without_ignored(parse_classes(classes))
    values, titles = tuple(sorted(names)), tuple(names[value] for value in sorted(names))
    background = values.index(0) if 0 in values else -1
    regions = _regions((), titles, values, background)
    if not regions:
        raise UserError(
            f"none of the classes {first_few(list(map(str, classes)))} is scored; name one besides 0 (the background) "
            f"and {IGNORE}"
        )
    return Legend(titles, values, background, tuple(ignored), regions)


def parse_classes(given: Sequence[str]) -> dict[int, str]:
    """Value -> name, from VALUE:NAME or a JSON file.

    The file has values and names in either order, or under the key "labels", as a dataset.json of nnU-Net.

    Raises:
        UserError: they are something else.
    """
    if len(given) == 1 and str(given[0]).lower().endswith(".json"):
        content = load_json(Path(given[0]), "a file of classes")
        content = content.get("labels", content) if isinstance(content, dict) else {}
        content = content if isinstance(content, dict) else {}
        pairs = [(key, name) if _is_whole(key) else (name, key) for key, name in content.items()]
    else:
        pairs = [(text.partition(":")[0], text.partition(":")[2]) for text in map(str, given)]
    found = {int(str(value)): str(name).strip() for value, name in pairs if _is_whole(value) and str(name).strip()}
    if not pairs or len(found) < len(pairs):
        shown = first_few([str(text) for text in given])
        raise UserError(f"classes are {shown}; give VALUE:NAME for each, e.g. 0:background 1:gland, or a JSON file")
    return found


def _without_ignored(names: Mapping[int, str]) -> tuple[dict[int, str], list[int]]:
    """Classes without those named ignore, as nnU-Net calls the pixels without annotation, and the values of these."""
    ignored = sorted(value for value, name in names.items() if name == IGNORE)
    return {value: name for value, name in names.items() if value not in ignored}, ignored


def _is_whole(text: Any) -> bool:
    return str(text).strip().removeprefix("-").isdigit()


def _default_name(value: int, values: Sequence[int], background: int | None) -> str:
    if value == background:
        return _BACKGROUND
    return "foreground" if len(values) == 2 and background in values else f"class_{value}"


def _regions(
    given: Sequence[str], names: Sequence[str], values: Sequence[int], background: int
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What is scored: the regions, or each class but the background."""
    if not given:
        return tuple((name, (number,)) for number, name in enumerate(names) if number != background)
    found: list[tuple[str, tuple[int, ...]]] = []
    for text in given:
        name, _, members = str(text).partition("=")
        parts = [part.strip() for part in members.split("+")]
        if not name or not all(_is_whole(part) and int(part) in values for part in parts):
            raise UserError(f"the region {text!r} is not NAME=VALUE+VALUE with values of classes; correct --regions")
        if name in [other for other, _ in found]:
            raise UserError(f"the region {name} is named twice; give each region its own name")
        found.append((name, tuple(sorted({values.index(int(part)) for part in parts}))))
    return tuple(found)
