"""Pre-training as a step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densepath.benchmark.steps.step import OPTIONS, PRETRAINING, RUN, Options, Step
from densepath.core.errors import UserError
from densepath.runs.folder import EXPORTED
from densepath.runs.metrics import read_metrics
from densepath.training.config import PretrainConfig
from densepath.training.nested_options import merged, nested
from densepath.training.recipes import all_options, load_recipe
from densepath.training.resolve import method_of, over_recipe


class _Pretrain(Step):
    def result(self, folder: Path) -> dict[str, Any]:
        last = read_metrics(folder / self.written)[-1]
        (folder / RUN / EXPORTED).stat()
        return {name: last[name] for name in ("step", "loss") if name in last}

    def is_whole(self, folder: Path) -> bool:
        return (folder / RUN / EXPORTED).is_file()

    def words(self, options: Options, source: str, workers: int | None) -> list[str]:
        words = [f"--config={OPTIONS}", f"--out={RUN}", "--resume"]
        return words + ([] if workers is None else [f"--workers={workers}"])


PRETRAIN = _Pretrain("pretrain", PretrainConfig, recipes="", written=f"{RUN}/metrics.csv", code=PRETRAINING)


def pretraining_options(
    recipe: str, options: Mapping[str, Any], backbone: str, given: Mapping[str, Any], replaces: bool = False
) -> dict[str, Any]:
    """All options of a pre-training in their types, checked as far as possible before it starts.

    Args:
        recipe: its name or file; options that the grid sets are ignored, as in the configuration of an earlier run.
        options: override those of the recipe.
        backbone: a timm name.
        given: dotted option -> value that overrides the others.
        replaces: whether the recipe may name another backbone.

    Raises:
        UserError: there is no such recipe or option, or a value is invalid.
    """
    kept = (*PRETRAIN.free, "weights", "backbone")
    known = {name: value for name, value in load_recipe(recipe).items() if name in kept or not PRETRAIN.has(name)}
    if known.get("backbone", backbone) != backbone and not replaces:
        raise UserError(f"its recipe has the backbone {known['backbone']}, but the row has {backbone}; make them equal")
    resolved = over_recipe(PretrainConfig, known, merged(options, nested(given))) | {"backbone": backbone}
    all_options(method_of(PretrainConfig, resolved), resolved.get("method_options"))
    PRETRAIN.check_whole(resolved)
    return PRETRAIN.typed(resolved)
