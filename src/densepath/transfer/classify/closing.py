"""What is written and said of the answers for test images, at the end of ``classify`` and of ``score``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from densepath.core.errors import first_few
from densepath.core.streams import say
from densepath.runs.closing import draw_safely
from densepath.transfer.classify.label_scores import SHOWN
from densepath.transfer.classify.pictures import PICTURES, draw_pictures
from densepath.transfer.classify.results import METRICS, PREDICTIONS, SCORES, Outcome, Scores, score, write_results
from densepath.version import __version__


def close_outcome(
    tested: Outcome, notes: Mapping[str, Any], by_patient: bool, seed: int, out: Path | None
) -> tuple[dict[str, float], dict[str, Path]]:
    """Score answers, write them with their scores and pictures, and say the main scores.

    Args:
        tested: the answers.
        notes: what is recorded of them.
        by_patient: whether patients are known.
        seed: seed of the bootstrap.
        out: the folder of the files; None for none.

    Returns:
        The scores, and the files.
    """
    scores, several = score(tested, seed), len(tested.run_names) > 1
    images = np.unique(tested.names, return_index=True)[1]  # several trainings may test one
    known = {
        "densepath": __version__,
        "labels": dict(zip(tested.targets.names, tested.targets.take(images).counts(), strict=True)),
        "several_labels": not tested.targets.exclusive,
        "test_images": len(images),
        "patients": len(set(tested.owners)) if by_patient else None,
    }
    files: dict[str, Path] = {}
    if out is not None:
        write_results(tested, scores, {**known, **notes}, out)
        draw_safely(lambda: draw_pictures(tested, scores, out))
        files = {path.stem: path for path in sorted((out / PICTURES).glob("*.png"), key=lambda p: p.stem != "roc")}
        files |= {"metrics": out / METRICS, "scores": out / SCORES, "predictions": out / PREDICTIONS}
    if lacking := scores.undefined(tested.run_names):
        parts = [f"{name} of {', '.join(runs)}" if several else name for name, runs in lacking.items()]
        left = ", and left out of means and spreads" if several else ""
        say(f"densepath: undefined, as the test images lack a class{left}: {first_few(parts)}")
    say(f"densepath: {describe(scores, several)}")
    values = {name: each.value for name, each in scores.all.items()}
    return values | {f"{name}_spread": scores.spread(name) for name in SHOWN if several}, files


def describe(scores: Scores, several: bool) -> str:
    """The main scores that are defined, in a line; of several trainings with their spread."""
    shown = []
    for name in (name for name in SHOWN if np.isfinite(scores.all[name].value)):
        spread = f", {scores.mean(name):.1f} ± {scores.spread(name):.1f} over trainings" if several else ""
        shown.append(f"{name} {scores.all[name]}{spread}")
    return "; ".join(shown)
