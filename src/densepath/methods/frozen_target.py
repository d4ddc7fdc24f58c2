"""What methods have in common that predict what a frozen network says of each patch."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from densepath.methods.base import Method
from densepath.nets.frozen import Frozen
from densepath.nets.teachers import Teacher
from densepath.nets.tokenizers import Tokenizer
from densepath.sources.pixel_source import PixelSource

Network = TypeVar("Network", Teacher, Tokenizer)


class FrozenTarget(Method, Generic[Network]):
    """A method with a head for the outputs of a frozen network.

    The network comes with :meth:`prepare`, or with :meth:`set_target` in a training loop of one's own: an export does
    without it. It decides how wide the head is. It is no part of the state but for a checksum, so that a run is resumed
    with the same one alone.

    Args:
        what: what the network is, for messages.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self.target: Frozen[Network] = Frozen(what)
        self.head: nn.Module = nn.Identity()  # until the target is known
        self.register_load_state_dict_pre_hook(_meet_state)

    @abstractmethod
    def load_target(self) -> Network:
        """The network that the hyper-parameters name."""

    @abstractmethod
    def make_head(self, width: int) -> nn.Module:
        """A new head with so many outputs for each patch."""

    def prepare(self, images: PixelSource) -> str:
        with torch.random.fork_rng(devices=[]):  # the head's weights do not depend on how the target was made
            target = self.load_target()
            target.show(images.spec)
        self.set_target(target)
        return target.describe()

    def set_target(self, target: Network) -> None:
        """Learn from a network from now on, with a new head."""
        self.target.hold(target)
        self.head = self.make_head(target.width)


def _meet_state(method: Any, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Before a state is loaded: an export has no target, and so does not know how wide the head is."""
    biases = [key for key in state if key.startswith(f"{prefix}head.") and key.endswith("bias")]
    if biases and isinstance(method.head, nn.Identity):
        method.head = method.make_head(len(state[biases[-1]]))
