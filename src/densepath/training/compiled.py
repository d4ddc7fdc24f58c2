"""Networks that ``torch.compile`` compiles for training: a GPU then gets fewer and larger operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import nn

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone
from densepath.nets.batch_norms import Synchronized
from densepath.training.sharding import blocks_of

Given = ParamSpec("Given")
Made = TypeVar("Made")

_GRAPHS = 64  # at most, of a kind of layer: one for each size of the views, with and without gradients


def require_compilable(network: nn.Module, processes: int) -> None:
    """Check that the networks of a method can be compiled for so many processes.

    Raises:
        UserError: batch norms in them share their statistics with other processes.
    """
    layers = [layer for part in _parts(network) for layer in part.modules()]
    if processes > 1 and any(isinstance(layer, Synchronized) for layer in layers):
        raise UserError(
            "batch norms over the images of several processes are not compiled; give --batch_norm per_process, or "
            "leave --compile out"
        )


def compile_networks(network: nn.Module) -> None:
    """Compile backbones and their stages, and the blocks of transformers, in place, when they are first called.

    Their tensors keep their names. Copies are not compiled.

    Args:
        network: a method, or a task that has one. Its other layers, such as heads, stay as they are.
    """
    for part in _parts(network):
        part.compile(dynamic=False)


def _parts(network: nn.Module) -> list[nn.Module]:
    parts = blocks_of(network)
    for module in network.modules():
        if isinstance(module, Backbone) and not blocks_of(module):
            parts += [module, *module.net.children()]  # some methods call the stages one by one
    return parts


def uncompiled(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """A function in which compiled networks run as they are: on a few images, of other sizes than the views."""

    @wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        with torch.compiler.set_stance("force_eager"):
            return function(*args, **kwargs)

    return call


@contextmanager
def compiling() -> Iterator[None]:
    """A context for training with compiled networks.

    Raises:
        UserError: a network cannot be compiled.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException

    with config.patch(recompile_limit=_GRAPHS):
        try:
            yield
        except TorchDynamoException as error:
            reason = " ".join(str(error).partition("\n\n")[0].split())
            raise UserError(f"torch.compile failed: {reason}; leave --compile out") from error
