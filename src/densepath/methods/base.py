"""The base class of pre-training methods: a plain module that computes losses of batches of views."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.methods.collapse import CollapseAlarm
from densepath.methods.needs import Need
from densepath.methods.option_effects import Needed
from densepath.methods.signatures import check_numbers, complete_signature
from densepath.nets.backbones import Backbone
from densepath.sources.per_image import PerImage
from densepath.sources.pixel_source import PixelSource
from densepath.views.augment import Augment
from densepath.views.declarations import Center, Declaration, are_scaled
from densepath.views.view import Batch

Heartbeat = Callable[[str], None]
CENTER = Center()


def no_heartbeat(what: str) -> None:
    """A heartbeat that does nothing."""


@dataclass(frozen=True, eq=False)
class Losses:
    """The losses of a batch.

    Args:
        total: the scalar to minimize.
        terms: the losses that it is composed of, detached.
        statistics: other scalars to log, detached.
    """

    total: Tensor
    terms: dict[str, Tensor]
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The prediction of a method that predicts pixels, for pictures; all pixels are normalized as in views.

    Args:
        view: (B, 3, S, S) the input view.
        visible: (B, 3, S, S) its visible pixels, zero elsewhere.
        target: (B, 3, S, S) the target of the prediction.
        prediction: (B, 3, S, S) the prediction, in the target's colors.
        counted: (B, 1, S, S) bool: the pixels of the target that count in the loss.
    """

    view: Tensor
    visible: Tensor
    target: Tensor
    prediction: Tensor
    counted: Tensor


