"""A table's results as Markdown, CSV and HTML, with the same numbers in each."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence

from densepath.benchmark.contrasts import contrast_lines
from densepath.benchmark.results import Entry, Results, column_name
from densepath.benchmark.statistics import MIN_PAIRS_FOR_RANKS

NONE = "—"
_CSV = (
    *("table", "row", "task", "metric", "n", "mean", "std", "baseline", "pairs", "difference"),
    *("p_t_test", "p_signed_rank", "paper", "values"),
)
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;color:#2b2b33;max-width:75em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:1em 0}th,td{padding:.25em .8em;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead{border-bottom:1.5px solid #2b2b33}tr.base{background:#f1f1f5}
td.paper{color:#8a8a96}td.far{color:#5a5a66}tbody tr{border-bottom:1px solid #e6e6ec}img{max-width:100%}"""


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


def paper(entry: Entry) -> str:
    """The paper's number."""
    return NONE if entry.paper is None else f"{entry.paper:.1f}"


def to_markdown(results: Results, notes: Sequence[str], picture: str | None) -> str:
    """The table as Markdown."""
    lines = [f"# {results.config.title}", "", *([results.config.source, ""] if results.config.source else [])]
    for heading, columns in results.parts().items():
        names = [column_name(task, metric) for task, metric in columns]
        published = results.has_paper(columns)
        head = ["weights", "seeds"]
        for name in names:
            head += [name, f"vs. {results.config.baseline}", *["paper"] * published]
        lines += [f"## {heading}", "", _line(head), _line(["---", *["---:"] * (len(head) - 1)])]
        for row in results.rows():
            entries = [results.entries[row.name, task.name, metric] for task, metric in columns]
            texts = [text for e in entries for text in (measured(e), compared(e), *[paper(e)] * published)]
            lines.append(_line([row.name, seeds(entries), *texts]))
        lines.append("")
    lines += [f"![Scores against pre-training]({picture})", ""] if picture else []
    lines += [*(f"- {note}" for note in [*explanation(results), *notes]), ""]
    return "\n".join(lines)


def to_html(results: Results, notes: Sequence[str], picture: str | None) -> str:
    """The table as HTML."""
    escape = html.escape
    lines = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(results.config.title)}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{escape(results.config.title)}</h1>",
        f"<p>{escape(results.config.source)}</p>",
    ]
    for heading, columns in results.parts().items():
        published = results.has_paper(columns)
        lines.append(f"<h2>{escape(heading)}</h2><table><thead><tr><th></th><th></th>")
        lines += [f'<th colspan="{2 + published}">{escape(column_name(*column))}</th>' for column in columns]
        lines.append("</tr><tr><th>weights</th><th>seeds</th>")
        head = f"<th>here</th><th>vs. {escape(results.config.baseline)}</th>" + "<th>paper</th>" * published
        lines += [head] * len(columns)
        lines.append("</tr></thead><tbody>")
        for row in results.rows():
            entries = [results.entries[row.name, task.name, metric] for task, metric in columns]
            kind = ' class="base"' if row.name == results.config.baseline else ""
            lines.append(f"<tr{kind}><td>{escape(row.name)}</td><td>{escape(seeds(entries))}</td>")
            for entry in entries:
                lines.append(f'<td>{measured(entry)}</td><td class="far">{escape(compared(entry))}</td>')
                lines += [f'<td class="paper">{paper(entry)}</td>'] * published
            lines.append("</tr>")
        lines.append("</tbody></table>")
    lines += [f'<p><img src="{escape(picture)}" alt="Scores against pre-training"></p>'] if picture else []
    items = [f"<li>{escape(note)}</li>" for note in [*explanation(results), *notes]]
    lines += ["<ul>", *items, "</ul></body></html>", ""]
    return "\n".join(lines)


def to_csv(results: Results) -> str:
    """One line per number, with the score of each seed; in percent, not rounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
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
    counts = sorted({len(entry.values) for entry in entries})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def explanation(results: Results) -> list[str]:
    """Notes that explain the numbers."""
    config = results.config
    lines = [
        f"{results.done} of {results.runs} runs are done.",
        "In percent, unless px is given; mean ± sample standard deviation over seeds.",
        f"vs. {config.baseline}: the mean difference, and p of a two-sided paired t-test over the seeds that both "
        "rows have. The p-values are not corrected for the number of comparisons. With fewer than "
        f"{MIN_PAIRS_FOR_RANKS} seeds no rank test can give p < 0.05; with more, table.csv has that of Wilcoxon's.",
    ]
    if config.pretrain_seed is not None and any(row.recipe for row in config.rows):
        lines.append(
            f"All seeds share one pre-training (seed {config.pretrain_seed}), as in the paper: the spread is that of "
            "the transfer only."
        )
    lines += contrast_lines(results)
    lines += [f"Computed on: {machine}." for machine in results.hardware]
    return lines


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _shown_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
