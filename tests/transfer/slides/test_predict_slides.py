"""Predictions on slides: every object once, at its place in µm, whatever level was read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disks import Disk, disk_detector, paint, write_levels

from densepath.transfer.predict import predict

DISKS = [Disk(40, 38, 9.3), Disk(41.7, 77.2, 12), Disk(96.3, 58.1, 10.6), Disk(66.2, 118.9, 6.1), Disk(118, 120.4, 14)]
TISSUE = (20.0, 20.0, 120.0, 120.0)


def write_slide(path: Path, mpp: float, factors: tuple[int, ...] = (1, 4)) -> Path:
    size = round(200 / mpp), round(180 / mpp)
    return write_levels(path, paint(size, mpp, DISKS, TISSUE), mpp, factors)


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``predict`` with the detector of disks."""
    (tmp_path / "detector.safetensors").write_bytes(b"")

    def run(data: Path, out: Path, known: float | None = None, **options: Any) -> Any:
        monkeypatch.setattr("densepath.transfer.predict.load_detector", lambda path: disk_detector(known))
        return predict(tmp_path / "detector.safetensors", data=data, out=out, devices="cpu", **options)

    return run


def rows_of(out: Any) -> list[dict[str, str]]:
    with (out / "objects.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("mpp", [0.5, 0.93])
@pytest.mark.parametrize("level_0", [0.25, 0.23])
def test_objects_return_to_their_place_in_um(search: Any, tmp_path: Path, level_0: float, mpp: float) -> None:
    """The same disks on two scanners, seen at two resolutions: a level of four pixels is used, or is too coarse."""
    slide = write_slide(tmp_path / "slides" / "a.tiff", level_0)
    out = search(slide, tmp_path / "out", mpp=mpp)
    found = sorted(rows_of(out), key=lambda row: float(row["centroid_x_um"]))
    truth = sorted(DISKS, key=lambda disk: disk.x)
    assert len(found) == len(truth)
    for row, disk in zip(found, truth, strict=True):
        place = float(row["centroid_y_um"]), float(row["centroid_x_um"])
        assert place == pytest.approx((disk.y, disk.x), abs=0.2)
        assert float(row["area_um2"]) == pytest.approx(np.pi * disk.radius**2, rel=0.06)
        assert float(row["centroid_x"]) * level_0 == pytest.approx(place[1])
        assert float(row["area"]) * level_0**2 == pytest.approx(float(row["area_um2"]))
    features = json.loads((out / "geojson" / "a.geojson").read_text())["features"]
    assert {feature["properties"]["objectType"] for feature in features} == {"detection"}
    for feature, row in zip(features, rows_of(out), strict=True):
        assert feature["properties"]["classification"]["name"] == "disk"
        assert feature["properties"]["measurements"]["score"] == float(row["score"])
        (ring,) = feature["geometry"]["coordinates"]
        x, y = np.array(ring).T
        area = abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
        assert area == pytest.approx(float(row["area"]), rel=0.05)
        assert ring[0] == ring[-1]
        middle = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
        assert middle == pytest.approx((float(row["centroid_x"]), float(row["centroid_y"])), abs=0.4 / level_0)
