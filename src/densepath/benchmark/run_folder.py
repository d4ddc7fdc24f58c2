"""The folder of one run of a grid: what it is, how to repeat it, and its result. One process at a time works in it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from densepath.benchmark.grid import Cell
from densepath.benchmark.verb_options import METRICS
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.runs.checkpoints import CHECKPOINTS
from densepath.runs.metrics import read_metrics
from densepath.training.export import EXPORTED
from densepath.version import __version__

NOTES, LOG = "cell.json", "log.txt"
_OPTIONS, _RUN, _SCORES, _LOCK = "options.yaml", "run", "scores.json", ".lock"


class CellFolder:
    """A cell on the disk.

    Args:
        root: the folder of all cells.
        cell: the run.
    """

    def __init__(self, root: Path, cell: Cell) -> None:
        self.cell = cell
        self.root = root
        self.path = root / cell.name

    def notes(self) -> dict[str, Any]:
        """What is known of the run; nothing if it was never started.

        Raises:
            UserError: the folder is that of another run.
        """
        try:
            notes = json.loads((self.path / NOTES).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / NOTES} cannot be read; take the folder {self.path} away") from error
        if not isinstance(notes, dict) or notes.get("digest") != self.cell.digest:
            raise UserError(f"{self.path} is the folder of another run; take it away")
        return notes

    def result(self) -> dict[str, Any] | None:
        """The scores of a finished run (of a pre-training: facts about it), None before that."""
        result = self.notes().get("result")
        whole = self.cell.verb != "pretrain" or (self.path / _RUN / EXPORTED).is_file()
        return result if result is not None and whole else None

    def lock(self) -> int | None:
        """Take the folder for this process and those that it hands the descriptor to; None if others have it.

        The system gives it back when the last of them has ended, however it ends.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def command(self, devices: str, workers: int | None = None) -> list[str]:
        """The command of the run, as it is typed in its folder: places within the grid are relative."""
        cell = self.cell
        words = [sys.executable, "-m", "densepath", cell.verb, f"--data={cell.data}"]
        words += [] if cell.verb == "sam" else [f"--seed={cell.seed}"]
        words.append(f"--devices={'auto' if cell.verb == 'probe' and devices != 'cpu' else devices}")
        if cell.verb == "pretrain":
            words += [f"--config={_OPTIONS}"]
        else:
            weights = self._link() or cell.weights or os.path.join("..", cell.parent.name if cell.parent else "", _RUN)
            words += [f"--weights={weights}", *_words(cell.options)]
        if cell.verb == "probe":
            return [*words, f"--out={_SCORES}"]
        if cell.verb == "sam":
            return [*words, f"--out={_RUN}"]
        return [*words, f"--out={_RUN}", "--resume", *([] if workers is None else [f"--workers={workers}"])]

    def begin(self, command: list[str], hardware: str) -> None:
        """Write down what is going to run."""
        notes = self.notes()
        cell = self.cell
        notes |= {
            "digest": cell.digest,
            "identity": dict(cell.identity),
            "data": cell.data,
            "weights": cell.parent.name if cell.parent else cell.weights,
            "command": command,
            "densepath": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "hardware": hardware,
            "started": notes.get("started") or _now(),
        }
        notes.pop("error", None)
        if link := self._link():
            (self.path / link).unlink(missing_ok=True)
            (self.path / link).symlink_to(str(cell.weights))
        if cell.verb == "pretrain":
            with atomic_write(self.path / _OPTIONS) as part:
                part.write_text(yaml.safe_dump(dict(cell.options), sort_keys=False))
        self._write(notes)

    def _link(self) -> Path | None:
        """A link in the folder to weights elsewhere: a run that was stopped goes on when they have moved."""
        weights = Path(self.cell.weights or "")
        return Path(f"weights{weights.suffix}") if self.cell.weights and weights.exists() else None

    def pause(self, seconds: float, error: str | None = None) -> None:
        """Write down that the run has ended before its time, and how long it ran."""
        notes = self.notes()
        notes["seconds"] = notes.get("seconds", 0.0) + seconds
        if error:
            notes["error"] = error
        self._write(notes)

    def finish(self, seconds: float) -> dict[str, Any]:
        """Take the result of a run that has ended well.

        Raises:
            UserError: it has left none.
        """
        result = self._scores()
        notes = self.notes()
        notes |= {"seconds": notes.get("seconds", 0.0) + seconds, "finished": _now(), "result": result}
        self._write(notes)
        if self.cell.verb == "detect":
            shutil.rmtree(self.path / _RUN / CHECKPOINTS, ignore_errors=True)  # half a gigabyte for each detector
        return result

    def last_words(self) -> str:
        """The last line of the log, with the weights by the name that the user gave them."""
        try:
            lines = (self.path / LOG).read_text(errors="replace").splitlines()
        except OSError:
            return ""
        words = next((line for line in reversed(lines) if line.strip()), "").removeprefix("densepath: error: ")
        link = self._link()
        return words if link is None else words.replace(str(link), str(self.cell.weights))

    def _scores(self) -> dict[str, Any]:
        run = self.path / _RUN
        try:
            if self.cell.verb == "pretrain":
                last = read_metrics(run / "metrics.csv")[-1]
                (run / EXPORTED).stat()
                return {name: last[name] for name in ("step", "loss") if name in last}
            written = self.path / _SCORES if self.cell.verb == "probe" else run / "metrics.json"
            scores = json.loads(written.read_text())
            return {name: float(scores[name]) for name in METRICS[self.cell.verb] if scores.get(name) is not None}
        except (OSError, ValueError, IndexError, TypeError) as error:
            raise UserError(f"{self.path} holds no result ({error}); see {self.path / LOG}") from error

    def _write(self, notes: Mapping[str, Any]) -> None:
        with atomic_write(self.path / NOTES) as part:
            part.write_text(json.dumps(notes, indent=2) + "\n")


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as they are typed."""
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            words.append(f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
    return words


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
