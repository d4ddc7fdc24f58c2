"""Several runs: curves in the same charts, scores, differences of their options, and paired tests over seeds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from densepath.benchmark.statistics import Comparison, compare, mean_std, span
from densepath.core.errors import UserError, first_few
from densepath.report.blocks import Block, Note, Section, Table
from densepath.report.curves import columns_of, draw_curves
from densepath.report.paths import recorded_data
from densepath.report.runs import Run, Score, read_sessions
from densepath.report.scored_on import exact, scored_alike, scored_on, with_whole_paths
from densepath.report.values import MISSING, flat, number, pretty, text
from densepath.runs.folder import EXPORTED, read_config

MOST_CURVES = 16  # lines in a chart
MOST_CHARTS = 8
_MOST_SCORES = 12
_MOST_OPTIONS, _MOST_COLUMNS = 40, 100
_WHERE = {"out", "devices", "workers", "cache", "loggers", "resume", "log_every"}  # not what is computed
_OF_LOSSES = ("method", "detector", "head", "loss", "labels")  # options that decide what a loss is
_MAIN = (
    "mask_ap",
    "box_ap",
    "mean_dice",
    "macro_auc",
    "logistic_macro_auc",
    "concordance",
    "mean_iou",
    "probe_mean_iou",
)


def comparable(runs: Mapping[str, Run]) -> list[dict[str, Run]]:
    """Groups of runs of one kind, of which a comparison says something.

    Pre-trainings are compared if they have their method or their images in common, directly or through others.
    """
    groups: list[tuple[set[tuple[str, str]], dict[str, Run]]] = []
    for title, run in runs.items():
        config = with_whole_paths(run.config, run.sessions)
        marks = {(name, str(config[name])) for name in ("method", "data") if run.has("method", name)}
        members: dict[str, Run] = {}
        related = [group for group in groups if not marks or group[0] & marks]
        for other, own in related:
            marks, members = marks | other, {**members, **own}
        groups = [group for group in groups if group not in related] + [(marks, {**members, title: run})]
    return [{title: runs[title] for title in runs if title in members} for _, members in groups if len(members) > 1]


def compare_runs(runs: Mapping[str, Run]) -> list[Section]:
    """The sections that compare runs of the same kind.

    Args:
        runs: name -> run.
    """
    scores = {name: _scores(run) for name, run in runs.items()}
    groups = scored_alike(runs)
    differing = _differing([scored_on(run) for run in runs.values()], set())
    blocks: list[Block] = []
    if differing:
        blocks.append(
            Note(
                f"The runs differ in {', '.join(differing)}, and have tables of their own: scores of other data, "
                "labels or targets cannot be compared. Copies of the same data at another path count as other data."
            )
        )
    for group in groups:
        on = scored_on(next(iter(group.values())))
        where = ", ".join(f"{name} {text(on[name])}" for name in differing if name in on)
        blocks += [_score_table(group, scores, where), *_tests(group, scores)]
    sections = [Section("Scores", blocks)]
    with_rows = {name: list(run.curves.values()) for name, run in runs.items() if run.curves}
    if with_rows:
        shown = dict(list(with_rows.items())[:MOST_CURVES])
        charts = draw_curves(shown, columns_of([rows for own in shown.values() for rows in own]))
        blocks = [*charts[:MOST_CHARTS]]
        if differing:
            blocks.append(Note(f"Curves on other {', '.join(differing)} differ in what they measure."))
        if len(with_rows) > len(shown):
            blocks.append(Note(f"The curves of the first {len(shown)} of {len(with_rows)} runs."))
        if len(charts) > MOST_CHARTS:
            blocks.append(Note(f"The first {MOST_CHARTS} of {len(charts)} measurements; each run's page has all."))
        sections.append(Section("Curves of all runs", blocks))
    sections.append(Section("Differences of their options", [_differences(runs)]))
    return sections


def _scores(run: Run) -> dict[str, Score]:
    """The final scores of a run; of a pre-training, its last measurements by the probe and its loss."""
    if run.scores:
        return dict(run.scores)
    last = run.last
    names = [name for name in last if name.startswith("probe_")] + ["loss"] * ("loss" in last)
    return {name: Score(last[name]) for name in names}


def _score_table(runs: Mapping[str, Run], scores: Mapping[str, Mapping[str, Score]], where: str = "") -> Table:
    """The scores of runs, sorted by the main one.

    Args:
        runs: name -> run.
        scores: of these and of others.
        where: what these are scored on, if others are scored on something else.
    """
    known = dict.fromkeys(name for run in runs for name in scores[run])
    order = {name: place for place, name in enumerate(_MAIN)}
    columns = sorted(known, key=lambda name: (name == "loss", order.get(name, len(_MAIN))))
    columns, others = columns[:_MOST_SCORES], len(columns[_MOST_SCORES:])
    main = columns[0] if columns else ""
    if main == "loss" and not _same_method(runs):
        main = ""
    sign = 1 if main == "loss" else -1

    def place(name: str) -> float:
        value = sign * scores[name][main].value if main in scores[name] else math.inf
        return value if math.isfinite(value) else math.inf

    rows = []
    for name in sorted(runs, key=place):
        own = scores[name]
        texts = [f"{own[c].value:.4f}" if c == "loss" and c in own else str(own.get(c, MISSING)) for c in columns]
        rows.append([name, runs[name].state, number(runs[name].last.get("step", MISSING)), *texts])
    unit = "in percent" + ", distances in mm or px" * any("hd95" in c or "hausdorff" in c for c in columns)
    caption = f"Sorted by {pretty(main)}; {unit}, with 95% intervals where they are known" if main else ""
    caption = caption or "Not sorted: losses of different methods cannot be compared" * bool(columns)
    caption += f"; {others} other scores are on the pages of the runs" if others else ""
    caption = ". ".join(part for part in (where, caption) if part)
    return Table(["run", "state", "step", *map(pretty, columns)], rows, caption=caption)


def _same_method(runs: Mapping[str, Run]) -> bool:
    """Whether losses of runs can be compared."""
    return not _differing([with_whole_paths(run.config, run.sessions) for run in runs.values()], set(), _OF_LOSSES)


def _tests(runs: Mapping[str, Run], scores: Mapping[str, Mapping[str, Score]]) -> list[Block]:
    """Groups of runs that differ only by their seed, compared pair by pair over the seeds that they share.

    Runs that have not ended are left out: their last measurements are those of other steps. A note says so, if there
    are tests, or would be with them.
    """
    known = dict.fromkeys(metric for run in runs for metric in scores[run])
    columns = [metric for metric in (*_MAIN, *known) if metric in known and metric != "loss"] or ["loss"]
    columns = list(dict.fromkeys(columns))[:4]
    comparable = columns != ["loss"] or _same_method(runs)
    ended = {name: run for name, run in runs.items() if run.scores or run.state == "complete"}
    groups, same = _groups(ended)
    line = f"Left out of the paired tests, because others have the same options and seed: {first_few(same)}"
    notes: list[Block] = [Note(line, warning=True)] if same else []
    open_runs = [name for name in runs if name not in ended]
    if open_runs and comparable and (_have_pairs(groups) or _have_pairs(_groups(runs)[0])):
        notes.append(Note(f"Left out of the paired tests, because they have not ended: {first_few(open_runs)}"))
    if not comparable or not _have_pairs(groups):
        return notes
    labels = _labels({key: runs[next(iter(members.values()))] for key, members in groups.items()})
    values = {key: {metric: _known(metric, members, scores) for metric in columns} for key, members in groups.items()}
    first = next(iter(groups))
    rows = []
    for key in groups:
        texts = [labels[key], span(len(own) for own in values[key].values())]
        for metric in columns:
            own = values[key][metric]
            texts.append(_mean(list(own.values())))
            texts.append(MISSING if key == first else _difference(compare(own, values[first][metric])))
        rows.append(texts)
    heads = [head for metric in columns for head in (pretty(metric), "vs. the first")]
    caption = (
        "Runs that differ only by their seed: mean ± sample standard deviation, the mean difference from the first "
        "group, and p of a two-sided paired t-test over the seeds that both have, not corrected for their number"
    )
    return [Table(["runs", "seeds", *heads], rows, caption=caption, marked=frozenset({0})), *notes]


def _known(metric: str, members: Mapping[int, str], scores: Mapping[str, Mapping[str, Score]]) -> dict[int, float]:
    """A score by the seeds of a group's runs, of those for which it is defined."""
    found = {seed: scores[run][metric].value for seed, run in members.items() if metric in scores[run]}
    return {seed: value for seed, value in found.items() if math.isfinite(value)}


