"""The ring buffer against a plain list."""

import pytest
import torch
import torch.nn.functional as F

from densepath.core.errors import UserError
from densepath.core.queue import Queue


def test_masked_rows_of_any_number_wrap_around_like_a_list():
    torch.manual_seed(0)
    queue = Queue(10, 4)
    expected, pointer = queue.keys().tolist(), 0
    for step in range(12):
        rows, mask = torch.randn(7, 4), torch.rand(7) < (0.0 if step == 3 else 0.6)
        queue.enqueue(rows, mask)
        torch.testing.assert_close(queue.keys(), torch.tensor(expected))  # not before the step ends
        queue.after_step()
        for row in rows[mask].tolist():
            expected[pointer] = row
            pointer = (pointer + 1) % 10
        torch.testing.assert_close(queue.keys(), torch.tensor(expected))
        assert int(queue.pointer) == pointer


def test_starts_with_unit_vectors():
    torch.testing.assert_close(Queue(50, 16).keys().norm(dim=1), torch.ones(50))


def test_keys_survive_for_the_gradient():
    queue, query = Queue(6, 4), torch.randn(3, 4, requires_grad=True)
    before = queue.keys()
    loss = (query @ before.T).sum()
    queue.enqueue(F.normalize(torch.randn(6, 4), dim=1))
    loss.backward()
    torch.testing.assert_close(query.grad, before.sum(0).expand(3, -1))


def test_refuses_more_rows_than_it_holds():
    with pytest.raises(UserError, match="holds 4 keys but one batch adds up to 5"):
        Queue(4, 2).enqueue(torch.randn(5, 2))


@pytest.mark.parametrize("size", [10, 7])
def test_batches_of_a_step_join_as_one_and_the_newest_stay(size):
    torch.manual_seed(0)
    one, parts = Queue(size, 4), Queue(size, 4)
    parts.load_state_dict(one.state_dict())
    rows, mask = torch.randn(12, 4), torch.rand(12) < 0.9
    before = parts.keys().clone()
    for part in range(3):
        parts.enqueue(rows[4 * part : 4 * part + 4], mask[4 * part : 4 * part + 4])
    assert torch.equal(parts.keys(), before)
    parts.after_step()
    for row in rows[mask]:
        one.enqueue(row[None])
        one.after_step()
    assert torch.equal(parts.keys(), one.keys()) and parts.pointer == one.pointer
    parts.after_step()
    assert torch.equal(parts.keys(), one.keys())
