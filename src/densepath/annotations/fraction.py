"""A share of the labelled images, to measure how many labels a task needs."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.core.errors import UserError
from densepath.core.random import shuffled


def check_fraction(fraction: float) -> None:
    """Check a share of the training images.

    Raises:
        UserError: it is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction:g}; give the share of the training images to use, above 0 and up to 1")


def choose_fraction(owners: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Choose a share of images at random; a smaller share with the same seed is a part of a larger one.

    All images of a patient are chosen, or none of them, so the share is as close as whole patients allow; there is at
    least one patient.

    Args:
        owners: the patient of each image; an image without a known patient has a name of its own.
        fraction: the share, above 0 and at most 1.
        seed: decides which patients are chosen.

    Returns:
        The positions of the images, ascending.
    """
    patients = sorted(set(owners))
    positions: dict[str, list[int]] = {patient: [] for patient in patients}
    for position, owner in enumerate(owners):
        positions[owner].append(position)
    chosen: list[int] = []
    wanted = fraction * len(owners)
    for place in shuffled(len(patients), seed, epoch=0).tolist():
        more = positions[patients[place]]
        if chosen and abs(len(chosen) + len(more) - wanted) >= abs(len(chosen) - wanted):
            break
        chosen += more
    return sorted(chosen)
