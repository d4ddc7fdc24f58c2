"""Checks whether pre-training saw test images (the same pixels) or other images of the same patients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from densepath.annotations.patients import comparable_owners
from densepath.benchmark.identity import ImageSet
from densepath.benchmark.labelled_sets import LabelledSet
from densepath.core.errors import UserError, counted
from densepath.transfer.mil.feature_files import Names, slide_name

_MAX_SHOWN = 3


def check_overlap(tiles: Sequence[ImageSet], labelled: Sequence[LabelledSet], *, allow: bool = False) -> list[str]:
    """Compare the test images with the images for pre-training and with the training images.

    Images are compared by their decoded pixels, in all eight orientations and independent of the file format. A crop
    of an image, or an image that was resized or compressed again with loss, is not recognized. Patients are compared
    if both sets name them: in a manifest, in names as of ChestX-ray14 and CheXpert, in DICOM files or in a store of
    volumes. Volumes are compared by their stored voxels and, where patients are unknown, by their names.

    Args:
        tiles: the images for pre-training.
        labelled: the sets whose test images are scored.
        allow: continue after an overlap, and report it in the returned lines.

    Returns:
        Lines for the reader of the table. An overlap between a labelled set's own training and test images is only
        reported: the split is that of its authors.

    Raises:
        UserError: pre-training would see test images or test patients, and ``allow`` is not set.
    """
    notes = []
    for data in labelled:
        if not data.folds:
            notes += [f"{data.name}: {text}." for text in _report(data.train, data.test, "its training images")]
        found = [text for seen in tiles for text in _report(seen, data.test, "the tiles for pre-training")]
        if found and not allow:
            raise UserError(
                f"{data.name}: {'; '.join(found)}; remove them from the tiles (patients of other studies need other "
                "names in manifest.csv), or continue with --allow_overlap, which the table will report"
            )
        notes += [f"OVERLAP, which was allowed. {data.name}: {text}." for text in found]
    return notes


def _report(seen: ImageSet, test: ImageSet, which: str) -> Iterator[str]:
    slides = shared_slides(seen, test)
    if slides:
        first = ", ".join(slides[:_MAX_SHOWN])
        yield f"{len(slides)} of {len(test.slides)} test slides are among {which} ({first})"
    pairs = shared_images(seen, test)
    if pairs:
        first = ", ".join(f"{name} = {other}" for name, other in pairs[:_MAX_SHOWN])
        yield f"{len({name for name, _ in pairs})} of {len(test.names)} test images are among {which} ({first})"
    patients = shared_patients(seen, test)
    if patients:
        images = sum(len(names) for names in patients.values())
        shown = ", ".join(list(patients)[:_MAX_SHOWN]) + (", ..." if len(patients) > _MAX_SHOWN else "")
        share = f"{images} of {len(test.names)} test images"
        shown = f"({shown}), with {share},"
        yield f"{counted(len(patients), f'patient {shown} is', f'patients {shown} are')} also among {which}"


def shared_slides(seen: ImageSet, test: ImageSet) -> list[str]:
    """The test slides that were seen; names are compared by :class:`~densepath.transfer.mil.feature_files.Names`."""
    names = Names(list(map(slide_name, seen.slides)))
    return [name for name in test.slides if names.hold(name)]


def shared_images(seen: ImageSet, test: ImageSet) -> list[tuple[str, str]]:
    """(test image, equal image that was seen): one pair for each test image that was seen."""
    by_pixels = {pixels: name for name, pixels in zip(seen.names, seen.pixels, strict=True) if pixels}
    return [(n, by_pixels[p]) for n, p in zip(test.names, test.pixels, strict=True) if p in by_pixels]


def shared_patients(seen: ImageSet, test: ImageSet) -> dict[str, list[str]]:
    """Patient -> test images, for the patients that were seen."""
    known = set(_owners(seen).values())
    shared: dict[str, list[str]] = {}
    for name, patient in sorted(_owners(test).items()):
        if patient in known:
            shared.setdefault(patient, []).append(name)
    return shared


def _owners(images: ImageSet) -> Mapping[str, str]:
    if images.owners or images.slides:
        return images.owners
    return comparable_owners(images.source, images.names)
