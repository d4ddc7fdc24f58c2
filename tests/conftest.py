"""What every test shares."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give every test the same random numbers, alone or among others."""
    torch.manual_seed(0)
