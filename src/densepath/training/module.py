"""A pre-training method as Lightning sees it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor

from densepath.methods.base import Method, Tick, no_heartbeat
from densepath.sources.batch import ImageBatch
from densepath.training.feature_pass import Sweep
from densepath.training.optimizers import Optimizer, build_optimizer, build_schedule, clip_gradients
from densepath.views.maker import ViewMaker


class PretrainModule(L.LightningModule):
    """Makes the views of a batch, hands them to a method, and minimizes its loss.

    Args:
        method: what is trained.
        views: makes what the method wants to see.
        optimizer: how its weights are updated.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps in an epoch.
        sweep: gives the features of all images to a method that asks for them.

    Attributes:
        aside: makes the context of long work before a step; the training sets it.
    """

    aside: Callable[[], AbstractContextManager[Tick]]

    def __init__(
        self,
        method: Method,
        views: ViewMaker,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: float,
        sweep: Sweep | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.make_views = views
        self.optimizer_settings = optimizer
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.sweep = sweep
        self.aside = lambda: nullcontext(no_heartbeat)

    def transfer_batch_to_device(self, batch: ImageBatch, device: torch.device, dataloader_idx: int) -> ImageBatch:
        """Lightning does not know the type."""
        return batch.to(device)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor | float]:
        """The loss, its terms and the method's statistics; the epochs done before this batch."""
        with torch.autocast(self.device.type, enabled=False):
            views = self.make_views(batch)
        if self.sweep is not None and self.method.wants_features(views):
            with self.aside() as tick:
                self.method.on_features(self.sweep(self.method, self.device, tick), views, tick)
        losses = self.method(views)
        return {"loss": losses.total, **losses.terms, **losses.statistics, "epoch": batch.epoch}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning calls this before each optimizer step, with the gradients that the step takes."""
        clip_gradients(optimizer, self.optimizer_settings)

    def configure_optimizers(self) -> Any:
        """The optimizer, with a learning rate that changes at each step."""
        optimizer = build_optimizer(self.method, self.optimizer_settings)
        schedule = build_schedule(optimizer, self.optimizer_settings, self.total_steps, self.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
