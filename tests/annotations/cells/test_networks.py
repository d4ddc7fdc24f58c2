"""Finders of other packages: with random weights where they are installed, and where their nuclei lie."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

import densepath
from densepath.annotations.cells import networks
from densepath.annotations.cells.areas import ImageArea
from densepath.annotations.cells.block_search import search
from densepath.annotations.cells.finders import Nuclei, build_finder
from densepath.core.errors import UserError

PINK, PURPLE = (225, 170, 200), (95, 60, 140)


def painted(mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Tissue of 100 x 125 µm with nuclei of 4 µm, and their centers in pixels."""
    pixels = np.empty((round(100 / mpp), round(125 / mpp), 3), np.uint8)
    pixels[:] = PINK
    y, x = (np.arange(n) * mpp + mpp / 2 for n in pixels.shape[:2])
    centers = np.array([[cx + cy % 5, cy + cx % 3] for cy in range(15, 90, 22) for cx in range(12, 110, 23)], float)
    for cx, cy in centers:
        pixels[np.hypot(x - cx, (y - cy)[:, None]) < 4] = PURPLE
    return pixels, centers / mpp


def segmented(pixels: np.ndarray) -> np.ndarray:
    return ndimage.label(pixels[..., 1] < 115)[0]


def of_cellpose(monkeypatch: pytest.MonkeyPatch, path: Path) -> networks.Segmenter:
    model = types.SimpleNamespace(eval=lambda image, **_: (segmented(image), None, None))
    module = types.SimpleNamespace(CellposeModel=lambda **_: model)
    monkeypatch.setattr(networks, "import_module", lambda name: module)
    return networks.cellpose(path, None)


def of_stardist(monkeypatch: pytest.MonkeyPatch, path: Path) -> networks.Segmenter:
    class Model:
        config = types.SimpleNamespace(n_channel_in=3)

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def predict_instances(self, image: np.ndarray, verbose: bool) -> Any:
            return ndimage.label(image[..., 1] < image[..., 1].mean() / 1.3)[0], {}

    monkeypatch.setattr(networks, "import_module", lambda name: types.SimpleNamespace(StarDist2D=Model))
    return networks.stardist(path, None)


def of_hovernet(monkeypatch: pytest.MonkeyPatch, path: Path) -> networks.Segmenter:
    class Model(torch.nn.Module):
        def __init__(self, **_: Any) -> None:
            super().__init__()

        def infer_batch(self, model: Any, batch: torch.Tensor, device: str) -> list[np.ndarray]:
            return [batch.numpy()[:, 46:210, 46:210, 1:2].astype(np.float32)]

        def postproc(self, heads: list[np.ndarray]) -> Any:
            labels = ndimage.label(heads[0][..., 0] < 115)[0]
            return labels, {k: {"type": k % 2} for k in range(1, labels.max() + 1)}

    torch.save({"desc": {}}, path)
    monkeypatch.setattr(networks, "import_module", lambda name: types.SimpleNamespace(HoVerNet=Model))
    return networks.hovernet(path, None)


def of_histomicstk(monkeypatch: pytest.MonkeyPatch, path: Path) -> networks.Segmenter:
    colors = {"hematoxylin": [0.65, 0.7, 0.29], "eosin": [0.07, 0.99, 0.11], "null": [0, 0, 0]}

    def deconvolve(pixels: np.ndarray, stains: np.ndarray) -> Any:
        assert stains.shape == (3, 3) and stains[0, 0] == 0.65
        return types.SimpleNamespace(Stains=np.where(pixels[..., 1:2] < 115, 20, 200))

    module = types.SimpleNamespace(
        stain_color_map=colors,
        color_deconvolution=deconvolve,
        detect_nuclei_kofahi=lambda nuclei, mask, *_: ndimage.label(mask)[0],
    )
    monkeypatch.setattr(networks, "import_module", lambda name: module)
    return networks.histomicstk(None)


