"""Backbones of several epochs of a run, kept to compare early and late ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densepath.core.distributed import rank
from densepath.methods import Method
from densepath.nets.backbones import Backbone
from densepath.nets.norms import plain_batch_norm
from densepath.nets.running_statistics import gather_statistics, set_statistics
from densepath.nets.weights import save_backbone
from densepath.nets.weights.trained_on import slides_of_run
from densepath.runs.folder import EXPORTED, KEPT
from densepath.training.export import describe_run
from densepath.training.intervals import interval_at


class KeptEpochs:
    """Writes the backbone of a run every few epochs, next to the final one.

    Args:
        method: the method that is trained.
        out: the run folder.
        config: the run's configuration.
        every: epochs between two files.
        every_steps: the same in optimizer steps.
    """

    def __init__(self, method: Method, out: Path, config: Mapping[str, Any], every: float, every_steps: float) -> None:
        self._method, self._out, self._config = method, out, config
        self._every, self._every_steps = every, every_steps

    def __call__(self, step: int) -> None:
        """Write the backbone after a step that ends a multiple of ``every`` epochs. All processes call this."""
        network, epoch = exported_now(self._method), f"{interval_at(step, self._every_steps) * self._every:g}"
        if rank() == 0:
            notes = describe_run(self._config, step, slides_of_run(self._out)) | {"epoch": epoch}
            save_backbone(self._out / EXPORTED.parent / f"{KEPT}{epoch}.safetensors", network, metadata=notes)


def kept_epochs(out: Path) -> dict[str, Path]:
    """The backbones of epochs in a run folder: "epoch_5" -> file, in the order of the epochs."""
    found = {path.stem.removeprefix(KEPT): path for path in (out / EXPORTED.parent).glob(f"{KEPT}*.safetensors")}
    return {f"epoch_{epoch}": found[epoch] for epoch in sorted(found, key=float)}


def exported_now(method: Method) -> Backbone:
    """A copy of the backbone as it would be exported now. All processes call this."""
    network = copy.deepcopy(plain_batch_norm(method.exported_backbone())).eval()
    set_statistics(network, gather_statistics(network).mean(0))
    return network
