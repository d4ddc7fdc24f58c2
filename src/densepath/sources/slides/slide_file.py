"""What reads a slide's pixels from its file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from densepath.sources.slides.levels import Level
from densepath.sources.slides.resolution import Spacing
from densepath.sources.slides.tile_codecs import Pixels

Box = tuple[int, int, int, int]  # top, left, height, width in pixels


class SlideFile(Protocol):
    """A slide's pixels, read by one of several libraries.

    Attributes:
        reader: the library: "tiles" for the built-in one, "openslide" or "wsidicom".
        vendor: of the scanner, or the file format.
        levels: from the finest to the coarsest.
        spacing: µm per pixel of level 0 along y and x; None where unknown.
        associated: names of other images in the file: label, macro, thumbnail.
        scan_corner: x and y of the scanned area in pixels of level 0, which may begin with an empty border.
        problems: what is wrong with the file, a line each.
    """

    @property
    def reader(self) -> str: ...

    @property
    def vendor(self) -> str: ...

    @property
    def levels(self) -> Sequence[Level]: ...

    @property
    def spacing(self) -> Spacing | None: ...

    @property
    def associated(self) -> Sequence[str]: ...

    @property
    def scan_corner(self) -> tuple[int, int]: ...

    @property
    def problems(self) -> Sequence[str]: ...

    def read(self, level: int, box: Box, scale: int) -> Pixels:
        """A part (height, width, 3) of a level reduced by ``scale``, which lies inside it. Raises CorruptImage."""
        ...

    def read_associated(self, name: str) -> Pixels:
        """Another image (H, W, 3). Raises CorruptImage."""
        ...

    def check(self) -> list[str]:
        """Problems that are found by a look at all tiles' positions, but not at their pixels."""
        ...
