"""Pictures show their data at the right place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from PIL import Image
from scipy.ndimage import label

from densepath.analysis.curves import draw_curves
from densepath.analysis.panels import CONCEPTS, LINES, OBJECTS, WRONG, PanelGrid, add_color_bar, compose, show
from densepath.analysis.pictures import (
    _mosaic,
    colors_of,
    draw_concepts,
    draw_detections,
    draw_views,
    paint_concepts,
)
from densepath.annotations.coco import open_split
from densepath.annotations.coco_writing import write_coco
from densepath.core.affine import from_box, identity
from densepath.core.errors import UserError
from densepath.runs.metrics import MetricsFile
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.detection.instances import encode_mask
from densepath.views.augment import Augment
from densepath.views.crops import Crop
from densepath.views.declarations import RandomView
from densepath.views.maker import ViewMaker
from densepath.views.view import Batch, View


def where(path: Path, color: str, columns: slice = slice(None)) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of a color in a part of a picture."""
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=int)[:, columns]
    rows, cols = np.nonzero(np.abs(pixels - np.round(np.array(to_rgb(color)) * 255)).max(axis=2) < 12)
    return cols.min(), rows.min(), cols.max(), rows.max()


def test_views_are_outlined_at_their_position(tmp_path: Path) -> None:
    """A view of the center of a black image, in a panel 216 px wide."""
    images = ImageBatch(torch.zeros(1, 80, 80, 3, dtype=torch.uint8), torch.tensor([[80, 80]]), torch.tensor([0]))
    maps = from_box(torch.tensor([[-0.5, -0.25]]), torch.tensor([[0.5, 0.25]]))
    batch = Batch({"query": View(torch.zeros(1, 3, 32, 32), maps)}, images.index, 0, 0, 0.0, 0.0)
    path = draw_views(images, batch, tmp_path / "views.png")
    picture = np.asarray(Image.open(path).convert("L"))
    black = np.nonzero((picture < 5).sum(axis=0) > 60)[0]  # the columns of the image
    panel_left, panel = black.min(), black.max() - black.min() + 1
    left, top, right, bottom = where(path, LINES[0], slice(0, panel_left + panel))
    assert (left - panel_left) / panel == pytest.approx(0.25, abs=0.04)
    assert (right - panel_left) / panel == pytest.approx(0.75, abs=0.04)
    assert (bottom - top) / panel == pytest.approx(0.25, abs=0.05)


