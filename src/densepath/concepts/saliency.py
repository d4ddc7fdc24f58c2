"""Two concepts, salient foreground and background: bas-ConCL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.concepts.map_files import check_shape
from densepath.concepts.matching import Matches, match_names
from densepath.concepts.saliency_models import Predict, fetched, is_model_folder, load_saliency_model
from densepath.core.digests import digest_of_file
from densepath.core.errors import UserError
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_image
from densepath.sources.listing import SUFFIXES

THRESHOLD = 0.5  # for a map with values from 0 to 1; the paper does not give it


class Saliency:
    """Foreground and background of each image from a saliency model, or from masks of such a model.

    The model's first output is the map; if it has values below 0 or above 1, a sigmoid is applied. The map of each
    image is scaled to the range from 0 to 1 and thresholded at one half.

    Args:
        source: the file or folder of a model (see :func:`load_saliency_model`); the name of a model on the Hugging Face
            hub; or a folder of grey masks, one for each image, with its name and aspect ratio. It is read only when
            there are images: an export does not need it.

    Source: ConCL (ECCV 2022), section 4.3, with BASNet (Qin et al., CVPR 2019).
    """

    num_concepts = 2
    needs_color = False

    def __init__(self, source: str | Path) -> None:
        self.source = Path(source)
        self.parallel = self._has_masks  # a model uses all cores itself
        self._matches: Matches | None = None
        self._names: Iterable[str] = ()
        self._predict: Predict | None = None

    def identity(self) -> dict[str, Any]:
        if self._has_masks:
            return {"maps": "masks", "threshold": THRESHOLD}
        inside = sorted(p for p in self.source.iterdir() if p.is_file()) if self.source.is_dir() else [self.source]
        digests = [digest_of_file(path) for path in inside]
        return {"saliency": digests[0] if len(digests) == 1 else digests, "threshold": THRESHOLD}

    def files(self) -> Iterable[Path]:
        return () if self._matches is None else map(self._matches.path, self._names)

    def begin(self, names: Iterable[str]) -> None:
        if not self.source.exists():
            folder = fetched(str(self.source))
            if folder is None:
                raise UserError(
                    f"{self.source} is not a saliency model, a folder of masks, or a model that can be downloaded; "
                    "correct the path"
                )
            self.source = folder
        if self._has_masks:
            self._matches, self._names = match_names(names, self.source, SUFFIXES), names

    def label(self, image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[Any]:
        if self._has_masks:
            assert self._matches is not None, "call begin first"
            path = self._matches.path(name)
            try:
                mask = read_image(path)
            except CorruptImage as error:
                raise UserError(f"{error}; replace the mask") from error
            check_shape(path, mask.shape[:2], image, "a mask")
            saliency = torch.from_numpy(mask).float().mean(2) / 255
        else:
            saliency = self._saliency(image)
        low, high = saliency.aminmax()
        return ((saliency - low) > THRESHOLD * (high - low)).to(torch.uint8).numpy()

    @property
    def _has_masks(self) -> bool:
        return self.source.is_dir() and not is_model_folder(self.source)

    @torch.no_grad()
    def _saliency(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """(h, w) in [0, 1]."""
        if self._predict is None:
            self._predict = load_saliency_model(self.source)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
        outputs = self._predict(pixels[None])
        outputs = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
        first = next(iter(outputs), None) if isinstance(outputs, Sequence) else outputs
        saliency = first.detach().float().cpu().squeeze() if isinstance(first, Tensor) else torch.zeros(0)
        if saliency.ndim != 2 or not saliency.isfinite().all():
            found = tuple(first.shape) if isinstance(first, Tensor) else f"a {type(first).__name__}"
            raise UserError(
                f"the saliency model {self.source} returns {found} instead of one finite map; export it again"
            )
        return saliency if saliency.min() >= 0 and saliency.max() <= 1 else saliency.sigmoid()
