"""What made the features of a study, so that new slides get the same ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from densepath.core.errors import UserError, errors_as
from densepath.core.files import atomic_write
from densepath.sources.slides.resolution import same_mpp
from densepath.sources.tiles.coords import is_positive, size_of_tiles
from densepath.transfer.embed.slide_features import SlideFeatures

FEATURES = "features.json"


@dataclass(frozen=True)
class ExtractorRecord:
    """How features were made, as far as their file says.

    Args:
        weights: as ``densepath embed`` takes them; None if unknown.
        digest: of the weights; None if unknown.
        backbone, stage, pool, seed: as ``densepath embed`` takes them.
        size: side in pixels to which tiles are resized; 0 for tiles as they are, None for the weights' own.
        mpp: µm per pixel of the tiles; None if unknown.
        tile: side of the tiles in pixels; None if unknown.
        overlap: pixels by which neighboring tiles overlap; None if unknown.
    """

    weights: str | None = None
    digest: str | None = None
    backbone: str | None = None
    stage: int | None = None
    pool: str = "auto"
    seed: int = 0
    size: int | None = None
    mpp: float | None = None
    tile: int | None = None
    overlap: int | None = 0

    @classmethod
    def of(cls, slide: SlideFeatures) -> ExtractorRecord:
        """What the features of a slide say: those of densepath all, those of TRIDENT and STAMP their tiles.

        Sizes that are not positive numbers are unknown.
        """
        notes = slide.notes
        mpp, tile = size_of_tiles(slide.name, {name: value for name, value in notes.items() if is_positive(value)})
        overlap = _overlap(notes.get("overlap", 0))
        if "weights_digest" not in notes:
            return cls(mpp=mpp, tile=tile, overlap=overlap)
        return cls(
            weights=str(notes["weights"]),
            digest=str(notes["weights_digest"]),
            backbone=notes.get("backbone"),
            stage=notes.get("stage"),
            pool=notes.get("pool", "auto"),
            seed=int(notes.get("seed", 0)),
            size=notes.get("size") or 0,
            mpp=mpp,
            tile=tile,
            overlap=overlap,
        )

    def tiles(self) -> dict[str, float]:
        """What is known of the tiles, by words for it; side and overlap only if µm per pixel are known.

        Without these, tiles of other pixels may be of other levels.
        """
        known: dict[str, float | None] = {"pixels after resizing": self.size, "µm per pixel": self.mpp}
        if self.mpp is not None:
            known |= {"pixels per side": self.tile, "pixels of overlap": self.overlap}
        return {what: value for what, value in known.items() if value is not None}

    def unlike(self, other: ExtractorRecord) -> str:
        """What the tiles of another one have instead, in words; "" if they are alike, or one of them is unknown."""
        theirs = other.tiles()
        pairs = ((what, own, theirs[what]) for what, own in self.tiles().items() if what in theirs)
        return next((f"{there:g} {what} instead of {own:g}" for what, own, there in pairs if not alike(own, there)), "")

    def write(self, run: Path) -> None:
        """Write it into the folder of a run."""
        with atomic_write(run / FEATURES) as part:
            part.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, run: Path) -> ExtractorRecord:
        """That of a run, or of the run of several models that it belongs to; nothing is known without one.

        Raises:
            UserError: it is damaged.
        """
        path = next((folder / FEATURES for folder in (run, run.parent) if (folder / FEATURES).is_file()), None)
        if path is None:
            return cls()
        with errors_as(lambda error: UserError(f"{path} cannot be read ({error}); give --weights, and remove it")):
            record = cls(**json.loads(path.read_text()))
            if wrong := [name for name, value in vars(record).items() if not _is_valid(name, value)]:
                raise ValueError(f"{wrong[0]}: {vars(record)[wrong[0]]!r} is not a valid value")
            return record

    def check(self, notes: Mapping[str, Any]) -> None:
        """Refuse another extractor than the one of the record.

        Args:
            notes: of the extractor: ``weights_digest``, ``stage``, ``pool``.

        Raises:
            UserError: it differs.
        """
        own = {"weights_digest": self.digest, "stage": self.stage, "pool": self.pool}
        if self.digest is not None and (other := [name for name, value in own.items() if notes[name] != value]):
            what = "weights" if "weights_digest" in other else " and ".join(other)
            raise UserError(
                f"these are other {what} than those of the features that the run was trained on "
                f"({self.weights}, digest {self.digest[:12]}); give the same ones with --weights"
            )


def alike(one: float, other: float) -> bool:
    """Whether two µm per pixel, or whole numbers of pixels, are the same."""
    whole = float(one).is_integer() and float(other).is_integer()
    return one == other if whole else same_mpp(one, other)


def _is_valid(name: str, value: Any) -> bool:
    """Whether a field of a record can have a value; sizes may have fractions."""
    if name in ("size", "mpp", "tile", "overlap"):
        return value in (None, 0) or (isinstance(value, int | float) and is_positive(value))
    return isinstance(value, get_type_hints(ExtractorRecord)[name])


def _overlap(value: Any) -> int | None:
    """An overlap in pixels; None for what is not a number from 0 on."""
    return int(float(value)) if value == 0 or is_positive(value) else None
