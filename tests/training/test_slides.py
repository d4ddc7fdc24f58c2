"""Pre-training on tiles that are read from slides: restricted, recorded, killed and resumed."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from safetensors import safe_open

from densepath.core.errors import UserError
from densepath.nets.weights.trained_on import slides_of_weights
from densepath.runs.folder import VIEWS
from densepath.sources.tiles.tile import tile
from densepath.synthetic.slide import write_slide
from densepath.training.export import export
from densepath.training.pretrain import pretrain

from .test_survival import assert_same_run

SMALL = {"backbone": "test_resnet", "batch_size": 4, "view_size": 48, "devices": "cpu", "max_steps": 1}
MOCO = {"method": "moco_v2", "method_options": {"queue_size": 32}, "workers": 0, "precision": "32"}


def test_a_run_on_slides_that_is_killed_ends_as_if_nothing_had_happened(tmp_path, run_scenario):
    ends, _ = run_scenario("slides")
    assert ends == [-signal.SIGKILL] * 2 + [128 + signal.SIGINT, 0, 0]
    shutil.rmtree(tmp_path / "cut" / "tiles" / ".locks")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    for name in ("slides.csv", "tiles/slides.csv", "tiles/tiles.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert slides_of_weights(tmp_path / "cut") == ("s0", "s1")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiles of three slides, two of them in a folder."""
    root = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate(("a/s0", "a/s1", "s2")):
        write_slide(root / "in" / f"{name}.tiff", size=(576, 640), levels=(1, 2), seed=seed)
    tile(data=root / "in", out=root / "T", mpp=0.5, size=64, min_tissue=0, workers=0)
    return root / "T"


def test_a_run_records_its_slides_and_so_do_its_weights(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("s0\ns2\n")
    run = pretrain(data=tiles, out=tmp_path / "run", slides=tmp_path / "list.txt", **SMALL, **MOCO)
    lines = (run / "slides.csv").read_text().splitlines()
    assert lines[0] == "slide,path,tiles" and [line.split(",")[0] for line in lines[1:]] == ["a/s0", "s2"]
    assert slides_of_weights(run) == ("a/s0", "s2")
    with safe_open(run / "exported" / "backbone.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["slides"]) == ["a/s0", "s2"]
    assert slides_of_weights(run / "checkpoints" / "last.ckpt") == ("a/s0", "s2")
    assert slides_of_weights(export(run, tmp_path / "e.safetensors")) == ("a/s0", "s2")
    # What the initial weights have seen counts as seen
    (tmp_path / "other.txt").write_text("s1\n")
    more = pretrain(data=tiles, out=tmp_path / "more", weights=run, slides=tmp_path / "other.txt", **SMALL, **MOCO)
    assert slides_of_weights(more) == ("a/s1", "a/s0", "s2")
    assert slides_of_weights("resnet18") is None
    with pytest.raises(UserError, match="other values of fraction"):
        pretrain(data=tiles, out=run, resume=True, fraction=0.5, slides=tmp_path / "list.txt", **SMALL, **MOCO)
    (tmp_path / "list.txt").write_text("s1\ns2\n")
    with pytest.raises(UserError, match=r"was started with \d+ images, but there are"):
        pretrain(data=tiles, out=run, resume=True, slides=tmp_path / "list.txt", **SMALL, **MOCO)


def test_slides_are_tiled_on_the_fly(tiles: Path, tmp_path: Path) -> None:
    slides, kept = tiles.parent / "in", {"mpp": 0.5, "tile_size": 64, **MOCO}
    with pytest.raises(UserError, match="a queue of 32 keys is smaller than a batch of 999"):
        pretrain(data=slides, out=tmp_path / "run", **{**SMALL, "batch_size": 999}, **kept)
    made = (tmp_path / "run" / "tiles" / "slides.csv").stat().st_mtime_ns
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tiles"]
    run = pretrain(data=slides, out=tmp_path / "run", **SMALL, **kept)
    pretrain(data=slides, out=tmp_path / "run", resume=True, **SMALL, **kept)
    assert (run / "tiles" / "slides.csv").stat().st_mtime_ns == made
    assert slides_of_weights(run) is not None and len(slides_of_weights(run)) == 3  # type: ignore[arg-type]
    with pytest.raises(UserError, match="already holds a run"):
        pretrain(data=slides, out=run, **SMALL, **kept)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / VIEWS).write_text("")
    with pytest.raises(UserError, match="not empty"):
        pretrain(data=slides, out=tmp_path / "full", **SMALL, **kept)
    assert not (tmp_path / "full" / "tiles").exists()
    with pytest.raises(UserError, match="have their own µm per pixel"):
        pretrain(data=tiles, out=tmp_path / "x", mpp=0.5, **SMALL, **MOCO)
    with pytest.raises(UserError, match="leave it out for images"):
        pretrain(data=tiles / "masks", out=tmp_path / "x", mpp=0.5, **SMALL, **MOCO)
    with pytest.raises(UserError, match=r"with --mpp, e\.g\."):
        pretrain(data=slides, out=tmp_path / "x", **SMALL, **MOCO)
    with pytest.raises(UserError, match="needs tiles of slides"):
        pretrain(data=tiles / "masks", out=tmp_path / "x", slides=tmp_path / "l.txt", **SMALL, **MOCO)
