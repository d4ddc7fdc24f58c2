"""Patients that several splits share, which makes scores too high."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from densepath.core.errors import counted, first_few
from densepath.core.spelling import several_spellings
from densepath.core.streams import say

Patients = Sequence[str | None]


def report_patients(patients: Patients, splits: Sequence[str]) -> None:
    """Print the known patients with images in several splits."""
    found: dict[str, set[str]] = defaultdict(set)
    for patient, split in zip(patients, splits, strict=True):
        if patient:
            found[patient].add(split)
    shared = [f"{patient} ({' and '.join(sorted(own))})" for patient, own in sorted(found.items()) if len(own) > 1]
    if shared:
        say(
            f"densepath: warning: {len(shared)} of {counted(len(found), 'patient has', 'patients have')} images in "
            f"several splits, which makes scores too high: {first_few(shared)}"
        )


def report_unknown(patients: Patients, names: Sequence[str], what: str = "image") -> None:
    """Print the images without a known patient, if others have one: a division by patient takes them one by one."""
    unknown = [name for name, patient in zip(names, patients, strict=True) if not patient]
    if 0 < len(unknown) < len(names):
        say(
            f"densepath: warning: {counted(len(unknown), f'{what} has', f'{what}s have')} no known patient, and each "
            f"counts as one of its own: {first_few(unknown)}"
        )


def of_patients(patients: Patients) -> str:
    """How many patients the images of a split are of, as the end of a phrase."""
    known = {patient for patient in patients if patient}
    unknown = sum(not patient for patient in patients)
    if not known:
        return ", patients unknown"
    return f" of {counted(len(known), 'patient')}" + (f" ({unknown} without a known patient)" if unknown else "")


def patients_between(splits: Mapping[str, Patients], remedy: str) -> Iterator[tuple[str, str, str]]:
    """The names of each two splits, and a line about the patients that they share.

    Args:
        splits: of each the patients of its images.
        remedy: what names the patients.
    """
    for one, other in combinations(splits, 2):
        first, second = ({patient for patient in splits[split] if patient} for split in (one, other))
        shared = sorted(first & second)
        line = f"{len(shared)}{f': {first_few(shared)}; scores are too high' * bool(shared)}"
        if unknown := sum(not patient for split in (one, other) for patient in splits[split]):
            line += f"; not of the {unknown} without a known patient"
        if not first or not second:
            line = f"unknown; name them with {remedy}"
        yield one, other, f"patients in {one} and {other}: {line}"


def odd_spellings(splits: Mapping[str, Patients]) -> list[str]:
    """A warning of patients that may be the same, if there are any."""
    alike = several_spellings({patient for patients in splits.values() for patient in patients if patient})
    what = "patients that differ in capitals, spaces or zeros only, and count as different ones"
    return [f"warning: {what}: {first_few(alike)}; spell each one way"] if alike else []
