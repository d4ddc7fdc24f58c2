"""The runs of a table, by name and by place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from densepath.benchmark.identity import SHOWN_DIGITS
from densepath.benchmark.steps import STEPS, Step
from densepath.core.digests import digest_of


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Args:
        verb: the name of its step.
        label: readable name; runs with the same label differ in their digests.
        seed: seed of the run.
        data: path of its images.
        options: options of the verb, without those that the grid sets.
        weights: the initial weights: "random", a file, a run folder or a timm name; None if they come from ``parent``.
        parent: the run whose weights or features it uses, if any.
        identity: everything that its result depends on.
        images: number of images that go through the network, repeats included.
        rate: assumed images per second; None if none is known.
        inputs: further options that are paths.
    """

    verb: str
    label: str
    seed: int
    data: str
    options: Mapping[str, Any]
    weights: str | None
    parent: Run | None
    identity: Mapping[str, Any]
    images: int
    rate: float | None
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def step(self) -> Step:
        """Its step."""
        return STEPS[self.verb]

    @cached_property
    def digest(self) -> str:
        """Digest of everything that the result depends on."""
        return digest_of([json.dumps(self.identity, sort_keys=True, default=str)])

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.label}-seed{self.seed}-{self.digest[:SHOWN_DIGITS]}"


@dataclass
class Grid:
    """The runs of a table.

    Args:
        runs: name -> run, each after the run it depends on; those of the first seed come first.
        places: (row, task, seed) -> the run that gives the scores there.
        budgets: (row, task) -> number of images in the pre-training, which tasks may have of their own; rows without
            pre-training are not in it.
        skipped: lines about rows and tasks that are left out.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    places: dict[tuple[str, str, int], Run] = field(default_factory=dict)
    budgets: dict[tuple[str, str], int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def add(self, run: Run) -> Run:
        """Add a run, or return the equal one that is already there."""
        return self.runs.setdefault(run.name, run)
