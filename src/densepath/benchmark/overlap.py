"""Whether test images were seen in pre-training: the same pixels, or other images of the same patients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from densepath.benchmark.identity import ImageSet, LabelledSet
from densepath.benchmark.patients import patients_of
from densepath.core.errors import UserError

_SHOWN = 3


def check_overlap(tiles: ImageSet | None, labelled: Sequence[LabelledSet], *, allow: bool = False) -> list[str]:
    """Compare the images that pre-training sees with the test images, and training with test images.

    Images are compared by their decoded pixels, however they are turned by quarters or mirrored and whatever format
    they are stored in; a part of an image, or one that was resized or compressed anew with loss, is not recognized.
    Patients are compared where both sets have a manifest that knows them.

    Args:
        tiles: the images for pre-training.
        labelled: the sets whose test images are scored.
        allow: go on, with what was found among the lines that are returned.

    Returns:
        Lines for the reader of the table. What lies in a labelled set's own training and test images is of its authors'
        making, and is only told.

    Raises:
        UserError: pre-training would see test images or test patients.
    """
    notes = []
    for data in labelled:
        notes += [f"{data.name}: {text}." for text in _told(data.train, data.test, "its training images")]
        found = list(_told(tiles, data.test, "the tiles for pre-training")) if tiles is not None else []
        if found and not allow:
            raise UserError(
                f"{data.name}: {'; '.join(found)}; take them out of the tiles (patients of other studies need other "
                "names in manifest.csv), or go on with --allow_overlap, which the table will say"
            )
        notes += [f"OVERLAP, which was allowed. {data.name}: {text}." for text in found]
    return notes


def _told(seen: ImageSet, test: ImageSet, which: str) -> Iterator[str]:
    pairs = shared_images(seen, test)
    if pairs:
        first = ", ".join(f"{name} = {other}" for name, other in pairs[:_SHOWN])
        yield f"{len({name for name, _ in pairs})} of {len(test.names)} test images are among {which} ({first})"
    patients = shared_patients(seen, test)
    if patients:
        images = sum(len(names) for names in patients.values())
        shown = ", ".join(list(patients)[:_SHOWN]) + (", ..." if len(patients) > _SHOWN else "")
        share = f"{images} of {len(test.names)} test images"
        yield f"{len(patients)} patients ({shown}), with {share}, are also among {which}"


def shared_images(seen: ImageSet, test: ImageSet) -> list[tuple[str, str]]:
    """(test image, equal image that was seen), one pair for each test image that has one."""
    by_pixels = {pixels: name for name, pixels in zip(seen.names, seen.pixels, strict=True) if pixels}
    return [(n, by_pixels[p]) for n, p in zip(test.names, test.pixels, strict=True) if p in by_pixels]


def shared_patients(seen: ImageSet, test: ImageSet) -> dict[str, list[str]]:
    """Patient -> test images, of the patients that were seen."""
    known = set(patients_of(seen.source, seen.names).values())
    shared: dict[str, list[str]] = {}
    for name, patient in sorted(patients_of(test.source, test.names).items()):
        if patient in known:
            shared.setdefault(patient, []).append(name)
    return shared
