"""Finders of other packages, which divide an image into nuclei: a cell is the center of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError, errors_as

Pixels = npt.NDArray[np.uint8]
# An image (H, W, 3) -> labels (H, W) with background 0, and the name of each label's class or None.
Segment = Callable[[Pixels], tuple[npt.NDArray[Any], Mapping[int, str] | None]]

_NUCLEUS = 8.5  # µm: the diameter for which Cellpose's model of nuclei is made, 17 px at 0.5 µm/px
_WINDOW, _CENTER = 256, 164  # pixels that HoVer-Net sees at a time, and for which it answers
_BATCH = 8
_STAINS = ("hematoxylin", "eosin", "null")
_INSTALL = {"stardist": "stardist tensorflow"}  # what is to be installed, where it is not only the package


@dataclass(frozen=True, eq=False)
class Segmenter:
    """What divides an image into nuclei.

    Args:
        mpp: µm per pixel of the images that it gets.
        reach: µm; what is farther away from a cell does not change it.
        segment: the function.
    """

    mpp: float
    reach: float
    segment: Segment


def cellpose(weights: str | Path | None, mpp: float | None) -> Segmenter:
    """Cellpose 3 or 4, with a model in a file.

    Raises:
        UserError: the package is missing, or cannot read the weights.
    """
    models = _package("cellpose.models")
    resolution = mpp or 0.5
    model = _loaded(lambda: models.CellposeModel(gpu=_has_gpu(), pretrained_model=str(weights)), "Cellpose", weights)
    diameter = _NUCLEUS / resolution

    def segment(pixels: Pixels) -> tuple[npt.NDArray[Any], None]:
        return np.asarray(model.eval(pixels, diameter=diameter, channels=[0, 0])[0]), None

    return Segmenter(resolution, 60.0, segment)


def stardist(weights: str | Path | None, mpp: float | None) -> Segmenter:
    """StarDist for images, with a model in a folder (config.json and weights).

    Raises:
        UserError: the package or TensorFlow is missing, or it cannot read the weights.
    """
    models = _package("stardist.models")
    folder = Path(str(weights)).resolve()
    model = _loaded(lambda: models.StarDist2D(None, name=folder.name, basedir=str(folder.parent)), "StarDist", weights)
    gray = int(model.config.n_channel_in) == 1

    def segment(pixels: Pixels) -> tuple[npt.NDArray[Any], None]:
        low, high = np.percentile(pixels, (1, 99.8))  # as in its examples
        image = (pixels.astype(np.float32) - low) / max(high - low, 1e-6)
        return np.asarray(model.predict_instances(image.mean(2) if gray else image, verbose=False)[0]), None

    return Segmenter(mpp or 0.25, 40.0, segment)


def hovernet(weights: str | Path | None, mpp: float | None) -> Segmenter:
    """HoVer-Net of TIAToolbox in its fast mode, with the weights in a file.

    Raises:
        UserError: the package is missing, or the weights are of another network.
    """
    import torch

    architecture = _package("tiatoolbox.models.architecture.hovernet")
    tensors, kinds = _loaded(lambda: _tensors_and_kinds(Path(str(weights))), "HoVer-Net", weights)
    model = architecture.HoVerNet(num_types=kinds, mode="fast")
    _loaded(lambda: model.load_state_dict(tensors), "HoVer-Net", weights)
    device = "cuda" if _has_gpu() else "cpu"
    model.to(device).eval()

    def segment(pixels: Pixels) -> tuple[npt.NDArray[Any], Mapping[int, str] | None]:
        heads: list[npt.NDArray[Any]] = []
        windows, places, shape = _windows(pixels)
        for start in range(0, len(windows), _BATCH):
            batch = torch.from_numpy(windows[start : start + _BATCH])
            found = model.infer_batch(model, batch, device=device)
            for number, head in enumerate(found):
                if len(heads) <= number:
                    heads.append(np.zeros((*shape, head.shape[-1]), np.float32))
                for (y, x), part in zip(places[start : start + _BATCH], head, strict=True):
                    heads[number][y : y + _CENTER, x : x + _CENTER] = part
        labels, nuclei = model.postproc([head[: pixels.shape[0], : pixels.shape[1]] for head in heads])
        names = {int(k): f"type {int(v['type'])}" for k, v in nuclei.items()} if kinds is not None else None
        return np.asarray(labels), names

    return Segmenter(mpp or 0.25, 40.0, segment)


def _tensors_and_kinds(path: Path) -> tuple[dict[str, Any], int | None]:
    """The tensors of HoVer-Net, and the number of its types; None without types."""
    from densepath.core.torch_files import load_whole  # torch takes seconds to import

    content = load_whole(path)
    tensors: dict[str, Any] = content.get("desc", content)  # as the authors publish them
    found = (t.shape[0] for name, t in tensors.items() if name.startswith("decoder.tp.") and "u0" in name)
    return tensors, next(found, None)


def histomicstk(mpp: float | None) -> Segmenter:
    """The nuclei of HistomicsTK: color deconvolution, and the maxima of a multi-scale Laplacian (Kofahi et al., 2010).

    Raises:
        UserError: the package is missing.
    """
    nuclear = _package("histomicstk.segmentation.nuclear")
    deconvolution = _package("histomicstk.preprocessing.color_deconvolution")
    resolution = mpp or 0.5
    stains = np.array([deconvolution.stain_color_map[stain] for stain in _STAINS]).T

    def segment(pixels: Pixels) -> tuple[npt.NDArray[Any], None]:
        nuclei = deconvolution.color_deconvolution(pixels, stains).Stains[:, :, 0]
        mask = nuclei < 60  # as in its examples
        if not mask.any():
            return np.zeros(pixels.shape[:2], np.int32), None
        radii = [2.5 / resolution, 4.5 / resolution]  # µm
        labels = nuclear.detect_nuclei_kofahi(
            nuclei.astype(np.float64), mask, radii[0], radii[1], 9.0 / resolution**2, 3.0 / resolution
        )
        return np.asarray(labels), None

    return Segmenter(resolution, 40.0, segment)


def _windows(pixels: Pixels) -> tuple[Pixels, Sequence[tuple[int, int]], tuple[int, int]]:
    """Windows (N, 256, 256, 3) whose centers cover an image, where the centers lie, and the covered size."""
    counts = [-(-side // _CENTER) for side in pixels.shape[:2]]
    margin = (_WINDOW - _CENTER) // 2
    height, width = (count * _CENTER for count in counts)
    padding = [(margin, margin + cover - side) for side, cover in zip(pixels.shape[:2], (height, width), strict=True)]
    wide = np.pad(pixels, (*padding, (0, 0)), mode="symmetric")
    places = [(y, x) for y in range(0, height, _CENTER) for x in range(0, width, _CENTER)]
    return np.stack([wide[y : y + _WINDOW, x : x + _WINDOW] for y, x in places]), places, (height, width)


def check_package(package: str) -> None:
    """Check that a package of a finder, and what it needs besides, are installed, without loading them.

    Raises:
        UserError: one is not.
    """
    install = _INSTALL.get(package, package)
    for name in install.split():
        if find_spec(name) is None:
            raise UserError(f"{name} is not installed; pip install {install}")


def _package(module: str) -> Any:
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        install = _INSTALL.get(package, package)
        raise UserError(f"{package} is not installed ({error}); pip install {install}") from error


def _loaded(load: Callable[[], Any], name: str, weights: str | Path | None) -> Any:
    wrong = f"{weights} are not weights of {name}"
    with errors_as(lambda error: UserError(f"{wrong} ({error}); give others with --weights")):
        return load()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
