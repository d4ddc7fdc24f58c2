"""Random crops a second from a store of volumes, compared with blosc2, as nnU-Net stores them, and a plain map.

Also: the memory of the process over many crops, and with many volumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from benchmarks.measure import at_least, in_turns, isolated, report
from densepath.datasets.volumes.conversion import Case, Contents, Conversion
from densepath.datasets.volumes.convert import convert
from densepath.sources.volumes.open_store import open_volumes
from densepath.sources.volumes.store import VolumeStore
from densepath.sources.volumes.volume import Channel, Volume

SIZE = (256, 320, 320)  # D, H, W
CROPS = {"32 x 32 x 32": (32, 32, 32), "64 x 64 x 64": (64, 64, 64), "32 x 64 x 64": (32, 64, 64)}
MIB = 2**20
_BATCH = 16


def volume(number: int, size: tuple[int, ...]) -> np.ndarray:
    """CT-like values (D, H, W): smooth shapes, and noise of 12 HU."""
    rng = np.random.default_rng(number)
    coarse = rng.normal(0, 400, [max(2, side // 16) for side in size])
    values = ndimage.zoom(coarse, np.divide(size, coarse.shape), order=1) + rng.normal(0, 12, size)
    return np.rint(values.clip(-1000, 2000)).astype(np.int16)


def write_store(folder: Path, count: int, size: tuple[int, ...]) -> VolumeStore:
    """Write and open a store of volumes."""
    cases = [
        Case(f"v{n:05d}", lambda n=n: Volume((Channel(volume(n, size).transpose(2, 1, 0)),), np.eye(4)))  # type: ignore[misc]
        for n in range(count)
    ]
    return open_volumes(
        convert(cases, Contents("benchmark", "CT"), Conversion(folder.parent, folder, window=(-1000.0, 1000.0)))
    )


def places(
    rng: np.random.Generator, count: int, sizes: np.ndarray, size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """A batch of random volumes (B,), and the low corners (B, 3) of random crops of them."""
    chosen = rng.integers(0, count, _BATCH)
    return chosen, rng.integers(0, sizes[chosen] - np.array(size) + 1)


def read_store(store: VolumeStore, rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """A batch of random crops (B, d, h, w), as training reads it."""
    chosen, low = places(rng, len(store), store.sizes(torch.arange(len(store))).numpy(), size)
    corners = torch.from_numpy(low)
    boxes = torch.stack((corners, corners + torch.tensor(size)), dim=1)
    pixels: np.ndarray = store.gather(torch.from_numpy(chosen), boxes).pixels.numpy()
    return pixels[..., 0]


def read_arrays(arrays: list[Any], rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """The same from arrays that can be sliced."""
    out = np.empty((_BATCH, *size), np.int16)
    for row, number, low in zip(out, *places(rng, len(arrays), np.array([a.shape for a in arrays]), size), strict=True):
        row[...] = arrays[number][tuple(slice(a, a + n) for a, n in zip(low.tolist(), size, strict=True))]
    return out


def peers(folder: Path, count: int) -> dict[str, list[Any]]:
    """The same volumes as plain maps of int16 and, if blosc2 is installed, as its arrays."""
    plain, packed = [], []
    for n in range(count):
        values = volume(n, SIZE)
        np.save(folder / f"{n}.npy", values)
        plain.append(np.load(folder / f"{n}.npy", mmap_mode="r"))
        try:
            import blosc2
        except ImportError:
            continue
        blosc2.set_nthreads(1)
        how = {"codec": blosc2.Codec.ZSTD, "clevel": 8}
        path = str(folder / f"{n}.b2nd")
        blosc2.asarray(values, chunks=(128, 128, 128), blocks=(32, 32, 32), cparams=how, urlpath=path)
        packed.append(blosc2.open(path, mode="r", dparams={"nthreads": 1}, mmap_mode="r"))
    return {"plain map": plain, "blosc2 zstd": packed}


def rates(count: int, repeats: int, calls: int) -> list[dict[str, Any]]:
    """Crops a second: one row for each size of a crop."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store, others = write_store(Path(folder) / "S", count, SIZE), peers(Path(folder), count)
        for name, size in CROPS.items():
            same = [
                read_store(store, np.random.default_rng(5), size),
                *(read_arrays(arrays, np.random.default_rng(5), size) for arrays in others.values() if arrays),
            ]
            assert all(np.array_equal(same[0], other) for other in same)
            cases: dict[str, Callable[[], Any]] = {
                "store": partial(read_store, store, np.random.default_rng(0), size),
                **{
                    case: partial(read_arrays, arrays, np.random.default_rng(0), size)
                    for case, arrays in others.items()
                    if arrays
                },
            }
            seconds = in_turns(cases, repeats, torch.device("cpu"), warmup=1, calls=calls)
            row: dict[str, Any] = {"case": name}
            for case, times in seconds.items():
                row[f"{case}, crops/s"] = round(_BATCH / statistics.median(times))
            row |= {
                f"store / {case}": round(row["store, crops/s"] / row[f"{case}, crops/s"], 1) for case in list(cases)[1:]
            }
            rows.append(row)
    return rows


def memory(folder: str, crops: int) -> dict[str, Any]:
    """The growth of this process's resident memory while crops are read, after the first tenth."""
    store, rng = open_volumes(folder), np.random.default_rng(0)
    for _ in range(crops // _BATCH // 10):
        read_store(store, rng, (32, 32, 32))
    before = _resident()
    for _ in range(crops // _BATCH):
        read_store(store, rng, (32, 32, 32))
    after = _resident()
    facts = {"crops": crops, "resident, MiB": round(after), "growth, MiB": round(after - before, 1)}
    return {"case": f"{len(store)} volumes", **facts}


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / MIB


def main() -> None:
    """Print two tables."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--count", type=at_least(1), default=4, help="large volumes")
    made.add_argument("--repeats", type=at_least(1), default=5, help="rounds that are measured")
    made.add_argument("--calls", type=at_least(1), default=5, help="batches of 16 crops in a round")
    made.add_argument("--crops", type=int, default=10_000, help="crops in the measurement of memory")
    made.add_argument("--json", help="a file for the results")
    asked = made.parse_args()
    report("Crops of volumes", rates(asked.count, asked.repeats, asked.calls), asked.json)
    rows = []
    for count in (4, 400):
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder) / "S", count, (40, 40, 40))
            rows.append(isolated(memory, f"{folder}/S", asked.crops))
    report("Memory", rows)
    if asked.json:
        path = Path(asked.json)
        path.write_text(json.dumps({**json.loads(path.read_text()), "memory": rows}))


if __name__ == "__main__":
    main()
