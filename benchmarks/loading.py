"""Loading speed from files, from a packed store and from a store on the device; memory for millions of tiles.

Memory is that of this process only (anonymous pages: mapped files in the page cache do not count).
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import isolated, now, parser, report, status_mib, write_json
from benchmarks.tiles import jpeg_folder
from densepath.sources.image_files import ImageFiles
from densepath.sources.loader import ImageBatches
from densepath.sources.open import open_images
from densepath.sources.packing import HEADER, open_store, pack, write_tables
from densepath.sources.path_table import PathTable

_COUNTS = (10**3, 10**5, 10**7)


def images_per_second(batches: ImageBatches, device: torch.device, steps: int, seconds: float = math.inf) -> float:
    """Images per second of batches moved to the device, after the first ones; for so many steps or seconds."""
    iterator = iter(batches)
    for batch in islice(iterator, 4):
        batch.to(device)
    start, count, limit = now(device), 0, time.monotonic() + seconds
    for batch in islice(iterator, steps):
        count += len(batch.to(device))
        if time.monotonic() > limit:
            break
    spent = now(device) - start
    iterator.close()  # type: ignore[attr-defined]
    return count / spent


def speed(
    folder: Path, batch_size: int, steps: int, workers: int, repeats: int, seconds: float = math.inf
) -> Iterator[dict[str, Any]]:
    """Images per second of each type of source, one row each, as soon as it is known; the fastest source first.

    Args:
        folder: JPEGs.
        batch_size, workers: as in ``densepath pretrain``.
        steps: measured batches of each source.
        repeats: times that each source is measured, in turns.
        seconds: of one measurement, instead of all its steps.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = pack(folder, folder.parent / "loading.safetensors")
    sources: dict[str, tuple[Callable[[], Any], int]] = {}
    if device.type == "cuda":
        sources["store on the device"] = (lambda: open_images(store, device=device), 0)
    sources |= {
        "packed store": (lambda: open_images(store, cache="none"), 0),
        "JPEGs, decoded into memory": (lambda: open_images(folder, cache="ram"), 0),
        f"JPEGs, {workers} workers": (lambda: open_images(folder, cache="none"), workers),
        "JPEGs, no workers": (lambda: open_images(folder, cache="none"), 0),
    }
    found: dict[str, list[float]] = {name: [] for name in sources}
    for turn in range(repeats):
        for name, (source, count) in sources.items():
            batches = ImageBatches(
                source(), batch_size=batch_size, seed=0, max_steps=steps + 4, workers=count, device=device
            )
            found[name].append(images_per_second(batches, device, steps, seconds))
            if turn == repeats - 1:
                yield {"case": name, "images_per_second": statistics.median(found[name])}


def memory(count: int) -> dict[str, Any]:
    """Memory and time for the names and the shuffled order of ``count`` files, without reading them."""
    before, start = status_mib("RssAnon"), time.perf_counter()
    files = ImageFiles(PathTable.of(f"tiles/{number // 10000:06d}/{number:010d}.jpg" for number in range(count)))
    row: dict[str, Any] = {"case": f"{count:,} files", "names_mib": status_mib("RssAnon") - before}
    row["names_seconds"] = time.perf_counter() - start
    before, start = status_mib("RssAnon"), time.perf_counter()
    steps = sum(1 for _ in islice(ImageBatches(files, batch_size=256, seed=0, epochs=1)._order(), 2000))
    row["order_mib"] = status_mib("RssAnon") - before
    row["order_us_per_image"] = (time.perf_counter() - start) / (256 * steps) * 1e6
    return row


def write_holes(path: Path, count: int) -> None:
    """A packed store of ``count`` tiles of 2 x 2 px whose pixels take no disk space."""
    with path.open("wb") as file:
        file.seek(HEADER + 12 * count)
        write_tables(file, np.full((count, 2), 2, np.int32), PathTable.of(f"{number}.png" for number in range(count)))


def store_memory(count: int, folder: Path) -> dict[str, Any]:
    """Memory and time to open a packed store of ``count`` tiles and to gather a batch from it."""
    path = folder / f"{count}.safetensors"
    isolated(write_holes, path, count)
    before, start = status_mib("RssAnon"), time.perf_counter()
    store = open_store(path)
    store.gather(torch.arange(256) % count)
    row = {"case": f"store of {count:,}", "open_mib": status_mib("RssAnon") - before}
    return row | {"open_seconds": time.perf_counter() - start}


def main() -> None:
    """Measure memory and speed."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--count", type=int, default=2000, help="number of tiles in the folder")
    made.add_argument("--image_size", type=int, default=224)
    made.add_argument("--batch_size", type=int, default=64)
    made.add_argument("--steps", type=int, default=24)
    made.add_argument("--workers", type=int, default=2)
    asked = made.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [memory(count) for count in _COUNTS] + [store_memory(count, Path(scratch)) for count in _COUNTS]
    with jpeg_folder(asked.data, asked.count, asked.image_size) as folder:
        speeds = list(speed(folder, asked.batch_size, asked.steps, asked.workers, asked.repeats))
    report("memory of the main process against the number of tiles", rows)
    report(f"images of {asked.image_size} px", speeds)
    if asked.json:
        write_json(asked.json, {"memory": rows, "speed": speeds})


if __name__ == "__main__":
    main()
