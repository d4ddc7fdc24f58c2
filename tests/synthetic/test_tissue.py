"""The procedural tissue: deterministic, with exact masks and plausible colors and shapes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.measure import regionprops

from densepath.annotations.coco import open_split
from densepath.core.errors import UserError
from densepath.synthetic import tissue
from densepath.synthetic.tissue import tissue_image, write_tiles, write_tissue
from densepath.synthetic.tissue_paint import Painter, develop

SEEDS = range(6)


def test_a_seed_determines_every_pixel() -> None:
    image, labels = tissue_image(5, 96)
    np.random.default_rng().normal()
    again, labels_again = tissue_image(5, 96)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert (tissue_image(6, 96)[0] != image).mean() > 0.5


@pytest.mark.parametrize(("size", "shape"), [(np.int64(64), (64, 64)), ((48, 101), (48, 101))])
def test_size_is_height_and_width(size: int | tuple[int, int], shape: tuple[int, int]) -> None:
    image, labels = tissue_image(0, size, microns_per_pixel=2.0)
    assert (image.shape, image.dtype) == ((*shape, 3), np.uint8)
    assert (labels.shape, labels.dtype) == (shape, np.int32)


@pytest.mark.parametrize("grade", [0.0, 0.5, 1.0])
def test_glands_are_separate_and_never_slivers(grade: float) -> None:
    for seed in SEEDS:
        _, labels = tissue_image(seed, 160, grade=grade)
        areas = np.bincount(labels.ravel())[1:]
        assert (areas >= tissue.SMALLEST).all()  # which also says that no number is left out
        highest = ndimage.maximum_filter(labels, 3)
        lowest = ndimage.minimum_filter(np.where(labels > 0, labels, 10**6), 3)
        assert not ((highest > 0) & (highest != lowest)).any(), "two glands touch"


def test_labels_match_the_painted_glands(monkeypatch: pytest.MonkeyPatch) -> None:
    painted = []

    def record(rng: np.random.Generator, stains: np.ndarray) -> np.ndarray:
        painted.append(stains[0])
        return np.zeros((*stains.shape[1:], 3), np.uint8)

    monkeypatch.setattr(Painter, "glands", lambda self: np.ones((3, *self.shape)))
    monkeypatch.setattr(Painter, "stroma", lambda self: np.zeros((3, *self.shape)))
    monkeypatch.setattr(tissue, "develop", record)
    for seed in range(12):
        _, labels = tissue_image(seed, 128)
        margin = int(tissue.MARGIN)
        np.testing.assert_array_equal(labels > 0, painted[-1][margin:-margin, margin:-margin] > 0.5)


def test_nuclei_line_the_basal_side() -> None:
    darker = []
    for seed in range(10):
        image, labels = tissue_image(seed, 192)
        depth = ndimage.distance_transform_edt(labels > 0)
        red = image[:, :, 0].astype(float)
        darker.append(red[(depth > 2) & (depth < 7)].mean() < red[labels == 0].mean())
    assert sum(darker) >= 9


def test_glands_become_irregular_with_the_grade() -> None:
    def solidity(grade: float) -> float:
        glands = [p for seed in SEEDS for p in regionprops(tissue_image(seed, 256, grade=grade)[1])]
        return float(np.mean([p.solidity for p in glands if p.bbox[0] > 0 and p.bbox[2] < 256]))

    assert solidity(0.0) > solidity(1.0) + 0.02


def test_healthy_glands_hold_more_pale_mucin_than_adenomas() -> None:
    def pale(grade: float) -> float:
        shares = []
        for seed in SEEDS:
            image, labels = tissue_image(seed, 192, grade=grade)
            shares.append((image[labels > 0].min(1) > 180).mean())
        return float(np.mean(shares))

    assert pale(0.0) > 1.5 * pale(0.5)


def test_a_gland_has_the_same_area_in_microns_at_any_resolution() -> None:
    def covered(size: int, microns_per_pixel: float) -> float:
        areas = [np.bincount(tissue_image(s, size, microns_per_pixel=microns_per_pixel)[1].flat)[1:] for s in range(12)]
        return float(np.median(np.concatenate(areas))) * microns_per_pixel**2

    assert covered(96, 2.0) == pytest.approx(covered(192, 1.0), rel=0.35)


def test_develop_follows_the_beer_lambert_law() -> None:
    def mean_color(amounts: tuple[float, float, float]) -> np.ndarray:
        stains = np.broadcast_to(np.array(amounts, np.float32)[:, None, None], (3, 64, 64))
        return develop(np.random.default_rng(3), stains).reshape(-1, 3).mean(0)

    clear = mean_color((0, 0, 0))
    assert clear.min() > 225
    for stain in np.eye(3):
        once, twice = (np.log(clear / mean_color(tuple(k * stain))) for k in (0.4, 0.8))
        np.testing.assert_allclose(twice, 2 * once, atol=0.03)
    hematoxylin, eosin = mean_color((1, 0, 0)), mean_color((0, 1, 0))
    assert hematoxylin[0] < eosin[0] - 20, "hematoxylin is blue, eosin is pink"
    assert eosin[1] < eosin[2] < eosin[0]


def test_tiles_are_reproducible_and_differ(tmp_path: Path) -> None:
    few, more = write_tiles(tmp_path / "few", 2, 48, seed=1), write_tiles(tmp_path / "more", 3, 48, seed=1)
    first, second, third = (np.asarray(Image.open(path)) for path in sorted(more.iterdir()))
    for tile, path in zip((first, second), sorted(few.iterdir()), strict=True):
        np.testing.assert_array_equal(tile, np.asarray(Image.open(path)))
    assert first.shape == (48, 48, 3)
    assert (first != second).any() and (second != third).any()


def test_a_tissue_data_set_opens_with_the_glands_that_were_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = []

    def remember(seed: int, size: int, microns_per_pixel: float) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(tissue_image(seed, size, microns_per_pixel=microns_per_pixel))
        return drawn[-1]

    monkeypatch.setattr(tissue, "tissue_image", remember)
    dest = write_tissue(tmp_path / "tissue", train=2, test=1, tiles=1, size=96, microns_per_pixel=2.0, seed=4)
    train, test = open_split(dest, "train"), open_split(dest, "test")
    assert (len(train), len(test), len(list((dest / "tiles").iterdir()))) == (2, 1, 1)
    for (image, labels), (split, index) in zip(drawn, [(train, 0), (train, 1), (test, 0)], strict=False):
        np.testing.assert_array_equal(split[index]["image"], image)
        np.testing.assert_array_equal(split.label_map(index), labels)
    assert len({image.tobytes() for image, _ in drawn}) == 4
    glands = sum(int(labels.max()) for _, labels in drawn[:2])
    assert f"train: 2 images, {glands} glands" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"train": 0}, {"tiles": -5}, {"size": 8}, {"seed": -1}, {"microns_per_pixel": 0.0}])
def test_invalid_numbers_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        write_tissue(tmp_path / "tissue", **{"train": 1, "test": 1, "size": 48, **wrong})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for write in (lambda: write_tissue(tmp_path), lambda: write_tiles(tmp_path, 1)):
        with pytest.raises(UserError, match="not empty"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_write_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tissue, "write_tiles", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_tissue(tmp_path / "tissue", train=1, test=1, tiles=1, size=48)
    assert not list(tmp_path.iterdir())
