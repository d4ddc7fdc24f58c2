"""The base class of methods that predict the output of a frozen network for each patch."""

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

    The network is set by :meth:`prepare`, or by :meth:`set_target` in your own training loop; an export does not need
    it. It determines the width of the head. The state contains only its checksum, so that a run can be resumed only
    with the same network.

    Args:
        what: the kind of network.
    """

    def __init__(self, what: Literal["teacher", "tokenizer"]) -> None:
        super().__init__()
        self._kind = what
        self.target: Frozen[Network] = Frozen(what)
        self.head: nn.Module = nn.Identity()  # until the target is known
        self.register_load_state_dict_pre_hook(_before_load)

    @abstractmethod
    def make_head(self, width: int) -> nn.Module:
        """A new head with ``width`` outputs for each patch."""

    def needs(self) -> Mapping[str, Need]:
        return {self.target.what: Need(self._kind)}

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str:
        target: Network = given[self.target.what]
        target.show(images.spec)
        self.set_target(target)
        return target.describe()

    def set_target(self, target: Network) -> None:
        """Set the frozen network, and make a new head for it."""
        self.target.hold(target)
        self.head = self.make_head(target.width)


def _before_load(method: Any, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Make the head before a state is loaded: an export has no target, which would determine its width."""
    biases = [key for key in state if key.startswith(f"{prefix}head.") and key.endswith("bias")]
    if biases and isinstance(method.head, nn.Identity):
        method.head = method.make_head(len(state[biases[-1]]))
