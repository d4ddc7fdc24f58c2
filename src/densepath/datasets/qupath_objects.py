"""The wanted objects of QuPath's GeoJSON: by type, class and category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from densepath.core.errors import UserError, counted
from densepath.core.geojson import TYPES, Feature, is_area, is_ignored
from densepath.core.geojson_parts import divided
from densepath.core.streams import say
from densepath.datasets.categories import Renaming

Kind = Literal["annotation", "detection", "cell"]
Features = Mapping[Path, Sequence[Feature]]


@dataclass(frozen=True)
class Wanted:
    """Which objects of GeoJSON files become objects of a data set, as the user says.

    Args:
        source: where they are from, for messages.
        kinds: their types; empty for all.
        outline: "object" or, of cells, "nucleus".
        category: the category of objects without a class.
        renaming: new names of categories.
    """

    source: Path
    kinds: Sequence[Kind]
    outline: str
    category: str
    renaming: Renaming

    def choose(self, features: Features, areas: Iterable[Feature] = ()) -> dict[Path, list[Feature]]:
        """The objects of the wanted types that have an area and a class that is not ignored, with their outlines.

        MultiPolygons that hold many objects are divided, see :func:`~densepath.core.geojson_parts.divided`.

        Args:
            features: the objects of each GeoJSON file.
            areas: others in these files, whose classes the rules may name.

        Raises:
            UserError: the type of the objects is not clear, or the rules name a category that does not exist.
        """
        chosen = self._of_types(self._without_ignored(features))
        ignored = filter(self._is_ignored, _all(features))
        self.renaming.check(map(self._category, chain(_all(chosen), ignored, areas)))
        return self._divided(self._with_outlines(chosen))

    def with_categories(self, features: Features) -> dict[Path, list[tuple[Feature, str]]]:
        """The objects with the names of their categories, without those that the rules leave out.

        Raises:
            UserError: none is left.
        """
        named = {path: [(f, self.renaming(self._category(f))) for f in found] for path, found in features.items()}
        kept = {path: [(f, name) for f, name in found if name] for path, found in named.items()}
        if not any(kept.values()):
            raise UserError(f"{self.source} has no object; check --objects and --categories")
        return kept

    def _category(self, feature: Feature) -> str:
        return feature.category or self.category

    def _is_ignored(self, feature: Feature) -> bool:
        return is_ignored(feature.category) and feature.category not in self.renaming

    def _without_ignored(self, features: Features) -> dict[Path, list[Feature]]:
        """The objects but those of classes that QuPath ignores, unless a rule names them."""
        if counts := Counter(feature.category for feature in _all(features) if self._is_ignored(feature)):
            shown = ", ".join(f"{count:,} {name}" for name, count in counts.items())
            rule = f"--categories '{next(iter(counts))}=NAME'"
            say(f"densepath: {self.source}: left out: {shown}; QuPath ignores classes that end in * ({rule} keeps one)")
        return {path: [f for f in found if not self._is_ignored(f)] for path, found in features.items()}

    def _of_types(self, features: Features) -> dict[Path, list[Feature]]:
        """The objects of the wanted types that have an area."""
        counts = Counter(feature.kind for feature in _all(features))
        if not self.kinds and counts["annotation"] and counts["detection"] + counts["cell"]:
            shown = ", ".join(f"{counts[kind]} {kind}s" for kind in TYPES if counts[kind])
            raise UserError(
                f"{self.source} has {shown}; say with --objects which are the objects, for example --objects cell"
            )
        wanted = {path: [f for f in found if f.kind in (self.kinds or TYPES)] for path, found in features.items()}
        other = sum(counts.values()) - sum(map(len, wanted.values()))
        flat = Counter(_shape(feature.geometry) for feature in _all(wanted) if not is_area(feature.geometry))
        parts = [f"{counted(other, 'object')} of other types"] * bool(other)
        parts += [counted(count, *words) for words, count in flat.items()]
        if parts:
            say(f"densepath: {self.source}: left out: {', '.join(parts)}")
        return {path: [f for f in found if is_area(f.geometry)] for path, found in wanted.items()}

    def _with_outlines(self, features: Features) -> dict[Path, list[Feature]]:
        """The objects with the outline that is asked for as their geometry; cells without it are left out."""
        if self.outline != "nucleus":
            return {path: list(found) for path, found in features.items()}
        chosen = {
            path: [replace(f, geometry=f.nucleus) if f.kind == "cell" else f for f in found]
            for path, found in features.items()
        }
        kept = {path: [f for f in found if is_area(f.geometry)] for path, found in chosen.items()}
        if bare := sum(map(len, chosen.values())) - sum(map(len, kept.values())):
            say(f"densepath: {self.source}: {counted(bare, 'cell')} without a nucleus left out")
        return kept

    def _divided(self, features: Features) -> dict[Path, list[Feature]]:
        """The objects, with the parts of MultiPolygons that hold many objects."""
        parts = {path: divided(found) for path, found in features.items()}
        if counts := [len(own) for found in parts.values() for own in found if len(own) > 1]:
            what = f"{counted(len(counts), 'MultiPolygon')}, as CellViT writes all cells of a class"
            say(f"densepath: {self.source}: {what}: divided into {sum(counts):,} objects")
        return {path: list(chain.from_iterable(found)) for path, found in parts.items()}


def _all(features: Features) -> Iterable[Feature]:
    return (feature for found in features.values() for feature in found)


def _shape(geometry: Any) -> tuple[str, str]:
    """What a geometry without an area is: the words for one and for several."""
    kind = str(geometry.get("type")) if isinstance(geometry, dict) else ""
    if kind.removeprefix("Multi") in ("Point", "LineString"):
        return "point or line", "points or lines"
    if kind == "GeometryCollection":
        return "GeometryCollection", "GeometryCollections"
    return "object without an outline", "objects without an outline"
