"""Tokens of cells and of the background: which is which, and how far they are apart."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from densepath.analysis import show_tokens as module
from densepath.analysis import source
from densepath.analysis.separation import Gaussian, bhattacharyya, jensen_shannon
from densepath.analysis.show_tokens import separate, show_tokens
from densepath.core.errors import UserError
from densepath.sources.pixel_source import PixelSpec
from densepath.synthetic.tissue import write_tiles

SMALL: dict[str, Any] = {"weights": ["random"], "backbone": "test_vit", "devices": "cpu", "mpp": 0.5, "perplexity": 5.0}


def gaussian(mean: tuple[float, float], rows: tuple[tuple[float, float], tuple[float, float]]) -> Gaussian:
    return Gaussian(np.array(mean), np.array(rows))


A = gaussian((0, 0), ((1.0, 0.3), (0.3, 2.0)))
B = gaussian((1, -1), ((3.0, -0.5), (-0.5, 0.5)))


def test_bhattacharyya_is_the_overlap_of_the_densities() -> None:
    """exp(-distance) is the integral of sqrt(p q); equal covariances leave an eighth of Mahalanobis' distance."""
    along = np.linspace(-15, 15, 601)
    points = np.stack(np.meshgrid(along, along), -1).reshape(-1, 2)
    overlap = np.exp((A.log_density(points) + B.log_density(points)) / 2).sum() * (along[1] - along[0]) ** 2
    assert bhattacharyya(A, B) == pytest.approx(-np.log(overlap), rel=1e-6)
    shifted = Gaussian(A.mean + np.array([2.0, 1.0]), A.covariance)
    inverse = np.linalg.inv(A.covariance)
    assert bhattacharyya(A, shifted) == pytest.approx(np.array([2, 1]) @ inverse @ np.array([2, 1]) / 8)
    assert bhattacharyya(A, A) == pytest.approx(0, abs=1e-12) and bhattacharyya(A, B) == bhattacharyya(B, A)


def test_jensen_shannon_is_that_of_its_integral() -> None:
    along = np.linspace(-15, 15, 601)
    points = np.stack(np.meshgrid(along, along), -1).reshape(-1, 2)
    p, q = np.exp(A.log_density(points)), np.exp(B.log_density(points))
    area, middle = (along[1] - along[0]) ** 2, (p + q) / 2

    def entropy(density: np.ndarray) -> float:
        return -float((density[density > 0] * np.log(density[density > 0])).sum() * area)

    assert jensen_shannon(A, B) == pytest.approx(entropy(middle) - (entropy(p) + entropy(q)) / 2, abs=1e-6)
    far = Gaussian(A.mean + 100, A.covariance)
    assert jensen_shannon(A, A) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(A, far) == pytest.approx(np.log(2)) and jensen_shannon(A, B) == jensen_shannon(B, A)


def test_distances_do_not_depend_on_the_axes() -> None:
    """Both are the same after any affine map of the plane."""
    map_, shift = np.array([[3.0, 1.0], [-2.0, 0.5]]), np.array([5.0, -7.0])
    moved = [Gaussian(map_ @ each.mean + shift, map_ @ each.covariance @ map_.T) for each in (A, B)]
    assert bhattacharyya(*moved) == pytest.approx(bhattacharyya(A, B))
    assert jensen_shannon(*moved) == pytest.approx(jensen_shannon(A, B), abs=1e-6)


def test_separate_groups_are_far_apart() -> None:
    rng = np.random.default_rng(0)
    near, far = (rng.standard_normal((2, 60, 8)) + np.array([0, shift])[:, None, None] for shift in (0.0, 8.0))
    mixed, apart = (separate((both[0], both[1]), 10.0, 0) for both in (near, far))
    assert mixed.divergence < 0.1 < 0.6 < apart.divergence and mixed.distance < 0.2 < 1 < apart.distance
    with pytest.raises(UserError, match="perplexity is 200, but there are 120 tokens"):
        separate((near[0], near[1]), 200.0, 0)


class MeanColor(nn.Module):
    """A backbone whose tokens are the mean colors of patches of 16 pixels."""

    deepest, net = 4, None

    def check_size(self, *size: int) -> None: ...

    def forward(self, pixels: Tensor) -> dict[int, Tensor]:
        return {4: nn.functional.avg_pool2d(pixels, 16)}


