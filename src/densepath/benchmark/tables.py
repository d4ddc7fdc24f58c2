"""A table's results as Markdown, CSV and JSON, with the same numbers in each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from densepath.benchmark.best import best_lines
from densepath.benchmark.contrasts import contrast_lines
from densepath.benchmark.results import Entry, Results, column_name
from densepath.benchmark.statistics import MIN_PAIRS_FOR_RANKS, span
from densepath.core.csv_files import LineFeeds
from densepath.core.keywords import RANDOM
from densepath.core.markdown import table_row

NONE = "—"
_CSV = (
    *("table", "row", "task", "metric", "n", "mean", "std", "baseline", "pairs", "difference"),
    *("p_t_test", "p_signed_rank", "paper", "values"),
)


def measured(entry: Entry) -> str:
    """Mean and standard deviation."""
    if entry.mean_std is None:
        return NONE
    mean, std = entry.mean_std
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def compared(entry: Entry) -> str:
    """The difference from the baseline, and its p-value."""
    if entry.comparison is None:
        return NONE
    p = entry.comparison.p
    return f"{entry.comparison.difference:+.1f}" + ("" if p is None else f" (p {_shown_p(p)})")


def paper(entry: Entry, missing: str = "") -> str:
    """The paper's number; ``missing`` where it is unknown."""
    return missing or NONE if entry.paper is None else f"{entry.paper:.1f}"


def to_markdown(results: Results, notes: Sequence[str], picture: str | None, sweeps: str | None = None) -> str:
    """The table as Markdown."""
    lines = [f"# {results.config.title}", "", *([results.config.source, ""] if results.config.source else [])]
    for heading, columns in results.parts().items():
        names = [column_name(task, metric) for task, metric in columns]
        published = results.has_paper(columns)
        head = ["weights", "seeds"]
        for name in names:
            head += [name, f"vs. {results.config.baseline}", *["paper"] * published]
        lines += [f"## {heading}", "", table_row(head), table_row(["---", *["---:"] * (len(head) - 1)])]
        for row in results.rows():
            entries = [results.entries[row.name, task.name, metric] for task, metric in columns]
            texts = []
            for entry in entries:
                texts += [measured(entry), compared(entry), *[paper(entry, results.config.missing)] * published]
            lines.append(table_row([row.name, seeds(entries), *texts]))
        lines.append("")
    lines += [f"![Scores against pre-training]({picture})", ""] if picture else []
    lines += [f"![Scores against the number in which rows or tasks differ]({sweeps})", ""] if sweeps else []
    lines += [*(f"- {note}" for note in [*explanation(results), *notes]), ""]
    return "\n".join(lines)


def to_record(results: Results, notes: Sequence[str]) -> str:
    """The table as JSON, from which ``densepath report`` makes a page: the same texts as in Markdown."""
    parts = []
    for heading, columns in results.parts().items():
        published = results.has_paper(columns)
        rows = []
        for row in results.rows():
            entries = [results.entries[row.name, task.name, metric] for task, metric in columns]
            papers = [[paper(entry, results.config.missing)] * published for entry in entries]
            texts = [t for e, own in zip(entries, papers, strict=True) for t in (measured(e), compared(e), *own)]
            rows.append([row.name, seeds(entries), *texts])
        names = [column_name(task, metric) for task, metric in columns]
        parts.append({"heading": heading, "columns": names, "published": published, "rows": rows})
    config = results.config
    record = {"title": config.title, "source": config.source, "baseline": config.baseline, "parts": parts}
    return json.dumps(record | {"notes": [*explanation(results), *notes]}, indent=1) + "\n"


def to_csv(results: Results) -> str:
    """One line per number, with the score of each seed; in percent, not rounded."""
    text = io.StringIO()
    writer = csv.writer(LineFeeds(text))
    writer.writerow(_CSV)
    for entry in results.entries.values():
        mean, std = entry.mean_std or (None, None)
        pairs = entry.comparison
        values = " ".join(f"{seed}:{value!r}" for seed, value in sorted(entry.values.items()))
        writer.writerow(
            [
                *(entry.task.table, entry.row.name, entry.task.name, entry.metric, len(entry.values), mean, std),
                results.config.baseline,
                *((pairs.n, pairs.difference, pairs.p, pairs.p_ranks) if pairs else [None] * 4),
                *(entry.paper, values),
            ]
        )
    return text.getvalue()


def seeds(entries: Sequence[Entry]) -> str:
    """The number of seeds in the numbers of a row."""
    return span(len(entry.values) for entry in entries)


def explanation(results: Results) -> list[str]:
    """Notes that explain the numbers."""
    config = results.config
    lines = [
        f"{results.done} of {results.runs} runs are done.",
        "Scores are in percent; distances (hd95, Hausdorff) in pixels, of volumes in mm. Mean ± sample standard "
        "deviation over seeds.",
        f"vs. {config.baseline}: the mean difference, and p of a two-sided paired t-test over the seeds that both "
        "rows have. The p-values are not corrected for the number of comparisons. With fewer than "
        f"{MIN_PAIRS_FOR_RANKS} seeds no rank test can give p < 0.05; otherwise table.csv has that of Wilcoxon's.",
    ]
    rows = list(results.rows())
    if config.pretrain_seed is not None and any(row.recipe for row in rows):
        line = (
            f"All seeds share one pre-training (seed {config.pretrain_seed}): the spread is that of the transfer only"
        )
        drawn = [row.name for row in rows if row.weights == RANDOM and row.sam is None]
        lines.append(line + (f", but each seed draws other weights for {', '.join(drawn)}." if drawn else "."))
    if fixed := [row.name for row in rows if row.sam is not None]:
        lines.append(f"No random numbers are drawn for {', '.join(fixed)}: one run serves all seeds, without spread.")
    lines += best_lines(results)
    lines += contrast_lines(results)
    lines += [f"Computed on: {machine}." for machine in results.hardware]
    return lines


def _shown_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
