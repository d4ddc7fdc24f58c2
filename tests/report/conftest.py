"""Run folders as the verbs leave them, written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from densepath.annotations.outlines import encode_part

Make = Callable[..., Path]


def save_picture(path: Path, side: int = 24, shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), shade, np.uint8)).save(path)
    return path


@pytest.fixture
def make_pretraining(tmp_path: Path) -> Make:
    """Makes the folder of a pre-training run."""

    def make(name: str = "run", rows: int = 30, config: dict[str, Any] | None = None, level: float = 1.0) -> Path:
        run = tmp_path / name
        (run / "exported").mkdir(parents=True)
        (run / "exported" / "backbone.safetensors").write_bytes(b"weights")
        options = {"data": "tiles", "out": name, "method": "concl", "backbone": "resnet18", "seed": 0}
        options |= {"optimizer": {"name": "sgd", "lr": 0.1}}
        (run / "config.yaml").write_text(yaml.safe_dump({**options, **(config or {})}))
        columns = "step,loss,instance_loss,instance_loss_vs_chance,key_spread,images_per_second,waiting,probe_dice,lr"
        measured = [f"{k},{level / k},{4 / k},{1 / k},0.02,50.5,0.01,{80 * level},0.1" for k in range(1, rows + 1)]
        (run / "metrics.csv").write_text("\n".join([columns, *measured]) + "\n")
        session = {"date": "2026-01-02", "command": "densepath pretrain", "data": {"images": 7, "steps": 40}}
        (run / "sessions.yaml").write_text(yaml.safe_dump([session]))
        log = [
            "densepath: next: densepath old",
            "densepath: next: densepath export run",
            "densepath: or: densepath probe",
        ]
        (run / "train.log").write_text("\n".join(log) + "\n")
        for step in (10, 20):
            save_picture(run / "pictures" / f"concepts_{step:07d}.png", shade=step)
        save_picture(run / "views.png")
        return run

    return make


def outline(top: int, left: int, side: int, size: int = 40) -> dict[str, Any]:
    """A square as COCO's run lengths."""
    return encode_part(np.ones((side, side), bool), top, left, (size, size))


@pytest.fixture
def make_detector(tmp_path: Path) -> Make:
    """Makes the folder of a detector and its data set: objects are squares in images of 40 px."""

    def make(
        truth: Sequence[Sequence[tuple[int, int, int]]], found: Sequence[Sequence[tuple[int, int, int, float]]]
    ) -> Path:
        data, run = tmp_path / "data", tmp_path / "detector"
        images, annotations, results = [], [], []
        for number, (objects, detections) in enumerate(zip(truth, found, strict=True), 1):
            save_picture(data / "test" / f"{number}.png", 40)
            images.append({"id": number, "file_name": f"{number}.png", "width": 40, "height": 40})
            for top, left, side in objects:
                shape = {"segmentation": outline(top, left, side), "bbox": [left, top, side, side], "area": side**2}
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, **shape}
                )
            for top, left, side, score in detections:
                shape = {"segmentation": outline(top, left, side), "bbox": [left, top, side, side]}
                results.append({"image_id": number, "category_id": 1, "score": score, **shape})
        (data / "annotations").mkdir()
        record = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "<b>gland</b>"}]}
        (data / "annotations" / "test.json").write_text(json.dumps(record))
        run.mkdir()
        options = {"data": str(data), "detector": "mask_rcnn_fpn_small", "test_size": 40, "seed": 0}
        (run / "config.yaml").write_text(yaml.safe_dump(options))
        (run / "predictions.json").write_text(json.dumps(results))
        (run / "metrics.json").write_text(json.dumps({"scale": "percent", "mask_ap": 41.25, "object_f1": 66.6}))
        return run

    return make
