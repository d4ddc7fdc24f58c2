"""Two processes against one."""

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from densepath.core.distributed import Shuffle, broadcast, exchange, gather, mean, rank, total, world_size
from densepath.core.losses import masked_mean
from densepath.core.queue import Queue


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def worker(process: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=process, world_size=2)
    rows = torch.arange(12.0).view(6, 2)[3 * process : 3 * process + 3]
    mask = torch.tensor([True, False, True] if process else [False, False, True])
    torch.manual_seed(0)
    queue = Queue(8, 2)
    queue.enqueue(rows, mask)
    queue.after_step()
    shuffle = Shuffle(3, seed=1, step=2)
    dealt = shuffle.deal(rows)
    weight = torch.ones(1, requires_grad=True)
    masked_mean((weight * rows).sum(1), mask).backward()
    part = rows.clone().requires_grad_()
    summed = total(part)
    ((process + 1) * summed.sum()).backward()
    sent, received = [1, 2], [1, 1] if process == 0 else [2, 2]
    images = rows[:, :1, None, None].expand(-1, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    result = {
        "total": summed.detach(),
        "of the total": part.grad,
        "exchanged": exchange(rows, sent, received),
        "images": exchange(images, sent, received),
        "broadcast": broadcast(rows),
        "rank": rank(),
        "world": world_size(),
        "gathered": gather(rows),
        "mean": mean(rows.sum()),
        "queue": queue.keys(),
        "dealt": dealt,
        "restored": shuffle.restore(dealt * 10),
        "gradient": mean(weight.grad),
    }
    torch.save(result, folder / f"{process}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path):
    mp.spawn(worker, (free_port(), tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{i}.pt") for i in range(2))
    rows = torch.arange(12.0).view(6, 2)
    mask = torch.tensor([False, False, True, True, False, True])
    for result in (first, second):
        assert result["world"] == 2
        assert torch.equal(result["gathered"], rows)
        assert result["mean"] == rows.sum() / 2
        assert torch.equal(result["broadcast"], rows[:3])
    assert (first["rank"], second["rank"]) == (0, 1)

    torch.manual_seed(0)
    alone = Queue(8, 2)
    alone.enqueue(rows, mask)
    alone.after_step()
    assert torch.equal(first["queue"], alone.keys()) and torch.equal(second["queue"], alone.keys())

    dealt = torch.cat((first["dealt"], second["dealt"]))
    assert not torch.equal(dealt, rows) and torch.equal(dealt.sort(0).values, rows)
    assert torch.equal(torch.cat((first["restored"], second["restored"])), 10 * rows)
    # One process with as many groups deals alike.
    shuffle = Shuffle(6, seed=1, step=2, group=3)
    assert torch.equal(shuffle.deal(rows), dealt)
    assert torch.equal(shuffle.restore(dealt), rows)

    weight = torch.ones(1, requires_grad=True)
    masked_mean((weight * rows).sum(1), mask).backward()
    torch.testing.assert_close(first["gradient"], weight.grad)

    # A sum goes to all processes, and the gradients of all come back.
    for number, result in enumerate((first, second)):
        assert torch.equal(result["total"], rows[:3] + rows[3:])
        assert torch.equal(result["of the total"], torch.full((3, 2), 3.0))
        # A row to each process, the others to the second: they come in the order of the ranks.
        assert torch.equal(result["exchanged"], rows[[0, 3]] if number == 0 else rows[[1, 2, 4, 5]])
        image = result["images"]
        assert image.is_contiguous(memory_format=torch.channels_last) and torch.equal(
            image[:, 0, 0, 0], result["exchanged"][:, 0]
        )


def test_one_process_changes_nothing():
    rows = torch.randn(4, 3)
    shuffle = Shuffle(4, 0, 0)
    assert (
        torch.equal(gather(rows), rows)
        and torch.equal(broadcast(rows), rows)
        and torch.equal(shuffle.restore(shuffle.deal(rows)), rows)
    )
    assert rank() == 0 and world_size() == 1