@pytest.mark.parametrize("mpp", [0.25, 0.4])
@pytest.mark.parametrize("make", [of_cellpose, of_stardist, of_hovernet, of_histomicstk])
def test_painted_nuclei_return_within_a_pixel(
    make: Any, mpp: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finder = Nuclei(make(monkeypatch, tmp_path / "weights"))
    pixels, true = painted(mpp)
    found = search(ImageArea(pixels, (mpp, mpp)), None, finder)
    apart = np.linalg.norm(found.points[:, None] / mpp - true[None], axis=2)
    assert len(found.points) == len(true) and apart.min(axis=0).max() < 1


def test_weights_of_hovernet_that_are_damaged_are_not_a_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "import_module", lambda name: types.SimpleNamespace())
    path = tmp_path / "w.pth"
    torch.save({"desc": {"w": torch.zeros(1000)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(
        path.read_bytes().replace(b"M\xe8\x03", b"\x8a\x06" + (2**44).to_bytes(6, "little"))
    )  # its numbers
    with pytest.raises(UserError, match=r"are not weights of HoVer-Net \(it is damaged: it declares 65,536 GiB, more"):
        networks.hovernet(path, None)
    torch.save([1], path)
    with pytest.raises(UserError, match=r"are not weights of HoVer-Net"):
        networks.hovernet(path, None)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(networks, "import_module", missing)
    build_finder.cache_clear()
    (tmp_path / "w").write_bytes(b"x")
    for name in ("cellpose", "stardist", "hovernet"):
        with pytest.raises(UserError, match=r"is not installed \(.*\); pip install"):
            build_finder(name, tmp_path / "w", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"histomicstk is not installed"):
        build_finder("histomicstk")


def test_a_package_that_is_missing_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "find_spec", lambda name: name == "stardist" or None)
    for source, package in (("hovernet", "tiatoolbox"), ("cellpose", "cellpose"), ("stardist", "tensorflow")):
        with pytest.raises(UserError, match=f"{package} is not installed; pip install"):
            run(tmp_path / source, source, Path(__file__))
        assert not (tmp_path / source / "C").exists()


def run(tmp_path: Path, source: str, weights: Path | None) -> None:
    """The verb on an image."""
    from PIL import Image

    (tmp_path / "images").mkdir(parents=True)
    Image.fromarray(painted(0.5)[0]).save(tmp_path / "images" / "a.png")
    build_finder.cache_clear()
    made = densepath.cells(
        data=tmp_path / "images",
        out=tmp_path / "C",
        source=source,
        weights=weights,
        default_mpp=0.5,  # type: ignore[arg-type]
    )
    assert made["slides"] == 1 and made["problems"] == 0


def test_cellpose_with_random_weights(tmp_path: Path) -> None:
    pytest.importorskip("cellpose")
    parts = pytest.importorskip("cellpose.resnet_torch", reason="Cellpose 3; the network of Cellpose 4 takes minutes")
    torch.save(parts.CPnet([2, 32, 64, 128, 256], 3, 3).state_dict(), tmp_path / "random")
    run(tmp_path, "cellpose", tmp_path / "random")


def test_stardist_with_random_weights(tmp_path: Path) -> None:
    models = pytest.importorskip("stardist.models", exc_type=ImportError)
    pytest.importorskip("tensorflow")
    config = models.Config2D(n_channel_in=3, n_rays=8, unet_n_depth=2, unet_n_filter_base=4)
    models.StarDist2D(config, name="random", basedir=str(tmp_path)).keras_model.save_weights(
        str(tmp_path / "random" / "weights_best.h5")
    )
    run(tmp_path, "stardist", tmp_path / "random")


def test_hovernet_with_random_weights(tmp_path: Path) -> None:
    parts = pytest.importorskip("tiatoolbox.models.architecture.hovernet", exc_type=ImportError)
    torch.save(parts.HoVerNet(num_types=5, mode="fast").state_dict(), tmp_path / "random.pth")
    run(tmp_path, "hovernet", tmp_path / "random.pth")


def test_histomicstk(tmp_path: Path) -> None:
    pytest.importorskip("histomicstk.segmentation.nuclear", exc_type=ImportError)
    run(tmp_path, "histomicstk", None)
