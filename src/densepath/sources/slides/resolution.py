"""µm per pixel of slides: as their files say, or as a table of the user says."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from numbers import Real
from pathlib import Path, PurePath
from typing import Any
from xml.etree import ElementTree

from densepath.core.csv_files import open_table
from densepath.core.errors import UserError, counted, first_few
from densepath.core.spelling import composed, decimal_in

PLAUSIBLE = (0.02, 100.0)  # µm per pixel of the largest level of a slide
_SAME = 1.03  # the largest ratio of µm per pixel that count as equal
_FROM_TAGS = (0.05, 20.0)  # µm per pixel; other resolutions in a TIFF are those of screens and printers
_UNITS = {2: 25400.0, 3: 10000.0}  # ResolutionUnit: µm of an inch and of a centimeter
_MICRONS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4}
_APERIO = re.compile(r"\|\s*MPP\s*=\s*([\d.,]+(?:[eE][+-]?\d+)?)")
_NAMES, _VALUES = ("wsi", "slide", "slide_id", "filename", "file", "path", "name"), ("mpp", "microns_per_pixel")

Spacing = tuple[float, float]  # µm per pixel along y and x


def plausible(y: float, x: float, bounds: tuple[float, float] = PLAUSIBLE) -> Spacing | None:
    """The two distances if they can be those of a slide."""
    fits = all(math.isfinite(value) and bounds[0] <= value <= bounds[1] for value in (y, x))
    return (y, x) if fits else None


def same_mpp(one: float, other: float) -> bool:
    """Whether two µm per pixel are those of one magnification: scanners differ a little, and files round."""
    return max(one, other) <= _SAME * min(one, other)


def check_mpp(name: str, value: Any, example: float = 0.25) -> None:
    """Check µm per pixel that a user gives, if any.

    Raises:
        UserError: they are not a number, or cannot be those of a slide.
    """
    if value is not None and not (isinstance(value, Real) and plausible(float(value), float(value))):
        raise UserError(f"{name} is {value}; give µm per pixel, such as {example}")


def spacing_text(spacing: Spacing) -> str:
    """µm per pixel as tables show them: one number, or "0.5 x 0.25" for x and y that differ."""
    return " x ".join(dict.fromkeys(f"{value:.6g}" for value in spacing[::-1]))


def spacing_of_text(text: str) -> Spacing:
    """What :func:`spacing_text` was given, as far as its digits go."""
    values = [float(value) for value in text.split(" x ")]
    return values[-1], values[0]


def from_aperio(description: str) -> Spacing | None:
    """µm per pixel from the description of an Aperio slide."""
    found = _APERIO.search(description)
    value = decimal_in(found[1]) if found else math.nan
    return plausible(value, value)


def from_ome(xml: str) -> Spacing | None:
    """µm per pixel of the first image of OME-XML."""
    pixels = _ome_pixels(xml)
    try:
        y, x = (
            float(pixels[f"PhysicalSize{axis}"]) * _MICRONS[pixels.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "YX"
        )
    except (KeyError, ValueError):
        return None
    return plausible(y, x)


def ome_channels(xml: str) -> int:
    """The channels of the first image of OME-XML; 1 where it does not say."""
    text = _ome_pixels(xml).get("SizeC", "1")
    return int(text) if text.isdecimal() else 1


def _ome_pixels(xml: str) -> dict[str, str]:
    """The attributes of the first image's pixels."""
    try:
        return next(node.attrib for node in ElementTree.fromstring(xml).iter() if node.tag.endswith("}Pixels"))
    except (ElementTree.ParseError, StopIteration):
        return {}


def from_tags(page: Any) -> Spacing | None:
    """µm per pixel from the resolution tags of a TIFF's page, if it is that of a microscope."""
    values = [page.tags.get(name) for name in ("YResolution", "XResolution", "ResolutionUnit")]
    if any(tag is None for tag in values) or int(values[2].value) not in _UNITS:
        return None
    unit, rates = _UNITS[int(values[2].value)], [tag.value for tag in values[:2]]
    if not all(rate[0] and rate[1] for rate in rates):
        return None
    y, x = (unit * rate[1] / rate[0] for rate in rates)
    return plausible(y, x, _FROM_TAGS)


def read_mpp_table(path: str | Path) -> dict[str, float]:
    """µm per pixel by the name of a slide, from a CSV file with the columns ``wsi`` and ``mpp``.

    Raises:
        UserError: it cannot be read, or a row is invalid.
    """
    try:
        with open_table(path) as given:
            name, value = given.column(_NAMES), given.column(_VALUES)
            rows = list(given.rows())
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(
            f"the table {path} cannot be read ({error}); give a CSV file with the columns wsi,mpp"
        ) from error
    if name is None or value is None or not rows:
        raise UserError(f"the table {path} has no rows with columns wsi and mpp; give a CSV file with wsi,mpp")
    table: dict[str, float] = {}
    for number, row in rows:
        mpp = decimal_in(row[value])
        if plausible(mpp, mpp) is None:
            raise UserError(f"line {number} of {path}: {row[value]!r} is not µm per pixel; give a number such as 0.25")
        key = composed(row[name])
        if table.setdefault(key, mpp) != mpp:
            raise UserError(f"line {number} of {path} gives {key} a second value; keep one")
    return table


class MppTable:
    """µm per pixel that a user gives for slides.

    Args:
        path: a CSV file with the columns ``wsi`` (a slide's name, with or without folders and suffix) and ``mpp``; its
            values override those of the slides.
        default: µm per pixel of slides that have none; None for none.

    Raises:
        UserError: the table or the default is invalid.
    """

    def __init__(self, path: str | Path | None = None, default: float | None = None) -> None:
        check_mpp("default_mpp", default)
        self.default, self.path = default, path
        self._given = read_mpp_table(path) if path is not None else {}

    def given(self, slide: str | Path) -> float | None:
        """The value that the table gives for a slide, by the longest path; None if it has none.

        Raises:
            UserError: it gives two, with and without the suffix.
        """
        known = next(self._known(slide), [])
        if len({self._given[name] for name in known}) > 1:
            raise UserError(f"{self.path} gives {slide} two values, as {' and as '.join(known)}; keep one")
        return self._given[known[0]] if known else None

    def unknown(self, slides: Iterable[str | Path]) -> str:
        """A line about the rows that belong to none of the slides, or to several; empty if there are none."""
        owners = Counter(name for slide in slides for known in self._known(slide) for name in known)
        others = [name for name in self._given if name not in owners]
        lines = []
        if others:
            lines.append(f"{self.path} names {counted(len(others), 'slide')} not in the data: {first_few(others)}")
        if several := [f"{name} ({count} slides)" for name, count in owners.items() if count > 1]:
            lines.append(f"{self.path} has names of several slides, which all get its value: {first_few(several)}")
        return f"{'; '.join(lines)}; correct it" if lines else ""

    def _known(self, slide: str | Path) -> Iterator[list[str]]:
        """The table's names of a slide, by their folders; with backslashes where it has none with slashes."""
        for names in _spellings(slide):
            for forms in (names, [name.replace("/", "\\") for name in names]):
                if known := [form for form in forms if form in self._given]:
                    yield known
                    break


def _spellings(slide: str | Path) -> list[list[str]]:
    """The names by which a table may call a slide: with and without its suffix, for each number of folders above it.

    Those with the most folders come first.
    """
    path = PurePath(composed(str(slide)))
    below = [PurePath(*path.parts[start:]) for start in range(len(path.parts))]
    return [list(dict.fromkeys((str(name), str(name.with_suffix(""))))) for name in below]