def test_numbers_mark_the_same_points_in_all_views_that_show_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key shows the right half of the query, mirrored: points 2 and 3 of four."""
    images = ImageBatch(torch.zeros(1, 80, 80, 3, dtype=torch.uint8), torch.tensor([[80, 80]]), torch.tensor([0]))
    mirrored = torch.tensor([[[-0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]])
    whole = from_box(-torch.ones(1, 2), torch.ones(1, 2))
    views = {"query": View(torch.zeros(1, 3, 32, 32), whole), "key": View(torch.zeros(1, 3, 32, 64), mirrored)}
    figures = []
    monkeypatch.setattr("densepath.analysis.pictures.save", lambda figure, path: figures.append(figure))
    draw_views(images, Batch(views, images.index, 0, 0, 0.0, 0.0), tmp_path / "views.png")
    _, query, key = figures[0].axes
    assert {text.get_text(): text.get_position() for text in query.texts} == {
        **{"1": (8, 8), "2": (24, 8), "3": (24, 24), "4": (8, 24)}
    }
    assert {text.get_text(): text.get_position() for text in key.texts} == {"2": (32, 8), "3": (32, 24)}


def test_colors_of_views_are_restored() -> None:
    pixels = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    images = ImageBatch(pixels, torch.tensor([[64, 64]]), torch.tensor([0]))
    plain = Augment(scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, grayscale=0, blur=0).random_view()
    view = ViewMaker({"query": plain}, 64, 0)(images)["query"]
    np.testing.assert_allclose(colors_of(view.pixels[0]), pixels[0] / 255, atol=1e-3)


def test_each_image_has_a_row_and_each_view_a_column(tmp_path: Path) -> None:
    sizes = torch.tensor([[40, 64], [64, 48], [64, 64]])
    images = ImageBatch(torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8), sizes, torch.arange(3))
    maker = ViewMaker({"query": RandomView(), "key": RandomView()}, 32, 0)
    width, height = Image.open(draw_views(images, maker(images), tmp_path / "views.png")).size
    assert width == pytest.approx(height * 3 / 3, rel=0.1)
    assert list(tmp_path.iterdir()) == [tmp_path / "views.png"]


def test_crops_of_one_view_share_a_panel_and_are_all_outlined(tmp_path: Path) -> None:
    images = ImageBatch(torch.zeros(1, 80, 80, 3, dtype=torch.uint8), torch.tensor([[80, 80]]), torch.tensor([0]))
    corners = torch.tensor([[-0.9, -0.9], [0.1, -0.9], [-0.9, 0.1]])
    batch = Batch(
        {"local": View(torch.zeros(3, 3, 24, 24), from_box(corners, corners + 0.8))}, images.index, 0, 0, 0, 0
    )
    picture = np.asarray(Image.open(draw_views(images, batch, tmp_path / "views.png")).convert("RGB"), dtype=int)
    of_outline = np.abs(picture - np.round(np.array(to_rgb(LINES[0])) * 255)).max(axis=2) < 12
    panel = of_outline.shape[1] // 2
    outlines, _ = label(of_outline[:, :panel], np.ones((3, 3)))
    assert len(np.unique(outlines)) - 1 >= 3
    tile = colors_of(batch["local"].pixels[0])
    assert _mosaic([tile] * 3).shape == (49, 49, 3)


def test_volumes_are_drawn_by_their_middle_slices(tmp_path: Path) -> None:
    """A bright box in the middle of a volume is bright in the picture of the volume, and in that of its view."""
    spec = PixelSpec(3, 2, (0.0, 1000.0), (0.5, 0.5), (0.25, 0.25))
    volume = torch.zeros(1, 16, 40, 40, 2, dtype=torch.int16)
    volume[0, 6:10, 10:30, 10:30, 0] = 1000
    images = ImageBatch(volume, torch.tensor([[16, 40, 40]]), torch.tensor([0]))
    crop = Crop(scale=(1, 1), ratio=(1, 1), flip=())
    batch = ViewMaker({"a": RandomView(crop)}, (8, 40, 40), 0, spec)(images)
    shown = colors_of(batch["a"].pixels[0], spec)
    assert shown.shape == (40, 40, 3) and shown[20, 20].min() > 0.99 and shown[2, 2].max() < 0.01
    picture = np.asarray(Image.open(draw_views(images, batch, tmp_path / "views.png", spec)).convert("L"))
    middle = picture.shape[0] // 2 + 12
    for left in (0, picture.shape[1] // 2):
        part = picture[middle, left : left + picture.shape[1] // 2]
        assert part[len(part) // 2] > 250 and (part < 5).sum() > 0.2 * len(part)


def test_pictures_of_volumes_are_upright_and_in_mm(tmp_path: Path) -> None:
    """The anterior side is on top, the patient's right on the left, and 40 rows of 2 mm are as long as 80 of 1 mm."""
    spec = PixelSpec(3, 1, (0.0, 1.0), (0.0,), (1.0,))
    volume = torch.zeros(1, 4, 40, 80, 1)
    volume[0, :, 25:, 50:] = 1  # anterior, and on the right
    images = ImageBatch(volume, torch.tensor([[4, 40, 80]]), torch.tensor([0]), spacing=torch.tensor([[3.0, 2.0, 1.0]]))
    whole = View(F.interpolate(volume.movedim(-1, 1), (4, 32, 32)), identity(1, 3))
    batch = Batch({"a": whole}, images.index, 0, 0, 0, 0)
    shown = colors_of(batch["a"].pixels[0], spec)
    assert shown[2, 2].min() > 0.9 and max(shown[2, -2].max(), shown[-2, 2].max()) < 0.1
    picture = np.asarray(Image.open(draw_views(images, batch, tmp_path / "views.png", spec)).convert("RGB"), dtype=int)
    dark = (picture.max(axis=2) < 8) & (np.cumsum(np.ones_like(picture[..., 0]), axis=0) > 40)  # below the titles
    for half in np.array_split(dark, 2, axis=1):  # the image, then the view: an L that is dark below and on the right
        rows, columns = np.nonzero(half)
        down, across = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 0.9 < down / across < 1.1
        inner = half[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert inner[-down // 4 :].mean() > 0.8 and inner[:, -across // 4 :].mean() > 0.6
        assert inner[: down // 4, : across // 4].mean() < 0.2


def test_more_views_than_colors_of_outlines_are_drawn(tmp_path: Path) -> None:
    """Of the picture's width, nine panels cover as much as seven."""
    red = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    red[..., 0] = 255
    images, shares = ImageBatch(red, torch.tensor([[40, 40]]), torch.tensor([0])), []
    for names in ("abcdef", "abcdefgh"):
        views = {name: RandomView(Crop(scale=(0.9, 1.0), flip=())) for name in names}
        path = draw_views(images, ViewMaker(views, 32, 0)(images), tmp_path / "views.png")
        row = np.asarray(Image.open(path).convert("RGB"), dtype=int)[-40]
        shares.append(((row[:, 0] > 240) & (row[:, 1] < 15)).mean())
    assert shares[1] > 0.9 * shares[0] > 0.5


def test_concepts_are_colored_from_dark_to_light_for_any_ids() -> None:
    tile = np.full((64, 64, 3), 40, np.uint8)
    tile[:, 32:] = 200
    for labels in (np.array([[0, 1]]), np.array([[7, 2]])):
        painted = paint_concepts(tile, labels, strength=1.0)
        np.testing.assert_allclose(painted[32, 10], to_rgb(CONCEPTS[0]), atol=1e-6)
        np.testing.assert_allclose(painted[32, 54], to_rgb(CONCEPTS[-1]), atol=1e-6)


def test_an_entry_of_a_label_map_covers_its_part_of_the_tile() -> None:
    tile = np.full((60, 90, 3), 100, np.uint8)
    labels = np.arange(6).reshape(2, 3)
    painted = paint_concepts(tile, labels, strength=1.0)
    parts = painted.reshape(2, 30, 3, 30, 3)[:, 15, :, 15]
    assert len(np.unique(parts.reshape(6, 3), axis=0)) == 6
    assert np.array_equal(painted[3:27, 3:27], np.broadcast_to(painted[15, 15], (24, 24, 3)))


def test_a_picture_of_concepts_has_a_column_for_each_source(tmp_path: Path) -> None:
    tiles = [np.full((64, 64, 3), 90, np.uint8)] * 2
    maps = [np.zeros((4, 4), int)] * 2
    one = Image.open(draw_concepts(tiles, {"a": maps}, tmp_path / "one.png")).width
    two = Image.open(draw_concepts(tiles, {"a": maps, "b": maps}, tmp_path / "two.png")).width
    three = Image.open(draw_concepts(tiles, {"a": maps, "b": maps, "c": maps}, tmp_path / "three.png")).width
    assert three - two == pytest.approx(two - one, abs=1)


def test_curves_have_a_panel_for_each_column_and_a_color_for_each_run(tmp_path: Path) -> None:
    for name, level in (("low", 1.0), ("high", 2.0)):
        metrics = MetricsFile(tmp_path / f"{name}.csv")
        for step in range(100):
            metrics.write({"step": step, "epoch": step / 10, "loss": level, "lr": 0.1})
    runs = {name: tmp_path / f"{name}.csv" for name in ("low", "high")}
    path = draw_curves(runs, tmp_path / "curves.png", columns=["loss"])
    low, high = (where(path, color) for color in LINES[:2])
    assert low[3] > high[3]  # the lower loss is drawn lower
    both = draw_curves(runs, tmp_path / "both.png")
    assert Image.open(both).width == 2 * Image.open(path).width


def test_curves_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to draw"):
        draw_curves({"run": tmp_path / "none.csv"}, tmp_path / "curves.png")


def test_detections_have_the_color_of_the_true_objects_they_match(tmp_path: Path) -> None:
    labels = np.zeros((80, 80), np.int32)
    labels[10:40, 10:40] = 1
    sample = ("tissue", np.full((80, 80, 3), 120, np.uint8), labels)
    write_coco(tmp_path / "data", {"test": [sample]})
    found, wrong = np.zeros((2, 80, 80), bool)
    found[12:40, 10:38] = True
    wrong[50:70, 50:70] = True
    results = [
        {"image_id": 1, "category_id": 1, "score": score, "segmentation": encode_mask(mask)}
        for mask, score in ((found, 0.9), (wrong, 0.8), (~found, 0.1))
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "predictions.json").write_text(json.dumps(results))
    images = open_split(tmp_path / "data", "test")
    path = draw_detections(images, {"run": tmp_path / "run"}, tmp_path / "found.png", indices=[0])
    half = Image.open(path).width // 2
    left, top, right, bottom = where(path, OBJECTS[0], slice(half, None))
    assert right - left == pytest.approx(216 * 28 / 80, abs=8)  # the panel is 216 px wide
    wrong_left, wrong_top, wrong_right, _ = where(path, WRONG, slice(half, None))
    assert wrong_left > right
    assert wrong_top > bottom > top
    assert wrong_right - wrong_left == pytest.approx(216 * 20 / 80, abs=8)
    (tmp_path / "run" / "predictions.json").write_text("[]")
    path = draw_detections(images, {"run": tmp_path / "run"}, tmp_path / "missed.png", indices=[0])
    left, _, right, _ = where(path, WRONG, slice(half, None))  # the true object, dashed
    assert right - left == pytest.approx(216 * 30 / 80, abs=8)
    with pytest.raises(ValueError, match="zero-size"):
        where(path, WRONG, slice(0, half))


def test_pictures_are_combined_without_resampling(tmp_path: Path) -> None:
    colors = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}
    for number, (name, color) in enumerate(colors.items(), 1):
        Image.new("RGB", (100 * number, 60), color).save(tmp_path / f"{name}.png")
    files = {name: tmp_path / f"{name}.png" for name in colors}
    columns = [[("Red", files["red"]), ("Green", files["green"])], [("Blue", files["blue"])]]
    path = compose(columns, tmp_path / "all.png")
    places = {name: where(path, name) for name in colors}
    for number, (left, top, right, bottom) in enumerate(places.values(), 1):
        assert (right - left + 1, bottom - top + 1) == (100 * number, 60)
    assert places["green"][0] == places["red"][0] == 0
    assert places["green"][1] > places["red"][3]
    assert places["blue"][0] > places["green"][2]


def test_a_bar_of_colors_lies_below_the_panels_which_stay_as_they_are() -> None:
    grid = PanelGrid(2, 2, titles=["one", "two"])
    figure, panels = grid.figure, [axes for row in grid.axes for axes in row]
    tops = [figure.bbox.height - axes.get_window_extent().y1 for axes in panels]
    sizes = [axes.get_window_extent().size for axes in panels]
    for axes in panels:
        show(axes, np.zeros((4, 4, 3)))
    add_color_bar(figure, "viridis", {0.0: "1/4", 0.5: "1", 1.0: "4"}, "attention")
    figure.draw_without_rendering()
    assert np.allclose([figure.bbox.height - axes.get_window_extent().y1 for axes in panels], tops)
    assert np.allclose([axes.get_window_extent().size for axes in panels], sizes)
    whole = figure.axes[-1].get_tightbbox()
    assert whole is not None and whole.y1 < min(axes.get_window_extent().y0 for axes in panels)
    assert figure.bbox.contains(*whole.min) and figure.bbox.contains(*whole.max)
