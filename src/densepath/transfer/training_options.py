"""Checks of the options that training a classifier and training a segmenter share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densepath.annotations.fraction import check_fraction
from densepath.core.errors import UserError
from densepath.core.random import check_seed
from densepath.core.single_values import check_choice, refuse_none
from densepath.core.system import check_workers
from densepath.training.intervals import Intervals

_MOST = 10**6  # epochs


def check_training(config: Any, choices: Mapping[str, Any], least: Mapping[str, int]) -> None:
    """Check the options of a configuration.

    Args:
        config: the configuration.
        choices: option -> a literal type that names its values.
        least: option -> the least number that it may be, besides those that all have.

    Raises:
        UserError: an invalid value.
    """
    refuse_none(config)
    check_seed(config.seed)
    check_fraction(config.fraction)
    Intervals(config.log_every, config.save_every_steps, config.save_every_minutes)
    for name, kind in choices.items():
        check_choice(name, getattr(config, name), kind)
    for name, lowest in {"seeds": 1, "batch_size": 1, "patience": 0, "epochs": 1, **least}.items():
        if not lowest <= getattr(config, name) <= _MOST:
            raise UserError(f"{name} is {getattr(config, name)}; give {lowest} or more, up to {_MOST:,}")
    if config.folds is not None and (config.folds < 0 or config.folds == 1):
        raise UserError(f"folds is {config.folds}; give 2 or more, or 0 for a single training")
    if not 0 < config.validation < 1:
        raise UserError(f"validation is {config.validation}; give a share between 0 and 1")
    check_workers(config.workers)
    if config.patient is not None and config.patient_regex is not None:
        raise UserError("--patient and --patient_regex both name the patients; give one of them")
    if config.test_labels is not None and config.test_data is None:
        raise UserError("--test_labels are those of --test_data; give both")
    sides = (config.view_size,) if isinstance(config.view_size, int) else config.view_size or (1,)
    if min(sides) < 1:
        raise UserError(f"view_size is {config.view_size}; give a number of pixels, or one for each axis")
