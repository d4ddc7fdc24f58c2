"""The statistics, compared with plain loops."""

import itertools
import math
import random
from types import SimpleNamespace

import pytest
from scipy.special import betainc
from scipy.stats import wilcoxon

from densepath.benchmark.best import best_lines
from densepath.benchmark.config import load_table
from densepath.benchmark.contrasts import contrast
from densepath.benchmark.results import Entry
from densepath.benchmark.statistics import compare, mean_std
from densepath.benchmark.verb import _chosen

RUNS = {0: 52.1, 1: 55.4, 2: 53.3, 3: 56.0, 4: 54.2, 5: 53.7, 6: 57.0}
BASE = {0: 50.0, 1: 52.5, 2: 53.9, 3: 52.6, 4: 51.1, 5: 53.0, 6: 51.2}


def first(values, n):
    return {seed: values[seed] for seed in range(n)}


def paired_t(values, baseline):
    """Two-sided p by textbook formulas: t from sums, its tail as an incomplete beta function."""
    d = [values[seed] - baseline[seed] for seed in sorted(values)]
    n = len(d)
    mean = sum(d) / n
    variance = sum((x - mean) ** 2 for x in d) / (n - 1)
    t = mean / math.sqrt(variance / n)
    return betainc((n - 1) / 2, 0.5, (n - 1) / (n - 1 + t * t))


def signed_rank(values, baseline):
    """Two-sided p by enumerating all signs of the ranks."""
    d = [values[seed] - baseline[seed] for seed in sorted(values)]
    ranks = {place: rank for rank, place in enumerate(sorted(range(len(d)), key=lambda i: abs(d[i])), 1)}
    least = min(sum(ranks[i] for i in ranks if d[i] > 0), sum(ranks[i] for i in ranks if d[i] < 0))
    subsets = itertools.chain.from_iterable(itertools.combinations(ranks.values(), k) for k in range(len(d) + 1))
    sums = [sum(subset) for subset in subsets]
    return min(1.0, 2 * sum(total <= least for total in sums) / len(sums))


def test_differences_that_vary_by_rounding_have_no_p_value_and_no_interval():
    values, baseline = {0: 50.0, 1: 51.0 + 1e-11, 2: 52.0}, {0: 49.0, 1: 50.0, 2: 51.0}
    assert compare(values, baseline).p is None
    assert contrast({"a": values, "b": baseline}, ["a"], ["b"]).half_width is None


def test_mean_and_sample_standard_deviation():
    values = [1.0, 2.0, 4.0]
    assert mean_std(values) == pytest.approx((7 / 3, math.sqrt(sum((x - 7 / 3) ** 2 for x in values) / 2)))
    assert mean_std([3.0]) == (3.0, None)


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_p_values_equal_the_textbook_formulas(n):
    values, baseline = first(RUNS, n), first(BASE, n)
    found = compare(values, baseline)
    assert found.n == n
    assert found.difference == pytest.approx(sum(values[s] - baseline[s] for s in range(n)) / n)
    assert found.p == pytest.approx(paired_t(values, baseline), rel=1e-9)
    assert found.p_ranks == (pytest.approx(signed_rank(values, baseline)) if n >= 6 else None)


def test_seeds_are_paired_in_any_order():
    seeds = list(RUNS)
    random.Random(0).shuffle(seeds)
    assert compare({seed: RUNS[seed] for seed in seeds}, BASE) == compare(RUNS, BASE)


def test_only_common_seeds_count():
    assert compare({0: 1.0, 1: 5.0}, {1: 3.0, 2: 9.0}).difference == 2.0
    assert compare({0: 1.0}, {1: 3.0}) is None


def test_one_seed_and_equal_differences_have_no_p():
    assert compare({0: 2.0}, {0: 1.0}).p is None
    assert compare({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).p is None
    assert compare(RUNS, RUNS).p is None


def test_scores_that_are_equal_but_for_rounding_have_one_rank():
    """Accuracies are multiples of 1 / 30, whose differences in float64 differ in the last digits."""
    counts = [(20, 19), (22, 21), (21, 22), (25, 24), (19, 17), (23, 21), (24, 25)]
    values, baseline = ({seed: 100 * pair[k] / 30 for seed, pair in enumerate(counts)} for k in (0, 1))
    whole = wilcoxon([one - other for one, other in counts]).pvalue
    assert compare(values, baseline).p_ranks == pytest.approx(whole)


def test_the_papers_p_value_is_of_its_two_best_rows_whatever_is_computed():
    table = load_table("pcrl_figure4a")
    for known in (table, _chosen(table, (), ["C2L"], None)):
        task = known.tasks[0]
        rows = [(row, row.paper[task.name][0]) for row in known.rows]
        entries = {
            (row.name, task.name, "macro_auc"): Entry(row, task, "macro_auc", {}, None, n)
            for row, n in rows
            if row.name != "PCRL"  # left out without its input
        }
        (line,) = best_lines(SimpleNamespace(config=known, entries=entries))
        assert "the paper: PCRL is 2.4 above C2L (p = 0.00052)" in line


@pytest.mark.parametrize(
    ("metric", "line"),
    [
        ("mean_hd95", "b is 4.5 below c (p = 0.012); the paper: b is 1.0 below a (p = 0.03)."),
        ("object_hausdorff_px", "b is 4.5 below c (p = 0.012); the paper: b is 1.0 below a (p = 0.03)."),
        ("dice", "a is 31.0 above c (p = 0.00035); the paper: c is 6.0 above a (p = 0.03)."),
    ],
)
def test_the_best_row_of_a_distance_is_the_lowest(metric, line):
    """Differences are those of common seeds: b has another one."""
    task = SimpleNamespace(name="seg", table="Table 1", column="CT", metrics=(metric,))
    scores = {"a": {0: 40.0, 1: 42.0, 2: 41.0}, "b": {0: 5.0, 1: 6.0, 2: 5.5, 3: 7.5}, "c": {0: 9.0, 1: 10.0, 2: 11.0}}
    rows, paper = {name: SimpleNamespace(name=name) for name in scores}, {"a": 3.0, "b": 2.0, "c": 9.0}
    entries = {(n, "seg", metric): Entry(rows[n], task, metric, scores[n], None, paper[n]) for n in scores}
    config = SimpleNamespace(tasks=[task], p_values={"seg": 0.03}, published={"seg": paper})
    (found,) = best_lines(SimpleNamespace(config=config, entries=entries))
    assert found.endswith(f"best against second best: {line}")
