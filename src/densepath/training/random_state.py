"""Stateful random generators: saved with a checkpoint, restored on resuming.

Views and orders do not need them (their random numbers are functions), but code of other libraries draws from them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_generators(seed: int, rank: int) -> None:
    """Seed Python's, NumPy's and torch's generators (also those of the devices), differently on each process."""
    mixed = int(np.random.SeedSequence([seed % 2**63, rank]).generate_state(1, np.uint64)[0])
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)


def random_state(devices: bool = True) -> dict[str, Any]:
    """The state of all generators, also those of devices, in types that load without running code."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    words_of_numpy = torch.from_numpy(np.asarray(keys).astype(np.int64))
    state = {
        "python": [version, list(words), gauss],
        "numpy": [words_of_numpy, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if devices and torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore all generators to a state of :func:`random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def untouched_generators(devices: bool = True) -> Iterator[None]:
    """Restore the state of all generators after the context."""
    state = random_state(devices)
    try:
        yield
    finally:
        set_random_state(state)
