"""What is said when another process is gone; real ones are killed in test_processes.py."""

import pytest
import torch.distributed as dist

from densepath.core.errors import UserError
from densepath.runs.lost_peers import reporting_lost_peers

NCCL = "NCCL error in: ../somewhere/NCCLUtils.cpp:93"
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
            dist.DistBackendError("NCCL error in: ../somewhere/NCCLUtils.cpp:93, remote process exited\nmore"),
            "NCCL error in: remote process exited",
        ),
        (
            dist.DistBackendError(f"{NCCL}, remote process exited\nncclRemoteError\nLast error:\nPeer closed it\nmore"),
            "(Peer closed it)",
        ),
        (dist.DistNetworkError("Broken pipe"), "Broken pipe"),
    ],
)
def test_a_lost_process_is_not_a_bug(error, why, tmp_path):
    with (
        pytest.raises(UserError, match=r"another process .* start it again with --resume") as error_info,
        reporting_lost_peers(2, tmp_path),
    ):
        raise error
    assert (
        why in str(error_info.value) and "somewhere" not in str(error_info.value) and "\n" not in str(error_info.value)
    )


@pytest.mark.parametrize(
    ("processes", "error"),
    [
        (2, RuntimeError(BUG)),
        (2, RuntimeError(UNEQUAL)),
        (1, RuntimeError(f"{PLACE}pair.cc:561] Connection closed by peer")),
        (2, dist.DistNetworkError("The server socket has failed to listen on any local network address. EADDRINUSE")),
        (2, dist.DistBackendError(f"{NCCL}, invalid usage\nLast error:\nDuplicate GPU detected")),
        (2, dist.DistBackendError(f"{NCCL}, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'")),
    ],
)
def test_what_is_a_bug_stays_one(processes, error, tmp_path):
    with pytest.raises(RuntimeError) as raised, reporting_lost_peers(processes, tmp_path):
        raise error
    assert raised.value is error
