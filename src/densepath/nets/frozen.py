"""A frozen network that a method learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from densepath.core.digests import digest_of_tensors

Network = TypeVar("Network", bound=nn.Module)


class Frozen(nn.Module, Generic[Network]):
    """A container that hides a network from its module: no parameters, a checksum as its only state, evaluation mode.

    It is empty at first, and remains so if the network is not needed, as in an export. The network moves to another
    device, precision or memory format with the module. Loading a state that was saved with another network fails.

    Args:
        what: the role of the network, for messages: "teacher".
    """

    digest: Tensor

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self._held: tuple[Network, ...] = ()  # torch does not register modules in a tuple
        self.register_buffer("digest", torch.zeros(32, dtype=torch.uint8))

    def hold(self, network: Network) -> None:
        """Freeze a network and store it."""
        self._held = (network.eval().requires_grad_(False),)
        self.digest = checksum(network.state_dict()).to(self.digest.device)

    @property
    def network(self) -> Network:
        """The network.

        Raises:
            ValueError: there is none yet.
        """
        if not self._held:
            raise ValueError(f"there is no {self.what} yet; call Method.prepare first")
        return self._held[0]

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen[Network]:
        """Called by torch in ``to``, ``double`` etc."""
        super()._apply(fn, recurse)
        for network in self._held:
            network._apply(fn)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}digest")
        if self._held and saved is not None and not torch.equal(saved.cpu(), self.digest.cpu()):
            rest[-1].append(f"the {self.what} differs from that of its training")
        else:
            super()._load_from_state_dict(state_dict, prefix, *rest)


def checksum(tensors: Mapping[str, Tensor]) -> Tensor:
    """The digest of named tensors as a buffer, (32,) uint8, which a state dict keeps."""
    return torch.frombuffer(bytearray.fromhex(digest_of_tensors(tensors)), dtype=torch.uint8)
