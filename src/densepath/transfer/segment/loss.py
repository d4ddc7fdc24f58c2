"""The loss of segmentation: soft Dice and cross-entropy, each of every image apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.losses import full_precision
from densepath.transfer.segment.config import Loss


class ImageSums:
    """What the loss of an image is computed of: sums over its pixels, which may be added up part by part.

    Args:
        overlap, predicted, true: (B, K) for each class the sums of p t, of p and of t, with the softmax p and the
            one-hot truth t.
        entropy: (B,) the sum of -log p of the true class.
    """

    def __init__(self, overlap: Tensor, predicted: Tensor, true: Tensor, entropy: Tensor) -> None:
        self.overlap, self.predicted, self.true, self.entropy = overlap, predicted, true, entropy

    @classmethod
    def of(cls, logits: Tensor, truth: Tensor) -> ImageSums:
        """The sums of logits (B, K, *size) and classes (B, *size); pixels of the class -1 count nowhere."""
        logits = full_precision(logits)
        known = (truth >= 0).unsqueeze(1)
        classes = truth.clamp(min=0)
        log = logits.log_softmax(1)
        chance = log.exp() * known
        one_hot = torch.zeros_like(chance).scatter_(1, classes.unsqueeze(1), known.to(chance.dtype))
        over = tuple(range(2, logits.ndim))
        entropy = F.nll_loss(log, torch.where(truth >= 0, truth, -100), reduction="none")
        sums = (chance * one_hot).sum(over), chance.sum(over), one_hot.sum(over)
        return cls(*sums, entropy.flatten(1).sum(1))

    def __add__(self, other: ImageSums) -> ImageSums:
        return ImageSums(*(a + b for a, b in zip(self.__dict__.values(), other.__dict__.values(), strict=True)))

    def loss(self, kind: Loss) -> Tensor:
        """(B,) the loss of each image."""
        zero = torch.zeros_like(self.entropy)
        return (self.dice() if kind != "ce" else zero) + (self.cross_entropy() if kind != "dice" else zero)

    def dice(self) -> Tensor:
        """(B,) 1 - the mean over the classes that an image has of 2 sum p t / (sum p + sum t).

        A class that the image lacks has no Dice of its own; what is wrongly given to it lowers that of others.
        """
        present = self.true > 0
        share = 2 * self.overlap / torch.where(present, self.predicted + self.true, 1)
        return ((1 - share) * present).sum(1) / present.sum(1).clamp(min=1)

    def cross_entropy(self) -> Tensor:
        """(B,) the mean over the pixels of an image."""
        return self.entropy / self.true.sum(1).clamp(min=1)


def segmentation_loss(logits: Tensor, truth: Tensor, kind: Loss) -> Tensor:
    """The mean loss of the images of a batch; that of several processes is the mean of theirs.

    Args:
        logits: (B, K, *size).
        truth: (B, *size) int64 classes, -1 where unknown.
        kind: which loss.

    Source: the Dice loss of Milletari et al., "V-Net", 3DV 2016, without squares; both together as in nnU-Net (Isensee
    et al., Nature Methods 2021), which takes Dice over a batch.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return ImageSums.of(logits, truth).loss(kind).mean()
