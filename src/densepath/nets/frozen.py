"""A network that a method learns from and does not train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from densepath.core.digests import digest_of_tensors

Network = TypeVar("Network", bound=nn.Module)


class Frozen(nn.Module, Generic[Network]):
    """Holds a network apart from the module around it: no parameters, no state but a checksum, always evaluation mode.

    It is empty at first, and stays so where its network is not needed, as in an export. The network moves to another
    device, precision or memory format with the module. A state that was saved beside another network is refused.

    Args:
        what: the network's part, for the message of that refusal: "teacher".
    """

    digest: Tensor

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self._held: tuple[Network, ...] = ()  # torch does not look for modules in a tuple
        self.register_buffer("digest", torch.zeros(32, dtype=torch.uint8))

    def hold(self, network: Network) -> None:
        """Take a network, which is frozen from now on."""
        self._held = (network.eval().requires_grad_(False),)
        self.digest = checksum(network.state_dict()).to(self.digest.device)

    @property
    def network(self) -> Network:
        """The network.

        Raises:
            ValueError: there is none yet.
        """
        if not self._held:
            raise ValueError(f"there is no {self.what} yet: see Method.prepare")
        return self._held[0]

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen[Network]:
        """What torch calls in ``to``, ``double`` and the like."""
        super()._apply(fn, recurse)
        for network in self._held:
            network._apply(fn)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        then = state_dict.get(f"{prefix}digest")
        if self._held and then is not None and not torch.equal(then.cpu(), self.digest.cpu()):
            rest[-1].append(f"the {self.what} is not the one that it was trained with")
        else:
            super()._load_from_state_dict(state_dict, prefix, *rest)


def checksum(tensors: Mapping[str, Tensor]) -> Tensor:
    """The digest of named tensors as a buffer, (32,) uint8, which a state dict keeps."""
    return torch.frombuffer(bytearray.fromhex(digest_of_tensors(tensors)), dtype=torch.uint8)
