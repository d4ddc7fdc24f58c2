"""What every test shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# The same examples each time, however slow the machine.
settings.register_profile("densepath", deadline=None, derandomize=True)
settings.load_profile("densepath")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give every test the same random numbers, alone or among others."""
    torch.manual_seed(0)