def _groups(runs: Mapping[str, Run]) -> tuple[dict[str, dict[int, str]], list[str]]:
    """Groups of runs that differ only by their seed, as key -> seed -> name; and runs that share a group and a seed."""
    places: dict[tuple[str, int], list[str]] = {}
    for name, run in runs.items():
        seed = run.config.get("seed")
        if isinstance(seed, int):
            places.setdefault((_key(run.config, run.sessions), seed), []).append(name)
    groups: dict[str, dict[int, str]] = {}
    for (key, seed), names in places.items():
        if len(names) == 1:
            groups.setdefault(key, {})[seed] = names[0]
    return groups, [name for names in places.values() if len(names) > 1 for name in names]


def _have_pairs(groups: Mapping[str, Mapping[int, str]]) -> bool:
    """Whether there are several groups, and one of several seeds."""
    return len(groups) > 1 and max(map(len, groups.values())) > 1


def _mean(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    mean, std = mean_std(values)
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def _difference(found: Comparison | None) -> str:
    if found is None:
        return MISSING
    if found.p is None:
        return f"{found.difference:+.2f}"
    return f"{found.difference:+.2f} (p {'< 0.0001' if found.p < 0.0001 else f'{found.p:.2g}'})"


def _key(config: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]] = (), depth: int = 5) -> str:
    """What a run computes, without its seed and those of the runs that made its initial weights."""
    whole = flat(with_whole_paths(config, sessions))
    options = {name: value for name, value in whole.items() if name not in {*_WHERE, "seed", "weights"}}
    weights, path = str(config.get("weights")), recorded_data(config, sessions, "weights")
    if path.is_symlink():  # runs of a table name their weights alike
        path = path.resolve()
        weights = str(path)
    folder, file = _source(path)
    try:
        parent = read_config(folder) if depth and weights != "random" else None
    except (UserError, OSError, ValueError):
        parent = None
    made = [_key(parent, read_sessions(folder), depth - 1), file] if parent else [_without_seed(weights)]
    return json.dumps([options, made], sort_keys=True, default=str)


