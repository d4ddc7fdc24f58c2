"""What a public function leaves as its caller had it, and what it computes with whatever the caller has chosen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from densepath.core.torch_defaults import torch_defaults
from densepath.training.random_state import untouched_generators

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # which cuBLAS needs for equal bits


@contextmanager
def state_of_the_caller() -> Iterator[None]:
    """Leave the caller's random generators and settings of torch as they were, also after an error.

    Inside, tensors are of float32, on the CPU, with gradients and without autocast by default, whatever the caller has
    chosen.

    The generators of devices are restored only where the caller has used one: their state cannot be read without
    starting CUDA.
    """
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(CUBLAS)
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
        if workspace is None:
            os.environ.pop(CUBLAS, None)
        else:
            os.environ[CUBLAS] = workspace
