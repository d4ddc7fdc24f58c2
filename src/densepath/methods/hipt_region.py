"""The region stage of HIPT: DINO on grids of features of the tiles of a region."""

from __future__ import annotations

from typing import Literal, Unpack

from densepath.core.errors import UserError
from densepath.methods.dino import DINO
from densepath.methods.dino_options import DINOOptions
from densepath.methods.multi_crop import LOCAL
from densepath.nets.backbones import Backbone
from densepath.views.augment import Augment
from densepath.views.crops import Window
from densepath.views.declarations import Declaration, RandomView


class HIPTRegion(DINO):
    """Self-distillation of regions of slides.

    An image is a region of 4096 px as a grid of 16 x 16 vectors, the features of its tiles of 256 px by the first stage
    (recipe ``hipt_patch``); ``densepath data regions`` makes a packed store of them. Its transformer has patches of one
    vector, a linear layer with a GELU as embedding, and positions for 14 x 14. Crops are windows of 14 x 14 and 6 x 6
    vectors, flipped with probability 0.5: nothing is resized, and there is no other augmentation. The rest is DINO.

    Args:
        backbone: the student, e.g. that of the recipe, for as many channels as features have.
        pool: a region's vector: the class token ("cls"), or the "mean" of its positions.
        **dino: as in :class:`DINO`.

    Source: Chen et al., HIPT, CVPR 2022, arXiv 2206.02647, and its released ``main_dino4k.py``.
    """

    def __init__(self, backbone: Backbone, pool: Literal["cls", "mean"] = "cls", **dino: Unpack[DINOOptions]) -> None:
        super().__init__(backbone, pool=pool, **dino)

    @staticmethod
    def views(augment: Augment | None = None, crops: int = 8, size: float = LOCAL) -> dict[str, Declaration]:
        """Windows of the grid."""
        if augment is not None:
            raise UserError("hipt_region flips windows of features, and has no other augmentation; leave out --augment")
        window = Window(flip=(0.5,))
        whole = RandomView(window)
        return {"first": whole, "second": whole, "local": RandomView(window, size=size, count=max(crops, 1))}
