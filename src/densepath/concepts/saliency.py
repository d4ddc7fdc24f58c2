"""Two concepts, what stands out and the rest: bas-ConCL."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.concepts.map_files import match_names, paths_identity
from densepath.concepts.saliency_models import Predict, load_saliency_model
from densepath.core.errors import UserError
from densepath.images.decode import DamagedImage, read_image
from densepath.images.files import SUFFIXES
from densepath.views.maker import IMAGENET_MEAN, IMAGENET_STD

SIDE = 256  # pixels that BASNet sees
THRESHOLD = 0.5  # of the map, which reaches from 0 to 1; the paper names none


class Saliency:
    """Foreground and background of each image by a saliency model, or by masks that one has made.

    The image is resized to 256 x 256 and normalized as for ImageNet. The first output is a map; a sigmoid makes
    probabilities of it where it holds anything below 0 or above 1. It is stretched to reach from 0 to 1 on each
    image, and split at one half.

    Args:
        source: the file of a model (see :func:`load_saliency_model`), or a folder of grey masks, one for each image
            and of its name. It is looked at once there are images: an export needs none.

    Source: ConCL (ECCV 2022), section 4.3, with BASNet (Qin et al., CVPR 2019).
    """

    num_concepts = 2

    def __init__(self, source: str | Path) -> None:
        self.source = Path(source)
        self.parallel = self.source.is_dir()  # a model uses all cores by itself
        self._masks: dict[str, Path] = {}
        self._predict: Predict | None = None

    def identity(self) -> dict[str, Any]:
        if self.source.is_dir():
            return {"masks": paths_identity(self._masks.values()), "threshold": THRESHOLD}
        with open(self.source, "rb") as file:
            return {"saliency": hashlib.file_digest(file, "sha256").hexdigest(), "threshold": THRESHOLD}

    def begin(self, names: list[str]) -> None:
        if not self.source.exists():
            raise UserError(f"there is no saliency model and no folder of masks at {self.source}; correct the path")
        if self.source.is_dir():
            self._masks = match_names(names, self.source, SUFFIXES)

    def label(self, image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[Any]:
        if self.source.is_dir():
            try:
                saliency = torch.from_numpy(read_image(self._masks[name])).float().mean(2) / 255
            except DamagedImage as error:
                raise UserError(f"{error}; replace the mask") from error
        else:
            saliency = self._saliency(image)
        low, high = saliency.aminmax()
        return ((saliency - low) > THRESHOLD * (high - low)).to(torch.uint8).numpy()

    @torch.no_grad()
    def _saliency(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """(h, w) in [0, 1]."""
        if self._predict is None:
            self._predict = load_saliency_model(self.source)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
        resized = F.interpolate(pixels[None], (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        try:
            outputs = self._predict((resized - mean) / std)
        except Exception as error:  # whatever somebody else's program raises
            reason = (str(error) or type(error).__name__).strip().splitlines()[-1]
            raise UserError(
                f"the saliency model {self.source} fails on an image of {SIDE} x {SIDE} px ({reason})"
            ) from error
        outputs = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
        first = next(iter(outputs), None) if isinstance(outputs, Sequence) else outputs
        saliency = first.detach().float().cpu().squeeze() if isinstance(first, Tensor) else torch.zeros(0)
        if saliency.ndim != 2 or not saliency.isfinite().all():
            found = tuple(first.shape) if isinstance(first, Tensor) else f"a {type(first).__name__}"
            raise UserError(f"the saliency model {self.source} gives {found} where one map of finite numbers should be")
        return saliency if saliency.min() >= 0 and saliency.max() <= 1 else saliency.sigmoid()