def test_a_token_is_one_of_cells_where_a_center_lies_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches with cells are white, the others black; the image is not square, and its middle is used."""
    rng = np.random.default_rng(0)
    white = rng.random((8, 8)) < 0.4  # of the crop of 128 px from the middle 7/8 of 146 px
    step, places = 128 / 8, []
    image = np.zeros((146, 200, 3), np.uint8)
    top, left = (146 - 128) / 2, (200 - 128) / 2
    for row, column in np.argwhere(white):
        y, x = top + row * step, left + column * step
        image[round(y) : round(y + step), round(x) : round(x + step)] = 255
        places.append([(x + 3 + 10 * rng.random()) / 200 * 2 - 1, (y + 3 + 10 * rng.random()) / 146 * 2 - 1])
    Image.fromarray(image).save(tmp_path / "a.png")
    spec = PixelSpec()
    monkeypatch.setattr(source, "pretrained_backbone", lambda *_: (MeanColor(), spec, 0, ""))
    monkeypatch.setattr(module, "_finder", lambda *_: lambda position: np.array(places))
    taken: list[Any] = []

    def keep(groups: Any, *_: Any) -> Any:
        taken.append(groups)
        raise UserError("seen")

    monkeypatch.setattr(module, "separate", keep)
    with pytest.raises(UserError, match="seen"):
        show_tokens(data=tmp_path / "a.png", weights=["x"], out=tmp_path / "out" / "p.png", view_size=128)
    colors = [spec.restore(torch.tensor(group).float().T[None, :, :, None]).flatten() for group in taken[0]]
    assert len(taken[0][0]) == len(taken[0][1]) == min(white.sum(), (~white).sum())
    assert float(colors[0].min()) > 0.9 and float(colors[1].max()) < 0.1


def test_features_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Damaged(MeanColor):
        def forward(self, pixels: Tensor, *_: Any) -> dict[int, Tensor]:
            return {stage: each * torch.nan for stage, each in super().forward(pixels).items()}

    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(source, "pretrained_backbone", lambda *_: (Damaged(), PixelSpec(), 0, ""))
    monkeypatch.setattr(module, "_finder", lambda *_: lambda position: np.array([[x / 10, 0.1] for x in range(-9, 9)]))
    with pytest.raises(UserError, match="the feature map has numbers that are not finite"):
        show_tokens(data=tmp_path / "a.png", weights=["x"], out=tmp_path / "p.png", view_size=64)


def test_the_picture_and_the_table(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", count=4, size=128)
    out = show_tokens(data=tmp_path / "tiles", out=tmp_path / "t.png", view_size=128, tokens=40, **SMALL)
    with (tmp_path / "t.csv").open() as file:
        row = next(csv.DictReader(file))
    assert float(row["jensen_shannon"]) == pytest.approx(out["jensen_shannon"], rel=1e-5)
    assert 0 <= out["jensen_shannon"] < np.log(2) and out["bhattacharyya"] >= 0
    assert row["weights"] == "random" and 3 <= int(row["tokens_of_each"]) <= 40
    assert Image.open(tmp_path / "t.png").width > 300
    with pytest.raises(UserError, match=r"µm per pixel, which finding cells needs; give --mpp"):
        show_tokens(data=tmp_path / "tiles", out=tmp_path / "t.png", **{**SMALL, "mpp": None})
    (tmp_path / "labels.csv").write_text("image,label\na,1\n")
    with pytest.raises(UserError, match=r"labels\.csv exists, and the table of"):
        show_tokens(data=tmp_path / "tiles", out=tmp_path / "labels.png", **SMALL)
    for wrong, why in (({"mpp": 0.0}, "mpp is 0.0; give µm per pixel"), ({"view_size": 0}, "images have 0 x 0 px")):
        with pytest.raises(UserError, match=why):
            show_tokens(data=tmp_path / "tiles", out=tmp_path / "t.png", **{**SMALL, **wrong})


def test_no_outline_of_a_group_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(module, "save", lambda figure, path: figures.append(figure))
    corners = np.array([(x, y) for x in (0.0, 1.0) for y in (0.0, 1.0)])  # their outline lies outside all points
    module._draw({"w": module.Separation((corners, corners + 0.5), 0.1, 0.2)}, tmp_path / "t.png")
    figures[0].draw_without_rendering()
    (axes,) = figures[0].axes
    assert len(axes.patches) == 2
    for outline in axes.patches:
        box = outline.get_window_extent()
        assert axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
