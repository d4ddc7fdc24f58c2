"""The demo at a tiny scale."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image
from rich.console import Console

from densepath import tour
from densepath.core.errors import UserError
from densepath.core.locks import sole_writer
from densepath.demo_pictures import real_tile
from densepath.demonstration import MARKER, _affordable, _prepare_folder, _report, demo
from densepath.synthetic.volumes import SyntheticVolumes

OBJECT = ("box_ap50", "mask_ap50", "mask_ap")


def test_the_demo_writes_scores_pictures_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    demo(out=out, scale=0.01)
    scores = json.loads((out / MARKER).read_text())
    for name in ("random", "pretrained"):
        assert 5 < scores[name]["probe"]["mean_iou"] < 100
        assert 0 <= scores[name]["detect"]["mask_ap"] <= 100
    assert scores["random"]["probe"]["mean_iou"] != scores["pretrained"]["probe"]["mean_iou"]
    pictures = {"views", "concepts", "concepts_f4", "detections", "pretraining", "detection", "summary"}
    assert {p.stem for p in (out / "pictures").glob("*.png")} == pictures
    assert Image.open(out / "pictures" / "summary.png").width > 1000
    for run in ("pretrained", "dirl", "pcrl"):
        assert (out / run / "exported" / "backbone.safetensors").is_file()
    assert len(list((out / "predictions" / "labels").glob("*.png"))) == 3
    page = (out / "report.html").read_text()
    for text in ("dirl", "pcrl", "detector_random", "slide_tiles", "data:image/webp"):
        assert text in page
    printed = capsys.readouterr().out
    assert f"{scores['random']['probe']['mean_iou']:.1f}" in printed
    assert "densepath pretrain --config concl_small" in printed


def test_an_earlier_demo_is_replaced_and_nothing_else_in_its_folder(tmp_path: Path) -> None:
    out = _prepare_folder(tmp_path / "demo")
    (out / "tiles").mkdir()
    for name in ("notes.txt", "report.html"):
        (out / name).write_text("of an earlier time")
    _prepare_folder(out)
    assert {p.name for p in out.iterdir()} == {MARKER, "notes.txt"}


def test_a_demo_that_runs_is_not_replaced(tmp_path: Path) -> None:
    (_prepare_folder(tmp_path) / "tiles").mkdir()
    with sole_writer(tmp_path), pytest.raises(UserError, match="writes to"):
        demo(out=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"tiles", MARKER}


@pytest.mark.parametrize("marker", ["{}", "7"])
def test_a_folder_with_other_files_is_not_touched(marker: str, tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    (tmp_path / MARKER).write_text(marker)
    with pytest.raises(UserError, match="not empty"):
        demo(out=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"tiles", MARKER}


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf")])
def test_a_scale_of_nothing_is_refused(scale: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scale is .*; give a number above 0"):
        demo(out=tmp_path / "demo", scale=scale)
    assert list(tmp_path.iterdir()) == []


def test_the_end_names_a_folder_with_brackets() -> None:
    printed, scores = io.StringIO(), {"probe": {"mean_iou": 1.0, "dice": 1.0}, "detect": dict.fromkeys(OBJECT, 1.0)}
    _report(Console(file=printed, width=200), Path("demo [old][/b]"), {"random": scores}, 0.0, Path("report [1].html"))
    assert "All files are in demo [old][/b]/; look at report [1].html first" in printed.getvalue()


def test_the_scans_of_the_demo_have_their_own_spacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(conversion: object) -> None:
        raise UserError("no room")

    monkeypatch.setattr(tour, "convert_folder", refuse)
    assert tour.pretrain_on_volumes(tmp_path, Console(file=io.StringIO()), 0, 1) == []
    spacing = SyntheticVolumes(8, 0).spacing(torch.arange(8))
    for number, of_scan in enumerate(spacing.flip(1).tolist()):
        head = (tmp_path / "scans" / f"scan_{number}.mha").read_bytes().split(b"ElementType")[0].decode()
        assert head.splitlines()[-1] == f"ElementSpacing = {' '.join(f'{step:g}' for step in of_scan)}"


def test_the_demo_continues_without_the_real_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("pooch")

    monkeypatch.setattr(skimage.data, "immunohistochemistry", missing)
    printed = io.StringIO()
    assert real_tile(tmp_path / "real", Console(file=printed)) is None
    assert "continuing" in printed.getvalue()


@pytest.mark.parametrize(("seconds", "share"), [(0.005, 1.0), (0.03, 1.0), (0.0375, 0.8), (0.05, 0.6), (1.0, 0.6)])
def test_slow_machines_run_fewer_steps(seconds: float, share: float) -> None:
    assert _affordable(seconds) == share