def _source(weights: Path) -> tuple[Path, str]:
    """The folder of the run that made weights, and the file in it, which is named if it is not the final backbone."""
    if weights.parent.name not in ("exported", "checkpoints"):
        return weights, ""
    return weights.parent.parent, "" if weights.name == EXPORTED.name else weights.name


def _without_seed(path: str) -> str:
    """A path without the numbers in parts like ``run0``, ``seed_1`` and ``2``."""
    named = re.sub(r"(?i)(?<![a-z0-9])(run|seed|s)[-_]?\d+(?![a-z0-9])", r"\1", path)
    return re.sub(r"(?<![^/\\])\d+(?![^/\\])", "", named)


def _labels(groups: Mapping[str, Run]) -> dict[str, str]:
    """What tells groups apart, in a few words."""
    options = {key: flat(with_whole_paths(run.config, run.sessions)) for key, run in groups.items()}
    for own in options.values():
        own |= {"weights": _without_seed(text(own["weights"]))} if "weights" in own else {}
    differing = _differing(list(options.values()), {*_WHERE, "seed"})[:3]
    labels = {key: ", ".join(f"{name} {text(own.get(name))}" for name in differing) for key, own in options.items()}
    unique = len({*labels.values()}) == len(labels)
    return {key: label if unique else f"{label} ({groups[key].path})".strip() for key, label in labels.items()}


def _differences(runs: Mapping[str, Run]) -> Block:
    """The options in which runs differ, a row for each."""
    options = {name: flat(with_whole_paths(run.config, run.sessions)) for name, run in runs.items()}
    names = _differing(list(options.values()), _WHERE)
    if not names:
        return Note("The runs have the same options.")
    shown = dict(list(options.items())[:_MOST_COLUMNS])
    rows = [[name, *_told_apart([own.get(name, MISSING) for own in shown.values()])] for name in names[:_MOST_OPTIONS]]
    same = len({name for own in options.values() for name in own}) - len(names)
    caption = f"{same} other options are the same in all runs"
    if len(rows) < len(names):
        caption += f"; the first {len(rows)} of {len(names)} options that differ"
    if len(shown) < len(runs):
        caption += f"; the first {len(shown)} of {len(runs)} runs"
    return Table(["option", *shown], rows, caption=caption)


def _told_apart(values: Sequence[object]) -> list[str]:
    """Values as texts: short ones, unless only the whole ones differ."""
    short = [text(value) for value in values]
    return short if len(set(short)) > 1 else [str(value) for value in values]


def _differing(
    options: Sequence[Mapping[str, object]], without: Collection[str], names: Collection[str] = ()
) -> list[str]:
    """Which options differ, of all or of some names; equal numbers are equal, such as 1 and 1.0, a text is not."""
    known = names or dict.fromkeys(name for own in options for name in own)
    values = {name: {exact(own.get(name, MISSING)) for own in options} for name in known if name not in without}
    return [name for name, found in values.items() if len(found) > 1]
