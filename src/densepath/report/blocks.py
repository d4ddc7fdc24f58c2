"""What a page consists of: sections of blocks. Texts are plain text; the templates escape them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Block:
    """A part of a section; the template has a macro for each subclass, by its name."""

    @property
    def macro(self) -> str:
        """The name of its macro."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Note(Block):
    """A paragraph.

    Args:
        text: its text.
        warning: whether it is a warning.
    """

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Facts(Block):
    """Names and values."""

    rows: Mapping[str, str]


@dataclass(frozen=True)
class Cards(Block):
    """The most important numbers: name -> (number, what it means, as a smaller line)."""

    rows: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Table(Block):
    """A table that a click on a column sorts.

    Args:
        columns: the headings.
        rows: the texts of each row.
        groups: headings over several columns, with their numbers of columns; empty for none.
        marked: numbers of rows to mark.
        caption: a line below it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[tuple[str, int]] = ()
    marked: frozenset[int] = frozenset()
    caption: str = ""


@dataclass(frozen=True)
class Text(Block):
    """Text of fixed width: a configuration, a log, or commands that can be copied."""

    text: str
    title: str = ""
    folded: bool = False
    copied: bool = False


@dataclass(frozen=True)
class Chart(Block):
    """An interactive chart.

    Args:
        title: its title.
        data: Plotly's traces. ``meta`` with a ``color`` is the number of a color of the page's theme.
        layout: Plotly's layout, without the theme.
        wide: whether it takes a row of its own.
    """

    title: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    wide: bool = False


@dataclass(frozen=True)
class Picture(Block):
    """A picture.

    Args:
        uri: a ``data:`` URI.
        caption: a line below it, and its description for those who do not see it.
        wide: whether it has the width of the page.
    """

    uri: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Slider(Block):
    """Pictures of which a slider shows one.

    Args:
        title: what they show.
        frames: the pictures, in order; each caption says where in the order it stands.
        start: the number of the first one that is shown.
        wide: whether it takes a row of its own.
    """

    title: str
    frames: Sequence[Picture]
    start: int = 0
    wide: bool = True


@dataclass(frozen=True)
class Gallery(Block):
    """Pictures next to each other."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Layers(Block):
    """Pictures of the same place on top of each other, each with an opacity.

    Args:
        title: what they show.
        base: the lowest one.
        layers: name -> a picture of the same size.
    """

    title: str
    base: Picture
    layers: Mapping[str, Picture]


@dataclass(frozen=True)
class Embedding(Block):
    """Images as points in the plane, with their thumbnails.

    Args:
        title: what it shows.
        points: (x, y) of each image.
        names: of the images.
        thumbnails: a ``data:`` URI of each.
    """

    title: str
    points: Sequence[tuple[float, float]]
    names: Sequence[str]
    thumbnails: Sequence[str]


@dataclass(frozen=True)
class Outlined:
    """An image with true objects and detections.

    Args:
        picture: the image.
        size: width and height that the outlines refer to.
        truth: SVG path of each true object, and the best score with which it is found (-1 if it never is).
        found: SVG path, score, and whether it is the detection of a true object, of each detection.
    """

    picture: Picture
    size: tuple[int, int]
    truth: Sequence[tuple[str, float]]
    found: Sequence[tuple[str, float, bool]]


@dataclass(frozen=True)
class Detections(Block):
    """Images with true objects and detections, of which a slider hides those with low scores."""

    title: str
    images: Sequence[Outlined]
    threshold: float


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: its title.
        blocks: what it shows.
        parts: sections within it.
        folded: whether it is closed at first.
        subtitle: a line next to the title.
    """

    title: str
    blocks: Sequence[Block] = ()
    parts: Sequence[Section] = ()
    folded: bool = False
    subtitle: str = ""
