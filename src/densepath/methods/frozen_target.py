"""What methods have in common that predict what a frozen network says of each patch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

from torch import Tensor, nn

from densepath.methods.base import Method
from densepath.methods.needs import Need
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
        what: what the network is.
    """

    def __init__(self, what: Literal["teacher", "tokenizer"]) -> None:
        super().__init__()
        self._kind = what
        self.target: Frozen[Network] = Frozen(what)
        self.head: nn.Module = nn.Identity()  # until the target is known
        self.register_load_state_dict_pre_hook(_meet_state)

    @abstractmethod
    def make_head(self, width: int) -> nn.Module:
        """A new head with so many outputs for each patch."""

    def needs(self) -> Mapping[str, Need]:
        return {self.target.what: Need(self._kind)}

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str:
        target: Network = given[self.target.what]
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
