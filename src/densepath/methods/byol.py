"""BYOL: each view of an image predicts the embedding of the other by a momentum network."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.core.losses import full_precision
from densepath.core.momentum import Momentum
from densepath.core.regions import global_pool
from densepath.core.schedules import cosine
from densepath.methods.base import Losses, Method
from densepath.nets.backbones import Backbone
from densepath.nets.heads import NormedHead
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch


class BYOL(Method):
    """Bootstrap your own latent: no negatives.

    L = |q(z1) - z2'|^2 + |q(z2) - z1'|^2 of unit vectors (Equation 2, for both views): the online network's z = g(f(x))
    goes through a predictor q; z' is the target network's, its momentum copy, without gradient. The momentum rises from
    m to 1 as 1 - (1 - m) (cos(pi k / K) + 1) / 2 at step k of K.

    The released code of ConCL's benchmark omits the constant 4 of the loss and synchronizes only the batch norms of the
    backbone; this synchronizes also those of the heads, as the paper does. It updates the target after each step; this
    does so before the next step, with the momentum of that step.

    Args:
        backbone: the online encoder; the target encoder is its momentum copy.
        dim: dimension of the embeddings.
        hidden_dim: width of the hidden layers of projector and predictor.
        momentum: momentum m of the target network at the start of the run.

    Source: Grill et al., NeurIPS 2020, arXiv 2006.07733; heads and momentum as in ConCL (ECCV 2022).
    """

    batch_norm = "synchronized"

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 256,
        hidden_dim: int = 512,
        momentum: float = 0.996,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise UserError(f"the momentum must be between 0 and 1, not {momentum}")
        self.backbone = backbone
        self.projector = NormedHead(backbone.channels[backbone.deepest], hidden_dim, dim)
        self.predictor = NormedHead(dim, hidden_dim, dim)
        for layer in (self.predictor.fc1, self.predictor.fc2):
            nn.init.normal_(layer.weight, std=0.01)  # as released
        self.target_backbone = Momentum(self.backbone)
        self.target_projector = Momentum(self.projector)
        self.momentum = momentum

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        """The first view is always blurred, the second sometimes solarized; ``augment`` applies to both."""
        if augment is not None:
            return {"first": augment.random_view(), "second": augment.random_view()}
        augment = Augment(scale=(0.08, 1.0), saturation=0.2, interpolation="bicubic")
        first, second = replace(augment, blur=1.0), replace(augment, blur=0.1, solarize=0.2)
        return {"first": first.random_view(), "second": second.random_view()}

    def before_step(self, batch: Batch) -> None:
        momentum = cosine(self.momentum, 1.0, batch.progress)
        self.target_backbone.update(self.backbone, momentum)
        self.target_projector.update(self.projector, momentum)

    def forward(self, batch: Batch) -> Losses:
        first, second = batch["first"].pixels, batch["second"].pixels
        loss = self.distance(first, second) + self.distance(second, first)
        return Losses(loss, {"prediction_loss": loss.detach()})

    def distance(self, pixels: Tensor, others: Tensor) -> Tensor:
        """The mean of |q(z) - z'|^2 over the images, between 0 and 4, of views (B, 3, S, S)."""
        deepest = self.backbone.deepest
        prediction = self.predictor(self.projector(global_pool(self.backbone(pixels)[deepest])))
        with torch.no_grad():
            target = self.target_projector(global_pool(self.target_backbone(others)[deepest]))
        return 2 - 2 * F.cosine_similarity(full_precision(prediction), full_precision(target)).mean()
