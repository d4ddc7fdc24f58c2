"""What is said when another process is gone; real ones are killed in test_processes.py."""

import pytest
import torch.distributed as dist

from densepath.core.errors import UserError
from densepath.training.company import in_company

PLACE = "[/somewhere/third_party/gloo/gloo/transport/tcp/"
BUG = "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"
UNEQUAL = "[enforce fail at /somewhere/third_party/gloo/gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            RuntimeError(f"{PLACE}pair.cc:561] Connection closed by peer [::1]:9. This is typical"),
            "Connection closed by",
        ),
        (RuntimeError(f"{PLACE}buffer.cc:72] Timed out waiting 1800000ms for send"), "Timed out waiting 1800000ms"),
        (
            dist.DistBackendError("NCCL error in: x.cpp:1, remote process exited\nmore"),
            "NCCL error in: x.cpp:1, remote",
        ),
        (dist.DistNetworkError("Broken pipe"), "Broken pipe"),
    ],
)
def test_that_another_process_is_gone_is_no_bug(error, why, tmp_path):
    with (
        pytest.raises(UserError, match=r"another process .* start it again with --resume") as told,
        in_company(2, tmp_path),
    ):
        raise error
    assert why in str(told.value) and "somewhere" not in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("processes", "text"), [(2, BUG), (2, UNEQUAL), (1, f"{PLACE}pair.cc:561] Connection closed by peer")]
)
def test_what_is_a_bug_stays_one(processes, text, tmp_path):
    with pytest.raises(RuntimeError, match=r"shapes|preamble|closed"), in_company(processes, tmp_path):
        raise RuntimeError(text)