class Method(nn.Module):
    """A pre-training method. It is independent of trainers, files and command lines.

    The parameters of the constructor are the method's hyper-parameters; the first one is the backbone to train. A
    method that extends another one takes its parameters by ``**options: Unpack[...]`` (see
    :func:`complete_signature`). Numbers that are not finite, and negative weights of losses, are refused
    (:func:`check_numbers`).

    The networks have plain batch norms. The training code decides over which images these compute their statistics,
    and may convert them (:func:`densepath.nets.norms.set_batch_norm`).

    Attributes:
        backbone: the backbone to train.
        batch_norm: whether the paper's batch norms compute their statistics over the images of each process, or of all
            processes; used by a run with ``batch_norm="auto"``.
        views_together: number of views of an image that pass through the networks in one batch, one of all images after
            another; with more than one, batches may also have other numbers of crops in this order.
        heads_of_positions: whether heads get several rows of each view, such as its patches.
        extras: what is known of each image, by name, set by :meth:`prepare`; it arrives in ``Batch.extras``.
        unused_views: views of :meth:`views` that are not needed with these hyper-parameters.
        feature_view: the view of an image that :meth:`extract_features` gets.
        standardize: whether embeddings are standardized over the batch.
        needed_options: what options need of others to have an effect, by name; the others always have one.
        phases: whether the loss has other terms in other parts of a run, so that its values cannot be compared.
    """

    backbone: Backbone
    batch_norm: ClassVar[Literal["per_process", "synchronized"]] = "per_process"
    views_together: ClassVar[int] = 1
    heads_of_positions: ClassVar[bool] = False
    extras: Mapping[str, PerImage] = MappingProxyType({})
    unused_views: tuple[str, ...] = ()
    feature_view: ClassVar[Declaration] = CENTER
    standardize: bool = False
    needed_options: ClassVar[Needed] = {}
    phases: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        complete_signature(cls)
        check_numbers(cls)

    @cached_property
    def alarm(self) -> CollapseAlarm:
        """Reports ``key_spread`` or ``output_spread`` near zero, for methods with these statistics.

        ``key_spread`` is that of embeddings before they are standardized, which would hide that they are all the same.
        """
        return CollapseAlarm()

    @staticmethod
    @abstractmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        """The views of the method, by name; ``augment`` replaces the method's own augmentation."""

    @abstractmethod
    def forward(self, batch: Batch) -> Losses:
        """The losses of a batch of views."""

    def before_step(self, batch: Batch) -> None:
        """Called once for each optimizer step, before its first forward pass: momentum encoders are updated here.

        Args:
            batch: the first batch of the step.
        """

    def after_backward(self) -> None:
        """Called once for each optimizer step, before the weights are updated: gradients may be dropped here."""

    def after_step(self) -> None:
        """Called once for each optimizer step, after the weights have been updated.

        Submodules with a method of this name (queues, codebooks) then store what the batches of the step have added. A
        method that overrides this calls ``super().after_step()``.
        """
        parts: list[Any] = [part for part in self.modules() if hasattr(type(part), "after_step")]
        for part in parts[1:]:  # the first is the method itself
            part.after_step()

    def initialize(self) -> None:
        """Initialize the backbone as the paper does; called once, for a run from random weights of a timm name."""

    def exported_backbone(self) -> Backbone:
        """The backbone that is exported; by default ``self.backbone``."""
        return self.backbone

    def exported_parts(self) -> dict[str, dict[str, Tensor]]:
        """Other parts to export at the end of a run, by name: tensors that other methods use."""
        return {}

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        """Raise UserError if the hyper-parameters do not fit the views or the batch.

        Args:
            sizes: sizes of the views in pixels, by name, in the order of the tensor's axes.
            batch_size: images of one forward pass, over all processes.
            processes: number of processes; each has the same number of images.
        """
        for size in sizes.values():
            self.exported_backbone().check_size(*size)
        self.check_batch(batch_size, processes)

    def check_batch(self, batch_size: int, processes: int = 1) -> None:
        """Raise UserError if the loss of so few images tells nothing; for training and for held-out images.

        Args:
            batch_size, processes: as for :meth:`check`.
        """
        if self.standardize and batch_size < 2:
            raise UserError("a batch of one image cannot be standardized; use two or more")

    def check_length(self, epochs: float) -> None:
        """Raise UserError if the run is too short.

        Args:
            epochs: those that are done when its last step begins.
        """

    def comparable(self, epoch: float, progress: float) -> bool:
        """Whether the loss of held-out images has the meaning that it keeps until the end of the run.

        Args:
            epoch: epochs done so far, with the fraction.
            progress: the share of the run that is done.
        """
        return True

    def needs(self) -> Mapping[str, Need]:
        """The inputs of :meth:`prepare` besides the images, by names that the method chooses."""
        return {}

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str | None:
        """Called once, before the first step.

        A method that needs something of each image in ``Batch.extras`` sets ``extras`` here.

        Args:
            images: the source of the images; ``Batch.index`` are positions in it.
            given: the inputs of :meth:`needs`, by name.

        Returns:
            A line that tells the user what was found, or None.
        """
        return None

    def wants_features(self, batch: Batch) -> bool:
        """Whether the method needs features of all images before the step that starts with this batch.

        If so, the training code calls :meth:`extract_features` on the ``feature_view`` of each image, in evaluation
        mode, then :meth:`on_features`, and then :meth:`before_step`.
        """
        return False

    def extract_features(self, pixels: Tensor) -> Tensor:
        """Features (B, D) of views (B, 3, S, S), for :meth:`on_features`."""
        raise NotImplementedError(f"{type(self).__name__} does not extract features")

    def on_features(self, features: Tensor, batch: Batch, heartbeat: Heartbeat = no_heartbeat) -> None:
        """Receive the features (N, D) of all images, in the order of the source, the same on all processes.

        Args:
            features: the features of :meth:`extract_features`.
            batch: the first batch of the next step.
            heartbeat: called by all processes, equally often, during long work, with a few words for the user; it
                raises an exception if the run must stop.
        """

    def chance(self) -> Mapping[str, float]:
        """Losses, by name -> their value for a network that cannot tell images apart; the most important loss is last.

        They are also logged divided by it, as NAME_vs_chance.
        """
        return {}

    def warnings(self, row: Mapping[str, float], last: bool) -> list[str]:
        """Lines on measurements that show that the run fails; each is printed once.

        Args:
            row: the measurements since the last row.
            last: whether the run ends.
        """
        lines = self.alarm(row)
        ratios = [(name, row[f"{name}_vs_chance"]) for name in self.chance() if f"{name}_vs_chance" in row]
        if not last or not ratios or ratios[-1][1] < 1:
            return lines
        name, ratio = ratios[-1]
        return [
            *lines,
            f"the run ends with the {name.replace('_', ' ')} at {row[name]:.3f}, {ratio:.2f} times that of chance: "
            f"{self.at_chance()}",
        ]

    def at_chance(self) -> str:
        """What a run shows that ends at chance, and what to try: only options that the method has."""
        if "queue_size" not in signature(type(self)).parameters:
            return "it has learned nothing; try another learning rate, or more steps"
        scale = ", a larger --augment.scale" if are_scaled(self.views()) else ""
        standardize = "" if self.standardize else "--method.standardize, "
        return (
            "it cannot tell keys apart; try another learning rate, more steps, views that are more alike "
            f"(--augment.jitter 0{scale}), {standardize}or a smaller queue"
        )

    @classmethod
    def predicts_pixels(cls) -> bool:
        """Whether it implements :meth:`reconstruct`."""
        return cls.reconstruct is not Method.reconstruct

    def reconstruct(self, batch: Batch) -> Reconstruction:
        """The predicted pixels of a batch, for a method that predicts pixels."""
        raise NotImplementedError(f"{type(self).__name__} does not predict pixels")
