"""Options of all training: limits of the gradient, and parameters that are frozen at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from densepath.core.errors import UserError
from densepath.core.single_values import refuse_none


@dataclass(frozen=True, kw_only=True)
class UpdateLimits:
    """Gradient clipping and frozen parameters.

    Args:
        clip_norm: largest norm of the gradient of an optimizer step; larger gradients are scaled down; 0 for no limit.
        clip: whether clip_norm limits the norm over all parameters ("global") or of each one ("tensor").
        freeze: names of parameters, as patterns with *, that are frozen for the first ``freeze_epochs`` epochs.
        freeze_epochs: number of epochs for which ``freeze`` applies.
    """

    clip_norm: float = 0.0
    clip: Literal["global", "tensor"] = "global"
    freeze: tuple[str, ...] = ()
    freeze_epochs: float = 1.0

    def __post_init__(self) -> None:
        refuse_none(self)
        if self.clip not in ("global", "tensor"):
            raise UserError(f"unknown clip {self.clip!r}; use global or tensor")
        require_not_negative(self, "clip_norm", "freeze_epochs")

    def without_effect(self) -> list[str]:
        """A line for each option that differs from its default, but changes nothing together with the others."""
        plain = type(self)()
        return [
            f"optimizer.{name}: no effect {why}"
            for name, why in self._reasons().items()
            if why and getattr(self, name) != getattr(plain, name)
        ]

    def _reasons(self) -> dict[str, str]:
        """Options that others turn off -> why they have no effect; empty where they have one."""
        return {
            "clip": "" if self.clip_norm else "without clip_norm",
            "freeze": "" if self.freeze_epochs else "with freeze_epochs 0",
            "freeze_epochs": "" if self.freeze else "without freeze",
        }


def require_not_negative(options: object, *names: str) -> None:
    """Check that options are not negative; None counts as 0.

    Raises:
        UserError: one is negative, or not a number.
    """
    for name in names:
        if not (getattr(options, name) or 0.0) >= 0:
            raise UserError(f"the {name.replace('_', ' ')} must be at least 0, not {getattr(options, name)}")


NO_LIMITS = UpdateLimits()
