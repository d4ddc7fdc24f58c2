"""Pictures of what the exported backbone has learned, at intervals of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from densepath.core.errors import unwrapped
from densepath.core.streams import say
from densepath.methods.base import Method
from densepath.nets.backbones import Backbone
from densepath.nets.preserve_mode import preserve_mode
from densepath.sources.pixel_source import PixelSource
from densepath.training.reconstruction_images import PICTURES

DrawLearned = Callable[[Backbone, PixelSource, Path, int, int], list[Path]]


class LearnedImages:
    """Draws what a method's exported backbone finds in images, always the same ones. An error ends the pictures only.

    Args:
        method: the method; its training mode is restored.
        images: the source.
        draw: draws into a folder, given the backbone in evaluation mode, the source, the step and the seed.
        out: the run folder.
        seed: decides which images are drawn.
    """

    def __init__(self, method: Method, images: PixelSource, draw: DrawLearned, out: Path, seed: int) -> None:
        self.method, self.images, self.draw, self.out, self.seed = method, images, draw, out, seed
        self._failed = False

    @torch.no_grad()
    def __call__(self, step: int) -> list[Path]:
        """Draw after ``step`` optimizer steps; returns the pictures."""
        if self._failed:
            return []
        backbone = self.method.exported_backbone()
        try:
            with preserve_mode(backbone):
                return self.draw(backbone.eval(), self.images, self.out / PICTURES, step, self.seed)
        except Exception as error:  # whatever a full disk, a small GPU or a drawing library raises
            say(f"densepath: warning: pictures of what is learned are not drawn ({unwrapped(str(error))})")
            self._failed = True
            return []
