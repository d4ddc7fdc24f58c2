"""SimCLR: contrasts whole images within a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.losses import full_precision, nt_xent
from densepath.core.regions import global_pool
from densepath.methods.base import Losses, Method
from densepath.nets.backbones import Backbone
from densepath.nets.heads import NormedHead
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch


class SimCLR(Method):
    """Two views of an image attract each other among all the views of a batch.

    With z = g(GAP(f5(x))), unit vectors, of the 2N views of N images, and j the other view of i's image (Equation 1),

    l_i = -log(exp(z_i z_j / t) / sum over k != i of exp(z_i z_k / t)), averaged over the 2N views.

    The N images are those of all processes, and the losses of all processes have gradients for the views of each. Both
    views pass through the network as one batch, so batch norms compute statistics over both.

    Args:
        backbone: the encoder.
        dim: dimension of the embeddings.
        hidden_dim: width of the head's hidden layer.
        temperature: temperature t of the contrastive loss.

    Source: Chen et al., ICML 2020, arXiv 2002.05709; head, temperature and augmentation as in ConCL (ECCV 2022).
    """

    batch_norm = "synchronized"
    views_together = 2

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 128,
        hidden_dim: int = 512,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"the temperature must be positive, not {temperature}")
        self.backbone = backbone
        self.head = NormedHead(backbone.channels[backbone.deepest], hidden_dim, dim, last_norm=True)
        self.temperature = temperature

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        augment = augment or Augment(
            scale=(0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grayscale=0.2, blur=0.5
        )
        return {"first": augment.random_view(), "second": augment.random_view()}

    def forward(self, batch: Batch) -> Losses:
        first, second = self.embed(batch["first"].pixels, batch["second"].pixels)
        loss = nt_xent(first, second, self.temperature)
        return Losses(loss, {"instance_loss": loss.detach()})

    def embed(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings, unit vectors (B, dim), of two views (B, 3, S, S)."""
        features = self.backbone(torch.cat((first, second)))[self.backbone.deepest]
        of_first, of_second = F.normalize(full_precision(self.head(global_pool(features))), dim=1).chunk(2)
        return of_first, of_second

    def check_batch(self, batch_size: int, processes: int = 1) -> None:
        super().check_batch(batch_size, processes)
        if batch_size < 2:
            raise UserError("a batch of one image has no negatives; use two or more")
