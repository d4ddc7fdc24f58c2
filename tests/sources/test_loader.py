"""The order of a run, for any number of workers and processes."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from densepath.core.errors import UserError
from densepath.core.random import permute
from densepath.sources.batch import ImageBatch
from densepath.sources.image_files import ImageFiles
from densepath.sources.loader import ImageBatches
from densepath.sources.open import open_images
from densepath.sources.packed import PackedTiles
from densepath.sources.packing import pack
from densepath.sources.pixel_source import PixelSource
from densepath.sources.restrict import take

COUNT = 23


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of varied sizes."""
    folder = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    for position in range(COUNT):
        size = (rng.integers(4, 9), rng.integers(4, 9), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{position:03d}.png")
    return folder


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    gc.collect()
    assert not running()


def running() -> list[str]:
    """Threads and processes that loaders started."""
    threads = [thread.name for thread in threading.enumerate() if thread.name == "densepath-prefetch"]
    return threads + [process.name for process in multiprocessing.active_children()]


def source_of(kind: str, folder: Path, tmp_path: Path) -> PixelSource:
    if kind == "store":
        return open_images(pack(folder, tmp_path / "s.safetensors"))
    return open_images(folder, cache="ram" if kind == "ram" else "none")


def same(a: ImageBatch, b: ImageBatch) -> bool:
    """Whether two batches hold the same images, on whatever canvas."""
    return (
        torch.equal(a.sizes, b.sizes)
        and torch.equal(a.index, b.index)
        and (a.step, a.epoch, a.progress) == (b.step, b.epoch, b.progress)
        and all(
            torch.equal(x[:height, :width], y[:height, :width])
            for x, y, (height, width) in zip(a.pixels, b.pixels, a.sizes.tolist(), strict=True)
        )
    )


@pytest.mark.parametrize(("kind", "workers"), [("store", 0), ("files", 2)])
def test_each_image_comes_once_to_one_of_the_processes(tiles: Path, tmp_path: Path, kind: str, workers: int) -> None:
    source = source_of(kind, tiles, tmp_path)
    for processes in (1, 3):
        seen = []
        for rank in range(processes):
            shared = {"rank": rank, "world_size": processes, "workers": workers}
            batches = list(ImageBatches(source, batch_size=4, seed=0, max_steps=1, **shared).each_image())
            assert torch.cat([batch.index for batch in batches]).tolist() == list(range(rank, COUNT, processes))
            assert all(len(batch) == 4 for batch in batches[:-1])
            seen += batches
        for batch in seen:
            for image, (height, width), position in zip(
                batch.pixels, batch.sizes.tolist(), batch.index.tolist(), strict=True
            ):
                with Image.open(tiles / f"{position:03d}.png") as stored:
                    np.testing.assert_array_equal(image[:height, :width], np.asarray(stored))


@pytest.mark.parametrize(("kind", "workers"), [("store", 0), ("ram", 0), ("files", 0), ("files", 2)])
def test_batches_hold_the_images_of_their_positions(tiles: Path, tmp_path: Path, kind: str, workers: int) -> None:
    source = source_of(kind, tiles, tmp_path)
    loader = ImageBatches(source, batch_size=5, seed=3, epochs=2, workers=workers)
    paths = sorted(tiles.iterdir())
    batches = list(loader)
    assert len(batches) == len(loader) == loader.total_steps == 2 * (COUNT // 5)
    for step, batch in enumerate(batches):
        epoch, first = divmod(step, loader.steps_per_epoch)
        position = torch.arange(5 * first, 5 * first + 5)
        assert torch.equal(batch.index, permute(position, COUNT, seed=3, epoch=epoch))
        assert (batch.step, batch.epoch, batch.progress) == (step, step / (COUNT // 5), step / len(loader))
        for pixels, (height, width), index in zip(batch.pixels, batch.sizes, batch.index, strict=True):
            image = np.asarray(Image.open(paths[index]))
            assert np.array_equal(pixels[:height, :width], image)
            assert int(pixels.sum()) == int(image.sum())


def test_each_epoch_shows_each_image_at_most_once_in_an_order_of_its_own(tiles: Path) -> None:
    source = open_images(tiles, cache="ram")
    batches = list(ImageBatches(source, batch_size=4, seed=0, epochs=3))
    orders = torch.stack([batch.index for batch in batches]).view(3, -1).tolist()
    assert all(len(set(order)) == len(order) == COUNT // 4 * 4 for order in orders)
    assert orders[0] != orders[1] != orders[2]
    other_seed = next(iter(ImageBatches(source, batch_size=4, seed=1, epochs=3)))
    assert other_seed.index.tolist() != batches[0].index.tolist()


@pytest.mark.parametrize(("kind", "workers"), [("ram", 0), ("files", 2)])
def test_processes_share_the_batches_of_one(tiles: Path, tmp_path: Path, kind: str, workers: int) -> None:
    source = source_of(kind, tiles, tmp_path)
    alone = list(ImageBatches(source, batch_size=6, seed=5, epochs=2, workers=workers))
    ranks = [
        list(ImageBatches(source, batch_size=2, seed=5, epochs=2, rank=rank, world_size=3, workers=workers))
        for rank in range(3)
    ]
    assert len(alone) == len(ranks[0])
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.index, torch.cat([part.index for part in parts]))
        assert torch.equal(whole.sizes, torch.cat([part.sizes for part in parts]))
        assert sum(int(part.pixels.sum()) for part in parts) == int(whole.pixels.sum())


@pytest.mark.parametrize(("kind", "workers"), [("store", 0), ("files", 0), ("files", 1)])
@pytest.mark.parametrize("start_step", [1, 4, 7])
def test_resumed_run_makes_the_tail_of_the_whole_one(
    tiles: Path, tmp_path: Path, kind: str, workers: int, start_step: int
) -> None:
    source = source_of(kind, tiles, tmp_path)
    whole = list(ImageBatches(source, batch_size=5, seed=2, max_steps=10))
    tail = ImageBatches(source, batch_size=5, seed=2, max_steps=10, start_step=start_step, workers=workers)
    assert len(tail) == 10 - start_step
    assert all(same(a, b) for a, b in zip(whole[start_step:], tail, strict=True))


def test_run_that_is_over_makes_no_batch(tiles: Path) -> None:
    loader = ImageBatches(open_images(tiles), batch_size=5, seed=2, max_steps=3, start_step=3)
    assert len(loader) == 0
    assert list(loader) == []


def test_loader_can_be_iterated_again_and_twice_at_once(tiles: Path) -> None:
    for cache in ("ram", "none"):
        loader = ImageBatches(open_images(tiles, cache=cache), batch_size=5, seed=2, max_steps=4)  # type: ignore[arg-type]
        first = list(loader)
        assert all(same(a, b) and same(b, c) for a, b, c in zip(first, loader, loader, strict=True))


def test_batches_larger_than_a_workers_chunk_are_put_together(tmp_path: Path) -> None:
    for position in range(100):
        Image.new("RGB", (2 + position % 5, 2 + position % 3), (position, 0, 0)).save(tmp_path / f"{position:03d}.png")
    files, cached = (open_images(tmp_path, cache=cache) for cache in ("none", "ram"))
    a = next(iter(ImageBatches(files, batch_size=70, seed=0, epochs=1, workers=2)))
    b = next(iter(ImageBatches(cached, batch_size=70, seed=0, epochs=1)))
    assert torch.equal(a.pixels, b.pixels)
    assert same(a, b)


def test_max_steps_counts_if_both_lengths_are_given(tiles: Path) -> None:
    source = open_images(tiles)
    assert ImageBatches(source, batch_size=5, seed=0, epochs=10, max_steps=3).total_steps == 3
    assert ImageBatches(source, batch_size=5, seed=0, epochs=0.5).total_steps == 2
    more = take(source, torch.arange(25) % COUNT)
    assert ImageBatches(more, batch_size=1, seed=0, epochs=2.2).total_steps == 55  # 2.2 * 25 is a little more
    with pytest.raises(ValueError, match="give max_steps or epochs"):
        ImageBatches(source, batch_size=5, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_say_what_their_pixels_mean(tiles: Path, workers: int) -> None:
    source = open_images(tiles, cache="none")
    source.spec = source.spec.override(window=(10, 200))
    (batch,) = ImageBatches(source, batch_size=4, seed=0, max_steps=1, workers=workers)
    assert batch.spec == source.spec


def test_batches_do_not_depend_on_the_default_device(tiles: Path) -> None:
    def made() -> list[ImageBatch]:
        loader = ImageBatches(open_images(tiles), batch_size=4, seed=0, max_steps=2)
        return [*loader, *loader.each_image()]

    expected = made()
    with torch.device("meta"):
        others = made()
    assert all(same(*each) for each in zip(others, expected, strict=True))


def test_an_unknown_order_is_refused(tiles: Path) -> None:
    mistyped: Any = "blocks"
    with pytest.raises(UserError, match="shuffle is 'blocks'; give full or block"):
        ImageBatches(open_images(tiles), batch_size=2, seed=0, max_steps=1, shuffle=mistyped)


def test_batch_larger_than_the_source_is_refused(tiles: Path) -> None:
    source = open_images(tiles)
    with pytest.raises(UserError, match=f"a batch of 24 images needs more than the {COUNT} images"):
        ImageBatches(source, batch_size=24, seed=0, epochs=1)
    with pytest.raises(UserError, match="a batch of 12 images in each of 2 processes"):
        ImageBatches(source, batch_size=12, seed=0, epochs=1, world_size=2)
    with pytest.raises(UserError, match=r"needs more than the 1 image of the source; use more images$"):
        ImageBatches(take(source, torch.tensor([0])), batch_size=2, seed=0, epochs=1)
    assert ImageBatches(source, batch_size=COUNT, seed=0, epochs=1).total_steps == 1


class Imagined(ImageFiles):
    """A billion images without a file."""

    def __init__(self) -> None:
        super().__init__([])

    def __len__(self) -> int:
        return 10**9

    def names(self, position: int) -> str:
        return str(position)

    def read(self, position: int) -> npt.NDArray[np.uint8]:
        return np.full((1, 1, 3), position % 251, np.uint8)


def test_a_billion_images_cost_what_a_thousand_do() -> None:
    loader = ImageBatches(Imagined(), batch_size=64, seed=0, epochs=1)
    batches = iter(loader)
    index = torch.cat([next(batches).index for _ in range(8)])
    assert loader.steps_per_epoch == 10**9 // 64
    assert len(index.unique()) == 512
    assert int(index.min()) < 10**8 and int(index.max()) > 9 * 10**8


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_numbers_stay_untouched(tiles: Path, workers: int) -> None:
    before = torch.get_rng_state()
    list(ImageBatches(open_images(tiles, cache="none"), batch_size=5, seed=0, epochs=1, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


# Damage


def damaged_folder(folder: Path, count: int, broken: list[int], missing: list[int]) -> ImageFiles:
    for position in range(count):
        Image.new("RGB", (4, 4), (position % 256, 0, 0)).save(folder / f"{position:03d}.png")
    files = ImageFiles(sorted(folder.iterdir()))
    for position in broken:
        data = (folder / f"{position:03d}.png").read_bytes()
        (folder / f"{position:03d}.png").write_bytes(data[:50])
    for position in missing:
        (folder / f"{position:03d}.png").unlink()
    return files


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_image_is_named_once_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    files = damaged_folder(tmp_path, 200, broken=[11], missing=[12])
    loader = ImageBatches(files, batch_size=50, seed=0, epochs=3, workers=workers)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    for epoch in range(3):
        order = permute(torch.arange(200), 200, seed=0, epoch=epoch)
        expected = torch.where((order == 11) | (order == 12), 13, order)
        assert torch.equal(torch.cat([batch.index for batch in batches[4 * epoch : 4 * epoch + 4]]), expected)
    for batch in batches:
        assert torch.equal(batch.pixels[:, 0, 0, 0], batch.index.to(torch.uint8))
    named = [name for batch in batches for name in batch.corrupt]
    assert sorted(named) == [files.names(11), files.names(12)] == sorted(loader.corrupt)
    log = caplog.text
    assert log.count("011.png") == log.count("012.png") == 1
    assert "the file is missing" in log


def test_cache_and_files_make_the_same_run_of_corrupt_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = damaged_folder(tmp_path, 100, broken=[99], missing=[])
    with caplog.at_level(logging.WARNING):
        cached = open_images(tmp_path, cache="ram")
        loaders = [ImageBatches(source, batch_size=50, seed=0, epochs=1) for source in (files, cached)]
        assert all(same(a, b) for a, b in zip(*loaders, strict=True))
    assert loaders[0].corrupt == loaders[1].corrupt == (files.names(99),)
    assert caplog.text.count("099.png") == 2  # by each source once


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_one_in_a_hundred_corrupt_ends_the_run_with_the_list(tmp_path: Path, workers: int) -> None:
    files = damaged_folder(tmp_path, 100, broken=[3], missing=[40])
    with pytest.raises(UserError, match="2 of 100 images were found damaged, more than 1%") as error:
        list(ImageBatches(files, batch_size=20, seed=0, epochs=1, workers=workers))
    assert "003.png" in str(error.value) and "040.png: the file is missing" in str(error.value)
    assert "\n" not in str(error.value)


def test_list_of_corrupt_images_is_cut_after_twenty(tmp_path: Path) -> None:
    files = ImageFiles(tmp_path / f"{position}.png" for position in range(3000))
    with pytest.raises(UserError, match=r"31 of 3000 images .*; and 11 more") as error:
        next(iter(ImageBatches(files, batch_size=20, seed=0, epochs=1)))
    assert str(error.value).count(".png") == 20


# Ends


@pytest.mark.parametrize(("kind", "workers"), [("ram", 0), ("files", 0), ("files", 2)])
def test_consumer_may_stop_early(tiles: Path, tmp_path: Path, kind: str, workers: int) -> None:
    loader = ImageBatches(source_of(kind, tiles, tmp_path), batch_size=2, seed=0, epochs=50, workers=workers)
    for batch in loader:
        assert running()
        if batch.step == 2:
            break
    assert not running()
    batches = iter(loader)
    next(batches)
    del batches
    assert not running()
    with pytest.raises(ZeroDivisionError):
        for batch in loader:
            batch.step // 0
    gc.collect()


class Failing(ImageFiles):
    """Files of which one brings the process down that reads it."""

    def read(self, position: int) -> npt.NDArray[np.uint8]:
        if position == 7:
            self.fail()
        return super().read(position)

    def fail(self) -> None:
        raise KeyError("a bug")


class Deadly(Failing):
    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 2])
def test_error_in_the_background_arrives_in_the_foreground(tiles: Path, workers: int) -> None:
    loader = ImageBatches(Failing(sorted(tiles.iterdir())), batch_size=2, seed=0, epochs=1, workers=workers)
    with pytest.raises(KeyError, match="a bug") as error:
        list(loader)
    assert not running(), error  # although the error and its frames are still alive


def test_death_of_a_worker_is_reported_and_does_not_hang(tiles: Path) -> None:
    loader = ImageBatches(Deadly(sorted(tiles.iterdir())), batch_size=2, seed=0, epochs=1, workers=2)
    with pytest.raises(UserError, match=r"a process that decodes images died.*use fewer workers") as error:
        list(loader)
    assert "\n" not in str(error.value)
    assert not running()


class Interrupted(ImageFiles):
    """Files whose reader gets the signals of a cluster that ends a job."""

    def read(self, position: int) -> npt.NDArray[np.uint8]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return super().read(position)


def test_workers_continue_while_the_main_process_handles_signals(tiles: Path) -> None:
    batches = list(ImageBatches(Interrupted(sorted(tiles.iterdir())), batch_size=5, seed=0, max_steps=2, workers=1))
    assert [batch.step for batch in batches] == [0, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("kind", "workers"), [("store", 0), ("ram", 0), ("files", 2)])
def test_batches_for_a_gpu_wait_in_page_locked_memory(tiles: Path, tmp_path: Path, kind: str, workers: int) -> None:
    source = source_of(kind, tiles, tmp_path)
    options = {"batch_size": 5, "seed": 0, "epochs": 2}
    expected = list(ImageBatches(source, **options))  # type: ignore[arg-type]
    batches = list(ImageBatches(source, **options, workers=workers, device="cuda"))  # type: ignore[arg-type]
    assert all(batch.pixels.is_pinned() and not batch.index.is_cuda for batch in batches)
    assert all(same(a, b.to("cuda").to("cpu", non_blocking=False)) for a, b in zip(expected, batches, strict=True))
    if isinstance(source, PackedTiles):
        on_gpu = list(ImageBatches(source.to("cuda"), **options, device="cuda"))  # type: ignore[arg-type]
        assert all(batch.pixels.is_cuda and not batch.index.is_cuda for batch in on_gpu)
        assert all(same(a, b.to("cpu", non_blocking=False)) for a, b in zip(expected, on_gpu, strict=True))
