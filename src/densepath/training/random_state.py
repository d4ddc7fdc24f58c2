"""The generators that draw from a stream: kept with a checkpoint, put back on resuming.

Views and orders don't need them (their randomness is a function), but parts from other libraries draw from them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_generators(seed: int, rank: int) -> None:
    """Start Python's, NumPy's and torch's generators (those of the devices, too), differently on each process."""
    mixed = int(np.random.SeedSequence([seed % 2**63, rank]).generate_state(1, np.uint64)[0])
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)


def random_state() -> dict[str, Any]:
    """Where all generators stand, in types that load without running code."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    words_of_numpy = torch.from_numpy(np.asarray(keys).astype(np.int64))
    state = {
        "python": [version, list(words), gauss],
        "numpy": [words_of_numpy, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put all generators back to where :func:`random_state` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def untouched_generators() -> Iterator[None]:
    """What is done inside draws from the generators without anybody noticing later."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
