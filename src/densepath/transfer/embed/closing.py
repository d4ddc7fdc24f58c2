"""The last lines of ``densepath embed`` on slides: what the features can be used for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from densepath.core.closing import command, say_end
from densepath.core.errors import counted, first_few
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.transfer.mil.feature_files import Names, slide_name
from densepath.transfer.mil.leaks import REMEDY


def say_end_of_embed(
    watch: Stopwatch, features: Path, out: Path, slides: Sequence[str], seen: Iterable[str] | None
) -> None:
    """Print how long it took, which slides cannot be test slides, and the next command unless these are all.

    Args:
        watch: started with the command.
        features, out: the folders of the features and of all results.
        slides: the names of the slides.
        seen: those of the pre-training of the weights; None if they are unknown.
    """
    met = Names(sorted(set(map(slide_name, seen or ())))).hold
    learned = list(filter(met, slides))
    if learned:
        were = counted(len(learned), "slide was", "slides were")
        say(
            f"densepath: {were} in the pre-training of the weights: {first_few(learned)}. densepath mil refuses them "
            f"as test slides: {REMEDY}"
        )
    options = ["--table", "LABELS.csv", "--target", "COLUMN", *(["--splits", "SPLITS.json"] if learned else [])]
    following = command("mil", "--data", features, *options, "--out", Path(f"{out}_mil"))
    say_end(watch, "", {}, (following,) if len(learned) < len(slides) else ())
