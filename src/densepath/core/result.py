"""What a verb returns in Python."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densepath.core.errors import UserError, counted

if TYPE_CHECKING:
    from PIL.Image import Image

_SHOWN = 8  # files


@dataclass(frozen=True, eq=False, repr=False)
class Result(Mapping[str, Any]):
    """What a verb has made: a mapping of its scores, and a path wherever one is expected.

    ``densepath.predict(densepath.detect(...), ...)`` takes the detector of a run, and ``result["mask_ap"]`` is a score.

    Args:
        out: the folder or the file that was written; None for none.
        scores: scores, or other numbers, by name.
        files: what was written, by name: "weights", "curves".
        next: commands that continue from here, for a shell.
    """

    out: Path | None
    scores: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    next: tuple[str, ...] = ()

    def plot(self, name: str | None = None) -> Image:
        """A picture among the files, by default the first, as a PIL image, which notebooks show.

        Raises:
            UserError: the picture does not exist.
        """
        from PIL import Image

        pictures = {key: path for key, path in self.files.items() if path.suffix == ".png" and path.is_file()}
        path = pictures.get(name) if name is not None else next(iter(pictures.values()), None)
        if path is None:
            raise UserError(f"{name or 'a picture'} was not drawn; there are: {', '.join(pictures) or 'none'}")
        picture = Image.open(path)
        picture.load()  # closes the file
        return picture

    def __getitem__(self, name: str) -> Any:
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __bool__(self) -> bool:
        return True

    def __truediv__(self, name: str) -> Path:
        """A file in its folder."""
        return Path(self) / name

    def __fspath__(self) -> str:
        if self.out is None:
            raise TypeError("this result has no files")
        return os.fspath(self.out)

    def __str__(self) -> str:
        return repr(self) if self.out is None else os.fspath(self)

    def __repr__(self) -> str:
        lines = [f"{self.out}"] if self.out is not None else []
        lines += [f"  {name}: {_shown(value)}" for name, value in self.scores.items()]
        lines += [f"  {name}: {path}" for name, path in list(self.files.items())[:_SHOWN]]
        lines += [f"  and {counted(len(self.files) - _SHOWN, 'more file')}"] if len(self.files) > _SHOWN else []
        return "\n".join([*lines, *(f"  next: {command}" for command in self.next)])


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
