"""What every pre-training method is: a plain module that turns batches of views into losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from densepath.methods.needs import Need
from densepath.methods.signatures import complete_signature
from densepath.nets.backbones import Backbone
from densepath.sources.pixel_source import PerImage, PixelSource
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch

Heartbeat = Callable[[str], None]


def no_heartbeat(what: str) -> None:
    """The heartbeat of work that nobody watches."""


@dataclass(frozen=True)
class Losses:
    """What a step gives.

    Args:
        total: the scalar to minimize.
        terms: the losses that it is made of, detached.
        statistics: other scalars worth logging, detached.
    """

    total: Tensor
    terms: dict[str, Tensor]
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """What a method that predicts pixels makes of a batch, to be looked at: pixels as views have them, normalized.

    Args:
        view: (B, 3, S, S) the view that it is given.
        visible: (B, 3, S, S) what it sees of that, zero elsewhere.
        target: (B, 3, S, S) what it should predict.
        prediction: (B, 3, S, S) what it predicts, in the target's colors.
        counted: (B, 1, S, S) bool: the pixels of the target that its loss counts.
    """

    view: Tensor
    visible: Tensor
    target: Tensor
    prediction: Tensor
    counted: Tensor


class Method(nn.Module):
    """A pre-training method. It knows nothing of trainers, files or command lines.

    A constructor's signature is the method's hyper-parameters; its first argument is the backbone to train. One that
    builds on another method takes that one's by ``**options: Unpack[...]`` (see :func:`complete_signature`).

    Its networks have plain batch norms. Whoever trains it decides over which images these take their statistics
    (:func:`densepath.nets.norms.set_batch_norm`), and so may convert them.

    Attributes:
        batch_norm: over which images the paper's batch norms take their statistics: those of each process, or of all;
            what a run with ``batch_norm="auto"`` does.
        views_together: how many views of an image pass through its networks in one batch, one after the other.
        extras: what :meth:`prepare` found out about each image, by name: what the method wants in ``Batch.extras``.
        unused_views: those of :meth:`views` that need not be made with these hyper-parameters.
    """

    batch_norm: ClassVar[Literal["per_process", "synchronized"]] = "per_process"
    views_together: ClassVar[int] = 1
    extras: Mapping[str, PerImage] = MappingProxyType({})
    unused_views: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        complete_signature(cls)

    @staticmethod
    @abstractmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        """The views that it wants to see, by name; ``augment`` takes the place of the method's own augmentation."""

    @abstractmethod
    def forward(self, batch: Batch) -> Losses:
        """The losses of a batch of views."""

    def before_step(self, batch: Batch) -> None:
        """Called once for each optimizer step, before anything of the step is computed: momentum encoders follow here.

        Args:
            batch: the first one that the step is made of.
        """

    def after_step(self) -> None:
        """Called once for each optimizer step, when the weights have been updated.

        Parts with a method of this name (queues, codebooks) take what the batches of the step brought them. A method
        that overrides this calls ``super().after_step()``.
        """
        parts: list[Any] = [part for part in self.modules() if hasattr(type(part), "after_step")]
        for part in parts[1:]:  # the first is the method itself
            part.after_step()

    @abstractmethod
    def exported_backbone(self) -> Backbone:
        """The backbone that is exported."""

    def exported_parts(self) -> dict[str, dict[str, Tensor]]:
        """What else is exported at the end of a run, by name: tensors of parts that other methods build upon."""
        return {}

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        """Raise UserError where the hyper-parameters do not fit.

        Args:
            sizes: those of the views in pixels, by name, in the order of the tensor's axes.
            batch_size: images that the method sees at a time, over all processes.
            processes: how many share them, equally.
        """

    def needs(self) -> Mapping[str, Need]:
        """What :meth:`prepare` must be given besides the images, by names of the method's own choice."""
        return {}

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str | None:
        """Called once, before the first step.

        A method that wants something known of each image in ``Batch.extras`` sets ``extras`` here.

        Args:
            images: the source of the images, whose positions in it are ``Batch.index``.
            given: what :meth:`needs` asks for, by its names.

        Returns:
            What was found, a line for the user.
        """
        return None

    def wants_features(self, batch: Batch) -> bool:
        """Whether, before a step that begins with this batch, it wants features of all images.

        Whoever trains it then calls :meth:`extract_features` for a :class:`Center` view of each image, in evaluation mode, and
        :meth:`on_features`; then :meth:`before_step`.
        """
        return False

    def extract_features(self, pixels: Tensor) -> Tensor:
        """Features (B, D) of views (B, 3, S, S), where it wants any."""
        raise NotImplementedError(f"{type(self).__name__} wants no features")

    def on_features(self, features: Tensor, batch: Batch, heartbeat: Heartbeat = no_heartbeat) -> None:
        """Learn the features (N, D) of all images, in the order of their source and alike on all processes.

        Args:
            features: what :meth:`extract_features` gave.
            batch: the first one of the step that comes next.
            heartbeat: called by all processes, equally often, after each part of what takes long, with a few words; it
                raises where the run is to stop.
        """

    @classmethod
    def predicts_pixels(cls) -> bool:
        """Whether :meth:`reconstruct` is there."""
        return cls.reconstruct is not Method.reconstruct

    def reconstruct(self, batch: Batch) -> Reconstruction:
        """What it predicts for a batch, where it predicts pixels."""
        raise NotImplementedError(f"{type(self).__name__} predicts no pixels")
