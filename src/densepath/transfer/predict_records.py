"""The records of predicted images, which make ``predict`` resumable, and the files that are made of all of them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from densepath.core.csv_files import LineFeeds
from densepath.core.errors import UserError, counted, first_few, one_line
from densepath.core.files import atomic_write
from densepath.core.streams import say
from densepath.sources.tiles.identity import UNREADABLE
from densepath.transfer.detection.detector_file import DetectorNotes
from densepath.transfer.detection.prediction_files import COLUMNS, MICRONS
from densepath.transfer.detection.score_inputs import IMAGES, PREDICTIONS

TABLE = "objects.csv"
_RECORDS = "records"
_UNKNOWN = -1  # the size and the time of a file that is not there now
Parts = Callable[[Any], Sequence[str]]  # the images of a record, by its identity


class Images(Protocol):
    """The images that are predicted."""

    names: list[str]

    def identity(self, position: int) -> list[Any]:
        """What changes if an image is another one."""
        ...


def identity_of_file(name: str, *files: str | Path) -> list[Any]:
    """What changes if an image is another one: its name, and the paths, sizes and times of its files; -1 for unknown.

    Args:
        name: of the image in its source.
        files: that it is read from.
    """
    found: list[Any] = []
    for file in files:
        try:
            status = os.stat(file)
            known = status.st_size, status.st_mtime_ns
        except OSError:
            known = _UNKNOWN, _UNKNOWN
        found += [os.path.abspath(file), name, *known]
    return found


def is_same_image(recorded: Any, identity: Any) -> bool:
    """Whether a recorded identity is that of an image now, as far as this is known.

    An image on a disk that is not there now is taken for the recorded one: what was made of it must not be removed.
    """
    if recorded == identity:
        return True
    if not (isinstance(recorded, list) and isinstance(identity, list)):
        return False
    away = _UNKNOWN in identity  # a file that names others is away with them
    if not away and len(recorded) != len(identity):
        return False
    known = zip(recorded, identity, strict=not away)
    return all(own in (_UNKNOWN, old) or _are_same_files(old, own) for old, own in known)


def _are_same_files(recorded: Any, numbers: Any) -> bool:
    """The same for the numbers of files of :func:`~densepath.sources.tiles.identity.identity_of`, two of each."""
    if not (isinstance(recorded, list) and isinstance(numbers, list) and len(recorded) == len(numbers)):
        return False
    pairs = [(recorded[first : first + 2], numbers[first : first + 2]) for first in range(0, len(numbers), 2)]
    return all(own in (UNREADABLE, old) for old, own in pairs)


def record_of(out: Path, stem: str) -> Path:
    """The record of an image, by the stem of its files."""
    return out / _RECORDS / f"{stem}.json"


def recorded_names(out: Path) -> list[str]:
    """The stems of all records."""
    records = out / _RECORDS
    return sorted(str(path.relative_to(records))[: -len(".json")] for path in records.rglob("*.json"))


def refuse_others(out: Path, names: Sequence[str], one: str = "image", parts: Parts | None = None) -> None:
    """Say which results of an earlier call are of other images, see :func:`other_images`."""
    if gone := other_images(out, _recorded_images(out, parts), names, one):
        say(f"densepath: {out} keeps files of {counted(len(gone), one)} not in the data: {one_line(first_few(gone))}")


def check_images(out: Path, names: Callable[[], Sequence[str]], one: str, parts: Parts | None = None) -> None:
    """Refuse the results of other images before long work, see :func:`other_images`; ``names`` gives those of now."""
    if old := _recorded_images(out, parts):
        other_images(out, old, names(), one)


def other_images(out: Path, old: Collection[str], names: Sequence[str], one: str = "image") -> list[str]:
    """The images of an earlier call, ``old``, that are not among those of this one.

    Args:
        out: the folder of the results.
        old, names: the images.
        one: what an image is called.

    Raises:
        UserError: all of them are others.
    """
    gone = sorted({*old}.difference(names))
    if gone and len(gone) == len({*old}):
        raise UserError(f"{out} holds results of other {one}s ({one_line(first_few(gone))}); use another folder")
    return gone


def _recorded_images(out: Path, parts: Parts | None) -> list[str]:
    """The images of all records: those that the identity of a record names, if it is of several."""
    names = recorded_names(out)
    if parts is None:
        return names
    known = [(name, source_of(record_of(out, name))) for name in names]
    return [image for name, identity in known for image in (parts(identity) if identity else [name])]


def read_record(record: Path) -> tuple[Any, dict[str, Any] | None]:
    """What a record was made of, and what it says; None and None without a record that can be read."""
    try:
        source, _, facts = record.read_text().partition("\n")
        return json.loads(source), json.loads(facts)
    except (OSError, ValueError):
        return None, None


def is_done(record: Path, identity: Any) -> bool:
    """Whether an image has a whole record; one that a crash of the machine has cut has no facts."""
    source, facts = read_record(record)
    return facts is not None and is_same_image(source, identity)


def source_of(record: Path) -> Any:
    """The image that a record was made of, even if it is cut after that; None without a record."""
    try:
        with record.open() as file:
            return json.loads(file.readline())
    except (OSError, ValueError):
        return None


def _records(out: Path, stems: Sequence[str], images: Images) -> Iterator[tuple[int, dict[str, Any]]]:
    for position, stem in enumerate(stems):
        source, facts = read_record(record_of(out, stem))
        if facts is not None and is_same_image(source, images.identity(position)):
            yield position, facts


def gather(out: Path, stems: Sequence[str], images: Images, notes: DetectorNotes) -> int:
    """Write the files for all images, and return the number of objects."""
    count, listed = 0, list[dict[str, Any]]()
    with (
        atomic_write(out / PREDICTIONS) as part,
        atomic_write(out / TABLE) as table_part,
        part.open("w") as file,
        table_part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as table,
    ):
        writer = csv.DictWriter(LineFeeds(table), [*COLUMNS, *MICRONS])
        writer.writeheader()
        file.write("[")
        for position, record in _records(out, stems, images):
            height, width = record["size"]
            listed.append({"id": position + 1, "file_name": images.names[position], "height": height, "width": width})
            for result in record["results"]:
                file.write((",\n" if count else "\n") + json.dumps({"image_id": position + 1, **result}))
                count += 1
            writer.writerows(record["rows"])
        file.write("\n]\n")
    pairs = zip(notes.category_ids, notes.category_names, strict=True)
    categories = [{"id": number, "name": name} for number, name in pairs]
    with atomic_write(out / IMAGES) as part:
        part.write_text(json.dumps({"images": listed, "categories": categories, "annotations": []}))
    return count
