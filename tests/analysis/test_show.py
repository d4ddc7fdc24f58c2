"""The verbs that draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densepath.analysis.pictures import draw_concepts
from densepath.analysis.reconstruction import draw_reconstruction
from densepath.analysis.show import show_concepts, show_reconstruction, show_views
from densepath.core.errors import UserError
from densepath.methods import Reconstruction
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import save_backbone
from densepath.training.pretrain import pretrain


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    folder = tmp_path / "tiles"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_views_are_reproducible_and_differ_between_epochs(tiles: Path, tmp_path: Path) -> None:
    options = {"data": tiles, "config": "concl_small", "count": 2, "view_size": 64}
    first, again, later = (
        Image.open(show_views(out=tmp_path / f"{n}.png", epoch=epoch, **options)).tobytes()
        for n, epoch in enumerate((0, 0, 1))
    )
    assert first == again
    assert first != later


def test_a_recipe_determines_the_views(tiles: Path, tmp_path: Path) -> None:
    options = {"data": tiles, "count": 1, "view_size": 64}
    concl = Image.open(show_views(out=tmp_path / "concl.png", config="concl", **options)).width
    moco = Image.open(show_views(out=tmp_path / "moco.png", config="moco_v2", **options)).width
    assert 1.2 < concl / moco < 1.5  # four columns against three


def test_options_of_the_method_determine_the_views(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views of a recipe that does not resize are windows of their own size."""
    shown = []
    monkeypatch.setattr("densepath.analysis.show.draw_views", lambda images, batch, *rest: shown.append(batch))
    for resize in ("true", "false"):
        recipe = tmp_path / f"{resize}.yaml"
        recipe.write_text(f"method: model_genesis\nbackbone: resnet10t\nmethod_options: {{resize: {resize}}}\n")
        show_views(data=tiles, out=tmp_path / "views.png", config=recipe, count=3, view_size=64)
    sides = [torch.linalg.det(batch["image"].map[..., :2]).abs() for batch in shown]
    assert not torch.allclose(sides[0], torch.tensor(0.25)) and torch.allclose(sides[1], torch.tensor(0.25))


