"""The defaults of torch that computations use."""

from __future__ import annotations

import os
import threading

import torch
from torch import nn

from densepath.core.torch_defaults import torch_defaults


def test_the_default_type_returns_when_the_last_thread_leaves() -> None:
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with torch_defaults():
            entered.set()
            leave.wait(30)

    torch.set_default_dtype(torch.float64)
    try:
        thread = threading.Thread(target=stay)
        with torch_defaults():
            thread.start()
            assert entered.wait(30)
        assert torch.get_default_dtype() == torch.float32  # of the other thread, which is still inside
        leave.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_autocast_inside_another_uses_the_present_weights() -> None:
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)

    def output() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    with torch.autocast("cpu", enabled=False), torch_defaults():
        first = output()
        with torch.no_grad():
            layer.weight.add_(1)
        assert not torch.equal(output(), first)


def test_the_autocast_of_the_caller_returns() -> None:
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with torch_defaults():
            assert layer(x).dtype == torch.float32
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32


def test_a_forked_process_does_not_wait_for_the_threads_of_its_parent() -> None:
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with torch_defaults():
            entered.set()
            leave.wait(60)

    torch.set_default_dtype(torch.float64)
    thread = threading.Thread(target=stay)
    try:
        thread.start()
        assert entered.wait(60)
        if not (child := os.fork()):
            outside = torch.get_default_dtype()
            with torch_defaults():
                inside = torch.get_default_dtype()
            os._exit((outside, inside, torch.get_default_dtype()) != (torch.float64, torch.float32, torch.float64))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        leave.set()
        thread.join()
        torch.set_default_dtype(torch.float32)
