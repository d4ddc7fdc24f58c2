"""Operators of a training step as torch's dispatcher sees them: on a GPU each is a launch by the host.

It needs no GPU: the host's work is the same on a CPU. Values that the host reads from a tensor (``item``, also in an
``if``) and results whose size depends on values (``nonzero``) would make a GPU wait. A copy to a device is not an
operator on a CPU: ``benchmarks.pretended_gpu`` counts those that wait.
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import report
from benchmarks.step import Step, options
from benchmarks.tiles import packed_store
from densepath.sources.packing import open_store
from densepath.training.hardware import choose_hardware

_READS = ("_local_scalar_dense", "is_nonzero")
_UNKNOWN_SIZES = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")
_VIEWS = ("view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze")
_VIEWS = (*_VIEWS, "detach", "alias", "as_strided", "split", "split_with_sizes", "unbind", "_reshape_alias", "narrow")


class Operators(TorchDispatchMode):
    """Counts the operators of a block, forward and backward.

    Attributes:
        counts: name of an operator -> number of calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def row(self) -> dict[str, int]:
        """The figures of the table; views launch nothing."""
        launched = {name: count for name, count in self.counts.items() if name not in _VIEWS}
        return {
            "operators": sum(launched.values()),
            "values read by the host": sum(self.counts[name] for name in _READS),
            "sizes that depend on values": sum(self.counts[name] for name in _UNKNOWN_SIZES),
        }


def count(step: Step) -> Operators:
    """The operators of one step, after two others have initialized what is initialized once.

    With two threads: a single one changes the colors of one view at a time, which no GPU does.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        step()
        step()
        with Operators() as operators:
            step()
    finally:
        torch.set_num_threads(threads)
    return operators


def measure(asked: Namespace) -> list[dict[str, Any]]:
    """A row for each recipe: the figures, and the operators that are called most."""
    hardware = choose_hardware(asked.device, "32")
    rows = []
    with packed_store(asked.data, asked.batch_size, asked.image_size) as store:
        images = open_store(store).to("cpu")
        for recipe in asked.method:
            step = Step(recipe, images, asked.size, asked.batch_size, asked.backbone, hardware)
            operators = count(step)
            most = {f"calls of {name}": number for name, number in operators.counts.most_common(asked.most)}
            rows.append({"case": recipe} | operators.row() | most)
    return rows


def main() -> None:
    """Count the operators of recipes; the sizes of views do not matter, the number of batch-norm groups does."""
    made = options(__doc__.splitlines()[0])
    made.set_defaults(size=64, image_size=64, batch_size=256, device="cpu", method=["moco_v2", "concl", "densecl"])
    made.add_argument("--most", type=int, default=0, help="number of operators to list by name")
    asked = made.parse_args()
    report(f"operators of a step, {asked.backbone}, batch {asked.batch_size}", measure(asked), asked.json)


if __name__ == "__main__":
    main()
