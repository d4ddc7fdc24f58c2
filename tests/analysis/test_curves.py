"""Curves of runs, with legends beside the data."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from densepath.analysis import curves, show_similarity, show_tokens
from densepath.analysis.curves import draw_run, main_columns, show_curves
from densepath.analysis.similarity import Distribution
from densepath.core.errors import UserError
from densepath.core.result import Result
from densepath.runs.metrics import MetricsFile


def run(folder: Path, **columns: float) -> Path:
    metrics = MetricsFile(folder / "metrics.csv")
    for step in range(1, 4):
        metrics.write({"step": step, "epoch": step, "waiting": 0.0, **{name: v / step for name, v in columns.items()}})
    return folder


def test_the_curves_of_a_run_are_its_losses_rate_and_scores(tmp_path: Path) -> None:
    losses = {"loss": 5.0, "a_loss": 2.0, "a_loss_vs_chance": 0.5, "images_per_second": 3.0}
    folder = run(tmp_path / "run", **losses, lr=0.1, probe_dice=60.0)
    assert main_columns([folder / "metrics.csv"]) == ["loss", "a_loss_vs_chance", "lr", "probe_dice"]
    assert draw_run(folder) == folder / "curves.png" and (folder / "curves.png").stat().st_size > 0
    detector = run(tmp_path / "detector", loss=1.0, loss_mask=0.5, lr=0.1)
    assert main_columns([detector / "metrics.csv"]) == ["loss", "loss_mask", "lr"]
    assert show_curves(runs=[str(folder), str(detector)], out=tmp_path / "two.png").is_file()
    assert show_curves(runs=Result(folder, {"loss": 5.0}), out=tmp_path / "one.png").is_file()  # type: ignore[arg-type]
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("# densepath 1\nmethod: concl\n")
    for wrong, expected in (
        ({"runs": [str(folder), str(tmp_path / "none")]}, "none is not the folder of a run"),
        ({"runs": [str(tmp_path)]}, "is not the folder of a run"),
        ({"runs": [str(begun)]}, "nothing to draw"),
        ({"runs": [str(folder)], "columns": ["los"]}, "no run has measured los; there are: .*a_loss"),
        ({"runs": [str(folder)] * 7}, "7 runs are given; give from 1 to 6"),
    ):
        with pytest.raises(UserError, match=expected):
            show_curves(out=tmp_path / "wrong.png", **wrong)


def test_a_run_with_folds_is_their_mean_and_a_thin_line_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure))
    for fold, value in enumerate((1.0, 3.0)):
        run(tmp_path / f"classes/fold_{fold}", loss=value, validation_auc=60.0)
        run(tmp_path / f"seeds/seed_{fold}/fold_0", loss=value)
        run(tmp_path / f"models/dsmil/fold_{fold}/lr0.1_wd0", loss=value)
    run(tmp_path / "one", loss=1.0)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("# densepath 1\nfolds: 2\n")
    names = [str(tmp_path / name) for name in ("classes", "seeds", "models/dsmil", "one", "begun")]
    show_curves(runs=names, out=tmp_path / "curves.png")
    loss, auc = figures[0].axes
    assert (loss.get_title(loc="left"), auc.get_title(loc="left")) == ("loss", "validation auc")
    drawn = [line.get_ydata()[0] for line in loss.lines if len(line.get_xdata())]
    assert drawn == [1.0, 3.0, 2.0] * 3 + [1.0]  # the mean comes last
    assert len({line.get_color() for line in loss.lines[:3]}) == 1
    texts = [text.get_text() for legend in figures[0].legends for text in legend.get_texts()]
    assert texts == ["classes", "seeds", "dsmil", "one", "begun (not measured yet)"]
    with pytest.raises(UserError, match=r"models has several models; name some of them, such as \S*models/dsmil"):
        show_curves(runs=[str(tmp_path / "models")], out=tmp_path / "curves.png")


def test_labels_of_steps_do_not_touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure))
    metrics = MetricsFile(tmp_path / "run" / "metrics.csv")
    for step in range(20, 1001, 20):
        metrics.write({"step": step, **{f"loss_{name}": 1.0 for name in "abcd"}})
    show_curves(runs=[str(tmp_path / "run")], out=tmp_path / "curves.png")
    figures[0].draw_without_rendering()
    for axes in figures[0].axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert all(one.x1 + 4 < other.x0 for one, other in pairwise(sorted(boxes, key=lambda box: box.x0)))


def test_legends_lie_outside_the_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    for module in (curves, show_similarity, show_tokens):
        monkeypatch.setattr(module, "save", lambda figure, path: figures.append(figure))
    names = [run(tmp_path / f"a run with a long name {k}", loss=1.0) for k in range(6)]
    show_curves(runs=list(map(str, names)), out=tmp_path / "curves.png")
    flat = Distribution()
    flat.add(torch.linspace(0, 1, 1000))
    show_similarity.draw_similarities({"w": {"one": flat, "two": flat}, "v": {"one": flat}}, tmp_path / "s.png")
    points = np.random.default_rng(0).normal(size=(50, 2))
    show_tokens._draw({"w": show_tokens.Separation((points, points + 1), 0.1, 0.2)}, tmp_path / "t.png")
    assert len(figures) == 3
    for figure in figures:
        figure.draw_without_rendering()
        legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
        assert legends
        for legend in legends:
            box = legend.get_window_extent()
            assert not any(axes.get_window_extent().overlaps(box) for axes in figure.axes)
            assert figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max)


def test_steps_are_whole_numbers_and_the_dot_of_one_measurement_is_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure))
    short = tmp_path / "short"
    MetricsFile(short / "metrics.csv").write({"step": 3, "loss": 1.0})
    show_curves(runs=[str(run(tmp_path / "long", loss=1.0)), str(short)], out=tmp_path / "curves.png")
    figure = figures[0]
    figure.draw_without_rendering()
    show_curves(runs=[str(short)], out=tmp_path / "curves.png")
    figures[1].draw_without_rendering()
    assert all(float(tick).is_integer() for each in figures for axes in each.axes for tick in axes.get_xticks())
    dots = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert len(dots) == 1 and not dots[0].get_clip_on()
