"""Which random numbers of a view are for what. A slot holds four numbers; changing one changes every run's views."""

from enum import IntEnum


class Slot(IntEnum):
    """Slots of a view's random numbers."""

    CROP = 0  # and the nine after it: one for each attempt
    FLIP = 16
    STAIN = 17
    STAIN_FACTORS = 18
    STAIN_SHIFTS = 19
    JITTER = 20
    JITTER_FACTORS = 21
    JITTER_ORDER = 22
    GRAYSCALE = 23
    BLUR = 24
    SOLARIZE = 25


COUNT = 1 + max(Slot)
