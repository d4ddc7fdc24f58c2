"""The features of new slides: which files they are, and what does not fit those of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from densepath.core.errors import UserError
from densepath.training.hardware import Hardware
from densepath.transfer.embed.embed_slides import EmbedOptions
from densepath.transfer.embed.slide_features import SlideFeatures, read_slide_features
from densepath.transfer.mil.extractor_record import ExtractorRecord
from densepath.transfer.mil.new_slides import SlideOptions, completed, embed_new_slides, slides_in_files

CPU = Hardware("cpu", 1, 1, 0, 0, "32", False, False, None)
RECORD = ExtractorRecord(weights="w", mpp=256 / 224, tile=2000)


def options(mpp: float | None = None, tile: int | None = None, **given: Any) -> SlideOptions:
    empty: dict[str, Any] = {"mpp_table": None, "default_mpp": None, "exclude": (), "shard": None}
    return SlideOptions(None, mpp, tile, **{**empty, **given}, hardware=CPU, precision="32")


def write_tiles(folder: Path) -> Path:
    (folder / "1.1429mpp_2000px_0px_overlap" / "patches").mkdir(parents=True)
    (folder / "config.yaml").write_text("# densepath tile\n")
    (folder / "slides.csv").write_text("slide,path,tiles,problem\na,/a.tiff,2,\n")
    return folder


def test_features_are_read_where_these_weights_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from a folder of other weights beside it."""

    def embed(tiles: Path, out: Path, how: EmbedOptions, **_: Any) -> dict[str, int]:
        how.check({"backbone": "net"})
        for name in ("features_a", "features_w", "features_z"):
            (out / name).mkdir(parents=True)
            (out / name / "a.h5").touch()
        return {"left": 0}

    monkeypatch.setattr("densepath.transfer.mil.new_slides.embed_slides", embed)
    (slide,) = embed_new_slides(write_tiles(tmp_path / "T"), tmp_path / "out", RECORD, options())
    assert slide.file == tmp_path / "out" / "features" / "features_w" / "a.h5"


def test_tiles_of_earlier_versions_of_stamp_are_known() -> None:
    notes = {"unit": "um", "tile_size": 256.0, "tile_size_px": 224}
    record = ExtractorRecord.of(SlideFeatures("a", np.zeros((1, 2), np.float32), notes=notes))
    assert (record.mpp, record.tile) == (256 / 224, 224)


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({"target_magnification": 0, "patch_size": 256}, (None, 256, 0)),
        ({"target_magnification": 20, "mpp": np.nan}, (0.5, None, 0)),
        ({"mpp": "?", "overlap": "None"}, (None, None, None)),
        ({"overlap": -1, "patch_size": np.inf}, (None, None, None)),
        ({"overlap": "64.0", "unit": "um", "tile_size_um": 0, "tile_size_px": 224}, (None, None, 64)),
    ],
)
def test_sizes_of_features_that_are_not_positive_numbers_are_unknown(
    notes: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["feats"], file["coords"] = np.zeros((2, 3), np.float32), np.arange(4).reshape(2, 2)
        file.attrs.update({**notes, "patch_size_level0": 0})
    slide = read_slide_features(tmp_path / "a.h5")
    record = ExtractorRecord.of(slide)
    assert (record.mpp, record.tile, record.overlap) == expected and slide.side is None


def test_resolutions_may_be_rounded_and_pixels_not(tmp_path: Path) -> None:
    assert completed(RECORD, tmp_path, options(mpp=1.1429, tile=2000)) == RECORD
    for given, why in (({"mpp": 1.16}, "--mpp is 1.16"), ({"tile": 2001}, "--window is 2001")):
        with pytest.raises(UserError, match=why):
            completed(RECORD, tmp_path, options(**given))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="exclude: only for slides that are not tiled"):
        completed(RECORD, write_tiles(tmp_path / "T"), options(exclude=["b*"]))


def write_slides_of_patients(folder: Path) -> list[str]:
    """The paths of slides in two folders, of which a table above them says the patients."""
    paths = [folder / "A" / "x" / "1.tiff", folder / "B" / "y" / "2.tiff", folder / "B" / "y" / "3.tiff"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.csv").write_text("file,patient\nA/x/1.tiff,P\nB/y/2.tiff,Q\nB/y/3.tiff,Q\n")
    return list(map(str, paths))


def test_patients_of_tiled_slides_are_found_in_the_folder_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed(tiles: Path, out: Path, how: EmbedOptions, **_: Any) -> dict[str, int]:
        how.check({"backbone": "net"})
        return {"left": 0}

    monkeypatch.setattr("densepath.transfer.mil.new_slides.embed_slides", embed)
    paths, tiles = write_slides_of_patients(tmp_path / "slides"), write_tiles(tmp_path / "T")
    rows = [f"{Path(path).stem},{path},2," for path in paths]
    (tiles / "slides.csv").write_text("\n".join(["slide,path,tiles,problem", *rows]))
    assert [slide.patient for slide in embed_new_slides(tiles, tmp_path / "out", RECORD, options())] == ["P", "Q", "Q"]


def test_patients_of_features_are_found_next_to_their_slides(tmp_path: Path) -> None:
    paths = write_slides_of_patients(tmp_path / "slides")
    (tmp_path / "F").mkdir()
    for path in paths:
        with h5py.File(tmp_path / "F" / f"{Path(path).stem}.h5", "w") as file:
            file.attrs["densepath"] = json.dumps({"slide_path": path})
    assert [slide.patient for slide in slides_in_files(tmp_path / "F") or []] == ["P", "Q", "Q"]
    (tmp_path / "F" / "manifest.csv").write_text("file,patient\n1,R\n")  # is nearer
    assert [slide.patient for slide in slides_in_files(tmp_path / "F") or []] == ["R", "Q", "Q"]


def test_a_file_of_features_is_that_of_a_slide(tmp_path: Path) -> None:
    (tmp_path / "x.h5").touch()
    (tmp_path / "y.h5").touch()
    (tmp_path / "manifest.csv").write_text("file,patient\nx.svs,P\n")
    (slide,) = slides_in_files(tmp_path / "x.h5") or []
    assert (slide.name, slide.patient, slide.file) == ("x", "P", tmp_path / "x.h5")
    for name in ("*.h5", "z.pt"):
        with pytest.raises(UserError, match="give a folder of files of features"):
            slides_in_files(tmp_path / name)
    (tmp_path / "a.svs").touch()
    assert slides_in_files(tmp_path / "a.svs") is None
    with pytest.raises(UserError, match=r"b\.svs does not exist"):
        slides_in_files(tmp_path / "b.svs")
