"""The hyper-parameters of DINO, for the methods that extend it."""

from __future__ import annotations

from typing import TypedDict

from densepath.core.distillation import Centering
from densepath.methods.option_effects import Needed, With, one_of

NEEDED: Needed = {  # by the options of DINO
    "teacher_temperature_start": (With("teacher_temperature_epochs", equal="teacher_temperature"),),
    "center_momentum": (With("centering", one_of("mean")),),
    "local_size": (With("local_crops"),),
}


class DINOOptions(TypedDict, total=False):
    """The parameters of :class:`densepath.methods.dino.DINO` that these have, too."""

    prototypes: int
    hidden_dim: int
    dim: int
    fixed_lengths: bool
    head_batch_norm: bool
    student_temperature: float
    teacher_temperature: float
    teacher_temperature_start: float
    teacher_temperature_epochs: int
    centering: Centering
    center_momentum: float
    momentum: float
    local_crops: int
    local_size: float
    drop_path: float