def test_views_that_the_options_of_the_method_leave_out_are_not_shown(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr("densepath.analysis.show.draw_views", lambda images, batch, *rest: shown.append(batch))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: dino\nbackbone: test_resnet\nmethod_options: {local_crops: 0, prototypes: 8}\n")
    show_views(data=tiles, out=tmp_path / "views.png", config=recipe, count=1, view_size=64)
    assert list(shown[0].views) == ["first", "second"]


def test_concepts_of_several_weights_are_shown_side_by_side(tiles: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    save_backbone(tmp_path / "other.safetensors", build_backbone("resnet18"))
    options = {"data": tiles, "count": 2, "stages": (3, 4)}
    both = [str(tmp_path / "other.safetensors"), "random"]
    one = Image.open(show_concepts(out=tmp_path / "one.png", weights="random", **options)).width
    two = Image.open(show_concepts(out=tmp_path / "two.png", weights=both, **options)).width
    assert two / one == pytest.approx(5 / 3, abs=0.05)  # the tiles and two columns for each


def test_weights_with_similar_names_have_separate_columns(tiles: Path, tmp_path: Path) -> None:
    weights = [tmp_path / name for name in ("run.1/w.safetensors", "run.2/w.safetensors")]
    for path in weights:
        save_backbone(path, build_backbone("test_resnet"))
    options = {"data": tiles, "count": 1, "stages": (4,), "backbone": "test_resnet"}
    picture = show_concepts(out=tmp_path / "two.png", weights=[str(path) for path in weights], **options)
    one = Image.open(show_concepts(out=tmp_path / "one.png", weights=str(weights[0]), **options)).width
    assert Image.open(picture).width / one == pytest.approx(3 / 2, abs=0.1)


def test_sources_of_concepts_are_shown_side_by_side(tiles: Path, tmp_path: Path) -> None:
    options = {"data": tiles, "count": 2, "stages": (4,)}
    one = Image.open(show_concepts(out=tmp_path / "one.png", **options))
    sources = ("kmeans", "grid", "superpixels", "nuclei")
    four = Image.open(show_concepts(out=tmp_path / "four.png", concepts=sources, **options))
    assert four.width / one.width == pytest.approx(5 / 2, abs=0.1)
    (tmp_path / "maps").mkdir()
    for tile in tiles.iterdir():
        Image.fromarray(np.arange(9, dtype=np.uint8).reshape(3, 3)).save(tmp_path / "maps" / tile.name)
    grid, files = (
        np.asarray(Image.open(show_concepts(out=tmp_path / "same.png", concepts=name, **options, **more)))
        for name, more in (("grid", {}), ("files", {"regions": str(tmp_path / "maps")}))
    )
    title = 40  # pixels above the panels
    assert np.array_equal(grid[title:], files[title:])


def test_all_sources_are_in_one_picture_each_with_its_own_files(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = {"files": np.arange(9).reshape(3, 3), "saliency": np.eye(3, dtype=int)}
    for name, values in maps.items():
        (tmp_path / name).mkdir()
        for tile in tiles.iterdir():
            pixels = values * (255 if name == "saliency" else 1)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / tile.name)
    drawn: dict[str, list[np.ndarray]] = {}

    def draw(tiles: object, columns: dict[str, list[np.ndarray]], *rest: object, **more: object) -> Path:
        drawn.update(columns)
        return draw_concepts(tiles, columns, *rest, **more)

    monkeypatch.setattr("densepath.analysis.show.draw_concepts", draw)
    show_concepts(
        data=tiles,
        out=tmp_path / "all.png",
        concepts=("grid", "superpixels", "nuclei", "saliency", "files", "kmeans"),
        saliency=str(tmp_path / "saliency"),
        regions=str(tmp_path / "files"),
        backbone="test_resnet",
        stages=(4,),
        count=2,
    )
    assert list(drawn) == ["grid", "superpixels", "nuclei", "saliency", "files", "f4"]
    assert all(np.array_equal(found, maps[name]) for name in maps for found in drawn[name])
    assert Image.open(tmp_path / "all.png").width > 7 * 200  # pixels


def test_grey_images_have_no_nuclei(tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "grey" / "a.png")
    with pytest.raises(UserError, match="nuclei are found by color, and the images are grey"):
        show_concepts(data=tmp_path / "grey", out=tmp_path / "x.png", concepts=("nuclei",), count=1)


def test_a_source_without_its_files_is_named(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give it with --saliency"):
        show_concepts(data=tiles, out=tmp_path / "x.png", concepts=("saliency",), regions=str(tmp_path), count=1)
    with pytest.raises(UserError, match="concepts files need a folder of label maps; give it with --regions"):
        show_concepts(data=tiles, out=tmp_path / "x.png", concepts=("files",), saliency=str(tmp_path), count=1)
    with pytest.raises(UserError, match="unknown concepts 'stars'"):
        show_concepts(data=tiles, out=tmp_path / "x.png", concepts=("stars",), count=1)


def test_a_picture_needs_the_name_of_a_png_file(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.png"):
        show_views(data=tiles, out=tmp_path / "views")
    with pytest.raises(UserError, match=r"ends in \.png"):
        show_concepts(data=tiles, out=tmp_path / "concepts.jpg")


@pytest.fixture
def run(tiles: Path, tmp_path: Path) -> Path:
    options = {"patch": 16, "width": 16, "heads": 2}
    fixed = {"backbone": "test_resnet", "batch_size": 2, "view_size": 64, "max_steps": 1, "devices": "cpu"}
    return pretrain(data=tiles, out=tmp_path / "run", method="conv_mim", method_options=options, **fixed)


def test_reconstructions_are_reproducible_and_differ_between_seeds(run: Path, tiles: Path) -> None:
    options = {"data": tiles, "run": run, "count": 2}
    first, again, other = (
        Image.open(show_reconstruction(out=run.parent / f"{n}.png", seed=seed, **options)).tobytes()
        for n, seed in enumerate((0, 0, 1))
    )
    assert first == again
    assert first != other


def test_a_prediction_is_drawn_where_the_loss_counts_it(tmp_path: Path) -> None:
    grey, red = torch.zeros(1, 3, 8, 8), torch.tensor([4.0, -4.0, -4.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    counted = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    counted[..., :4] = True
    made = Reconstruction(grey, grey, grey, red, counted)
    picture = np.asarray(Image.open(draw_reconstruction(made, tmp_path / "made.png", panel=1.0)).convert("RGB"))
    combined = picture[-110:-20, -110:-20]  # pixels: the last panel, without its border
    assert (combined[:, :35] == (255, 0, 0)).all()
    assert (combined[:, -35:] == (combined[0, -1])).all() and np.ptp(combined[0, -1]) < 30


def test_a_run_that_predicts_no_pixels_or_has_no_checkpoint_is_refused(run: Path, tiles: Path, tmp_path: Path) -> None:
    def refused(message: str, **options: object) -> None:
        with pytest.raises(UserError, match=message):
            show_reconstruction(**{"data": tiles, "run": run, "out": tmp_path / "x.png", "count": 1, **options})

    refused(r"ends in \.png", out=tmp_path / "x.jpg")
    refused("not the folder of a pre-training run", run=tmp_path)
    refused("count is 4; give a number from 1 to 3", count=4)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("method: conv_mim", "method: moco_v2"))
    refused("the method moco_v2 of .* does not predict pixels; give a run of one of: .*conv_mim")
    (run / "config.yaml").write_text(config.replace("backbone: test_resnet", "backbone: resnet18"))
    refused("does not belong to its config.yaml")
    (run / "config.yaml").write_text(config)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    refused("is not a checkpoint of densepath")
    (run / "checkpoints" / "last.ckpt").unlink()
    refused("no checkpoint yet")
    assert not (tmp_path / "x.png").exists()
