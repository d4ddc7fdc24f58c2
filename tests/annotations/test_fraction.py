"""Shares of labelled images: nested, by patient, and of at least one image."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from densepath.annotations.coco import open_split
from densepath.annotations.coco_writing import write_coco
from densepath.annotations.fraction import choose_fraction
from densepath.core.errors import UserError

FRACTIONS = (1e-6, 0.1, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("images", [1, 7, 40])
def test_a_smaller_share_is_a_part_of_a_larger_one(images: int, seed: int) -> None:
    owners = [f"image {i}" for i in range(images)]
    chosen = [choose_fraction(owners, fraction, seed) for fraction in FRACTIONS]
    assert all(set(small) <= set(large) for small, large in pairwise(chosen))
    assert [len(each) for each in chosen] == [max(1, math.ceil(fraction * images - 0.5)) for fraction in FRACTIONS]
    assert chosen[-1] == list(range(images)) and all(each == sorted(each) for each in chosen)


def test_patients_are_chosen_whole_and_seeds_choose_others() -> None:
    owners = [f"patient {i // 4}" for i in range(40)]
    seen = set()
    for seed in range(5):
        chosen = [choose_fraction(owners, fraction, seed) for fraction in FRACTIONS]
        assert [len(each) for each in chosen] == [4, 4, 8, 20, 28, 40]  # 0.25 is 10, between 8 and 12
        for each in chosen:
            whole = {owners[i] for i in each}
            assert each == [i for i, owner in enumerate(owners) if owner in whole]
        assert all(set(small) <= set(large) for small, large in pairwise(chosen))
        seen.add(tuple(chosen[2]))
    assert len(seen) > 1


def test_the_order_of_the_images_does_not_matter() -> None:
    owners = [f"image {i}" for i in range(20)]
    there = {owners[i] for i in choose_fraction(owners, 0.3, 3)}
    assert {owners[::-1][i] for i in choose_fraction(owners[::-1], 0.3, 3)} == there


@pytest.mark.parametrize("where", ["json", "manifest", "nowhere", "empty"])
def test_patients_are_known_from_the_json_or_a_manifest(where: str, tmp_path: Path) -> None:
    labels = np.eye(8, dtype=np.int32)  # one object
    samples = [(f"scene{i}", np.zeros((8, 8, 3), np.uint8), labels) for i in range(12)]
    write_coco(tmp_path / "data", {"train": samples, "test": samples})
    path = tmp_path / "data" / "annotations" / "train.json"
    truth = json.loads(path.read_text())
    if where == "json":
        for image in truth["images"]:
            image["patient"] = image["id"] % 3
    elif where == "empty":
        for image in truth["images"]:
            image["patient"] = ""
    elif where == "manifest":
        lines = [f"{image['file_name']},{image['id'] % 3}" for image in truth["images"]]
        (tmp_path / "data" / "manifest.csv").write_text("\n".join(["file,patient", *lines]))
    path.write_text(json.dumps(truth))
    images = open_split(tmp_path / "data", "train")
    images.keep_fraction(0.3, seed=1)
    left = images.coco_ground_truth()
    assert len(images) == len(left["images"]) == len(left["annotations"]) == 4
    assert {a["image_id"] for a in left["annotations"]} == {image["id"] for image in left["images"]}
    assert [images[i]["image_id"] for i in range(4)] == [image["id"] for image in left["images"]]
    assert (len({image["id"] % 3 for image in left["images"]}) == 1) == (where in ("json", "manifest"))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_an_impossible_share_is_refused(fraction: float, tmp_path: Path) -> None:
    samples = [("scene", np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=np.int32))]
    write_coco(tmp_path / "data", {"train": samples, "test": samples})
    with pytest.raises(UserError, match="above 0 and up to 1"):
        open_split(tmp_path / "data", "train").keep_fraction(fraction, seed=0)
