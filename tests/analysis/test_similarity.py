"""The similarity of regions: every pair once, for images of any size, in bounded memory."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densepath.analysis.short_names import short_names
from densepath.analysis.show_attention import show_attention
from densepath.analysis.show_similarity import show_similarity
from densepath.analysis.show_tokens import show_tokens
from densepath.analysis.similarity import BINS, Distribution, pair_similarities, region_similarities
from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import save_backbone
from densepath.sources.batch import ImageBatch
from densepath.sources.open import open_images
from densepath.sources.packing import write_store
from densepath.sources.pixel_source import PixelSpec
from densepath.views.declarations import Center
from densepath.views.maker import ViewMaker


def write_images(folder: Path, sizes: list[tuple[int, int]], seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number, (height, width) in enumerate(sizes):
        coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(folder / f"{number}.png")
    return folder


def test_every_unordered_pair_of_positions_counts_once() -> None:
    features = torch.randn(3, 5, 2, 4)
    features[1, :, 0, 0] = 0  # a region where ReLU gives all zeros
    found = pair_similarities(features)
    for image, similarities in zip(features.double(), found, strict=True):
        vectors = image.flatten(1).T
        loop = [float(a @ b / (a.norm() * b.norm()).clamp(min=1e-12)) for a, b in combinations(vectors, 2)]
        np.testing.assert_allclose(sorted(loop), similarities.sort().values, atol=1e-6)


def test_a_distribution_has_the_statistics_of_its_values() -> None:
    rng = np.random.default_rng(0)
    values, others = np.tanh(rng.normal(0.5, 0.4, 40_000)), np.tanh(rng.normal(0.9, 0.3, 30_000))
    found, other = Distribution(), Distribution()
    for part in np.array_split(values, 7):
        found.add(torch.from_numpy(part).reshape(1, -1))
    other.add(torch.from_numpy(others))
    assert found.count == len(values)
    assert found.mean == pytest.approx(values.mean(), abs=1e-9)
    for share in (0.002, 0.25, 0.5, 0.9):
        assert found.quantile(share) == pytest.approx(np.quantile(values, share), abs=2 / BINS)
    densities = [np.histogram(v, 400, (-1, 1), density=True)[0] for v in (values, others)]
    assert found.overlap(other) == pytest.approx(np.minimum(*densities).sum() * 2 / 400, abs=1e-3)
    assert found.overlap(found) == pytest.approx(1)


def test_equal_regions_fall_into_the_last_bin_in_spite_of_rounding() -> None:
    found = Distribution()
    found.add(torch.tensor([1.0, 1.0000001, -1.0, -1.0000001]))
    assert found.shares()[[0, -1]].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_images_of_any_size_are_pooled(name: str, tmp_path: Path) -> None:
    """Compared with a plain loop over single images: their common canvas must have no effect."""
    images = open_images(write_images(tmp_path / "images", [(64, 64), (96, 70), (70, 200)]), cache="none")
    torch.manual_seed(1)
    backbone = build_backbone(name).train()
    size = 96 if name == "resnet18" else 64
    found = region_similarities(backbone, images, view_size=size, count=10)
    assert backbone.training
    expected = []
    for position in range(len(images)):
        single = images.gather(torch.tensor([position]))
        batch = ImageBatch(single.pixels, single.sizes, single.index)
        with torch.no_grad():
            view = ViewMaker({"view": Center()}, size, 0)(batch)["view"]
            maps = backbone.eval()(view.pixels)[backbone.deepest][0].double()
        expected += [float(torch.cosine_similarity(a, b, 0)) for a, b in combinations(maps.flatten(1).T, 2)]
    assert found.count == len(expected)
    assert found.mean == pytest.approx(np.mean(expected), abs=1e-5)
    assert found.quantile(0.5) == pytest.approx(np.median(expected), abs=0.002)


def test_each_image_is_used_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images(write_images(tmp_path / "images", [(64, 64)] * 40), cache="none")
    seen: list[int] = []
    gather = images.gather
    monkeypatch.setattr(images, "gather", lambda index: seen.extend(index.tolist()) or gather(index))
    backbone = build_backbone("test_resnet")
    region_similarities(backbone, images, view_size=64, count=500)
    assert sorted(seen) == list(range(40))
    seen.clear()
    region_similarities(backbone, images, view_size=64, count=35, seed=1)
    assert len(set(seen)) == 35


def test_each_set_of_weights_has_a_panel_and_rows_of_the_table(tmp_path: Path) -> None:
    flat, varied = write_images(tmp_path / "flat" / "images", [(64, 64)] * 2), tmp_path / "varied" / "images"
    write_images(varied, [(64, 64)] * 3, seed=1)
    Image.new("RGB", (64, 64), (200, 100, 150)).save(flat / "0.png")
    torch.manual_seed(5)
    save_backbone(tmp_path / "other.safetensors", build_backbone("resnet18"))
    options = {"data": [str(flat), str(varied)], "view_size": 64}
    one = show_similarity(out=tmp_path / "one.png", **options)
    assert list(one) == [
        "flat/images median",
        "flat/images mean",
        "varied/images median",
        "varied/images mean",
        "overlap flat/images and varied/images",
        "picture",
    ]
    weights = [str(tmp_path / "other.safetensors"), "random"]
    two = show_similarity(out=tmp_path / "two.png", weights=weights, **options)
    assert two["random: varied/images median"] == one["varied/images median"]
    assert two["other: varied/images median"] != one["varied/images median"]
    widths = [Image.open(result["picture"]).width for result in (one, two)]
    assert widths[1] == 2 * widths[0]


def test_invalid_comparisons_are_refused(tmp_path: Path) -> None:
    folder = str(write_images(tmp_path / "images", [(64, 64)] * 2))
    for options, message in (
        ({"data": [folder, f"{folder}/"]}, "twice"),
        ({"weights": ["random", "random"]}, "twice"),
        ({"data": [str(number) for number in range(7)]}, "7 sources are too many .* at most 6"),
        ({"out": tmp_path / "x.jpg"}, "ends in .png"),
        ({"stage": 6}, "no stage f6"),
        ({"view_size": 32}, "single position"),
        ({"view_size": 224}, "side of 64 px"),
        ({"count": 0}, "give at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            show_similarity(**({"data": [folder], "out": tmp_path / "x.png", "view_size": 64} | options))


def test_features_that_are_not_finite_and_volumes_are_refused(tmp_path: Path) -> None:
    images = open_images(write_images(tmp_path / "images", [(64, 64)] * 2), cache="none")
    backbone = build_backbone("resnet18")
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.mul_(1e12)
    with pytest.raises(UserError, match="the similarity of regions has numbers that are not finite"):
        region_similarities(backbone, images, view_size=64)
    spec = PixelSpec.default(1, (0.0, 1.0), ndim=3)
    data = write_store(tmp_path / "v.safetensors", [np.zeros((8, 8, 8, 1), np.float32)], ["v"], spec)
    for show in (show_similarity, show_attention, show_tokens):
        with pytest.raises(UserError, match=r"v\.safetensors has images of 3 dimensions; give images of 2 dimensions"):
            show(data=data, weights="random", out=tmp_path / ("out" if show is show_attention else "x.png"))


def test_short_names_are_as_short_as_possible() -> None:
    assert short_names(["a/b/tiles", "a/c/xrays"], "data") == ["tiles", "xrays"]
    runs = ["R1/exported/backbone.safetensors", "R2/exported/backbone.safetensors", "random"]
    assert short_names(runs, "weights") == ["R1/exported/backbone", "R2/exported/backbone", "random"]
    assert short_names(["a.pth", "a.safetensors"], "weights") == ["a.pth", "a.safetensors"]
    assert [".." in name for name in short_names(["../run", "x/run", "."], "runs")] == [False] * 3
    assert short_names(["x/tiles", "tiles", "resnet18.a1_in1k"], "data") == ["x/tiles", "tiles", "resnet18.a1_in1k"]


def test_images_of_16_bits_are_seen_as_the_same_ones_of_8(tmp_path: Path) -> None:
    images = [np.random.default_rng(k).integers(0, 256, (64, 64)).astype(np.uint8) for k in range(2)]
    for bits, factor in (("8", np.uint8(1)), ("16", np.uint16(257))):
        (tmp_path / bits).mkdir()
        for k, image in enumerate(images):
            Image.fromarray(image * factor).save(tmp_path / bits / f"{k}.png")
    known = {name: json.dumps(value) for name, value in PixelSpec.default(1).record().items()}
    save_backbone(tmp_path / "w.safetensors", build_backbone("resnet18", 1), metadata=known)
    data = [tmp_path / "8", tmp_path / "16"]
    options = {"weights": tmp_path / "w.safetensors", "view_size": 64, "devices": "cpu", "out": tmp_path / "p.png"}
    found = show_similarity(data=data, **options)
    assert found["8 mean"] == pytest.approx(found["16 mean"], abs=1e-5)
