"""Threads of the CPU on a quiet machine, on a busy one, and on one that becomes busy during the run.

Each run is a ``densepath pretrain`` of its own. The load is processes that compute all the time, one or more for each
core. "before" is a thread for each core, waiting as libgomp does by default; "after" what densepath chooses. The last
column is the speed relative to the best setting of the same situation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks.end_to_end import densepath_run
from benchmarks.measure import parser, report
from benchmarks.tiles import packed_store
from densepath.core.system import cores, idle_cores

SITUATIONS = ("quiet", "busy", "busy later")
SETTINGS: dict[str, dict[str, str]] = {
    "before": {"OMP_NUM_THREADS": str(cores()), "GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "all threads, short waits": {"OMP_NUM_THREADS": str(cores())},
    "after": {},
}


@contextmanager
def load(count: int, delay: float = 0.0) -> Iterator[None]:
    """As many processes that compute all the time, started after some seconds."""
    busy: list[subprocess.Popen[bytes]] = []
    command = [sys.executable, "-c", "while True: pass"]

    def start() -> None:
        busy.extend(subprocess.Popen(command, start_new_session=True) for _ in range(count))

    timer = threading.Timer(delay, start)
    if delay:
        timer.start()
    else:
        start()
    try:
        yield
    finally:
        timer.cancel()
        if delay:
            timer.join()
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    """Measure every setting in every situation."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--recipe", default="concl_small")
    made.add_argument("--backbone", default="regnetx_002")
    made.add_argument("--size", type=int, default=64, help="size of the views in pixels")
    made.add_argument("--image_size", type=int, default=128)
    made.add_argument("--batch_size", type=int, default=64)
    made.add_argument("--steps", type=int, default=15)
    made.add_argument("--busy", type=int, default=3 * cores(), help="processes of the load")
    made.add_argument("--later", type=float, default=30.0, help="seconds until the load of the last situation starts")
    made.add_argument("--situations", nargs="+", choices=SITUATIONS, default=list(SITUATIONS))
    asked = made.parse_args()
    asked.precision, asked.devices, asked.cache = "auto", "cpu", "auto"
    delays = {"busy": 0.0, "busy later": asked.later}
    rows: list[dict[str, Any]] = []
    with packed_store(asked.data, 4 * asked.batch_size, asked.image_size) as store:
        for situation in asked.situations:
            title = f"{situation} ({idle_cores(1.0):.1f} of {cores()} cores idle before)"
            speeds = {}
            for name, environment in SETTINGS.items():
                others = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
                with (
                    patch.dict(os.environ, {**others, **environment}, clear=True),
                    load(asked.busy if situation in delays else 0, delays.get(situation, 0.0)),
                ):
                    speeds[name] = densepath_run(asked.recipe, store, asked)["images_per_second"]
            best = max(speeds.values())
            rows += [
                {"case": f"{title}: {name}", "images_per_second": speed, "share of the best": speed / best}
                for name, speed in speeds.items()
            ]
            report(f"{asked.backbone}, {asked.batch_size} views of {asked.size} px", rows, asked.json)


if __name__ == "__main__":
    main()
