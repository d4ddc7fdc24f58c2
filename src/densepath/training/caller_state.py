"""What a public function leaves as its caller had it, and what it computes with whatever the caller has chosen."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from densepath.core import system
from densepath.core.streams import say
from densepath.core.torch_defaults import torch_defaults
from densepath.training.random_state import untouched_generators

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # which cuBLAS needs for equal bits
_TURN = threading.RLock()  # threads share the generators and settings: two calls at once would change each other's


def _new_turn() -> None:
    """A forked process does not have the threads of its parent."""
    global _TURN
    _TURN = threading.RLock()


os.register_at_fork(after_in_child=_new_turn)


@contextmanager
def _taking_turns() -> Iterator[None]:
    """One thread of a process at a time."""
    turn = _TURN
    if not turn.acquire(blocking=False):
        say("densepath: waiting for another call of densepath in this process; processes of their own run side by side")
        turn.acquire()
    try:
        yield
    finally:
        turn.release()


@contextmanager
def state_of_the_caller() -> Iterator[None]:
    """Leave the caller's random generators and settings of torch as they were, also after an error.

    Calls of several threads run one after the other.

    Inside, tensors are of float32, on the CPU, with gradients and without autocast by default, whatever the caller has
    chosen.

    The generators of devices are restored only where the caller has used one: their state cannot be read without
    starting CUDA.
    """
    with _taking_turns(), _restored():
        yield


@contextmanager
def _restored() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(CUBLAS)
    threads = torch.get_num_threads()
    try:
        with (
            untouched_generators(devices=torch.cuda.is_initialized()),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch_defaults(),
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.backends.cudnn.benchmark = benchmark
        # A resumed run has computed with its own number
        if not system.is_command and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if workspace is None:
            os.environ.pop(CUBLAS, None)
        else:
            os.environ[CUBLAS] = workspace
