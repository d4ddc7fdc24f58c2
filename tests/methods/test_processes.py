"""Two processes give the losses, gradients, queues and weights of one on the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from multi_process import CASES, GRIDS, IMAGES, KINDS, STEPS, VALIDATED, views_of

EQUAL = {"rtol": 1e-8, "atol": 1e-9}  # everything is in float64; batch norms of a few images magnify rounding
NEARLY = {"rtol": 1e-5, "atol": 1e-7}  # but timm interpolates position embeddings in float32


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the single process, and the first and the second of two, saw of a case."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, Path(__file__).parent / "multi_process.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

    def load(case, method):
        return [torch.load(folder / f"{case}.{method}.{who}.pt") for who in ("1.0", "2.0", "2.1")]

    return load


@pytest.mark.parametrize(("method", "case"), [(kind.__name__, case) for kind, cases in KINDS.items() for case in cases])
def test_two_processes_are_one(seen, case, method):
    one, first, second = seen(case, method)
    for part in ("losses", "gradients", "state"):
        for two in (first, second):
            torch.testing.assert_close(two[part], one[part], **(NEARLY if case == "transformer" else EQUAL))
    assert all(gradient.any() for gradients in one["gradients"] for gradient in gradients.values())
    queues = {name: value for name, value in one["state"].items() if "queue.pointer" in name}
    assert all(queues.pop(f"{name}.pointer", 0) == STEPS * IMAGES % 24 for name in ("queue", "dense_queue"))
    if method == "DenseCL" and case in GRIDS:
        assert second["matched"][1] == 0 and 0 < first["matched"][1] < 1
    if method == "ConCL":
        shared = torch.tensor([[float(count) for count in process["shared"]] for process in (first, second)])
        assert (shared[0] != shared[1]).any()
        assert case not in GRIDS or (shared[1, 1] == 0 and shared[0, 1] > 0)
        brought = round(float(shared.sum()) * IMAGES / 2)
        assert brought > 33  # the queue was filled more than once
        assert queues.pop("concept_queue.pointer") == brought % 33


@pytest.mark.parametrize("method", ["MoCoV2", "ConCL"])
def test_each_batch_norm_mode_gives_other_statistics(seen, method):
    first = [seen(case, method)[0]["losses"][0]["instance_loss"].item() for case in CASES]
    assert len(set(first)) == len(CASES)


@pytest.mark.parametrize("method", [kind.__name__ for kind in VALIDATED])
def test_validation_is_that_of_one_process(seen, method):
    """All processes come to the same loss and decide alike, with the mean of their running statistics."""
    one, first, second = seen("validation", method)
    assert first == second
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-5) and len(set(one["losses"])) == 2
    assert first["lowest"] == min(first["losses"]) and first["since"] == one["since"]


def test_views_are_those_of_one_process():
    """To the bit."""
    for step in range(STEPS):
        whole, *parts = (views_of(step, part) for part in (slice(8), slice(3), slice(3, 8)))
        for name in whole.views:
            assert torch.equal(whole[name].pixels, torch.cat([part[name].pixels for part in parts]))
            assert torch.equal(whole[name].map, torch.cat([part[name].map for part in parts]))
        assert torch.equal(whole.uniform(5), torch.cat([part.uniform(5) for part in parts]))
