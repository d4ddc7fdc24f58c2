"""The folder of a run: its configuration, and whether a run may write into it."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from densepath.core.errors import UserError
from densepath.core.files import LOCK, atomic_write, require_new_folder
from densepath.core.keywords import quoted
from densepath.core.locks import sole_writer
from densepath.core.log import log, logged
from densepath.core.plain import plain
from densepath.core.records import CONFIG, TRAIN_LOG, recorded, same_value
from densepath.core.remains import remove, remove_remains
from densepath.core.streams import say
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint
from densepath.runs.metrics import METRICS
from densepath.runs.old_options import rename_record
from densepath.runs.signals import Interrupted, StopSignals

SESSIONS = "sessions.yaml"  # where and how the run was computed
EXPORTED = Path("exported") / "backbone.safetensors"  # of a run that is complete
BEST = EXPORTED.with_name("best.safetensors")  # with the lowest loss on held-out images, written during the run
KEPT = "backbone_epoch_"  # how the names of others beside it begin, which are written during the run
AT_STEP = "backbone_step_"  # and of those that are exported before the run is complete
VIEWS, CURVES = "views.png", "curves.png"
TILES = "tiles"  # the tiles of the slides that the run learns from, which may exist before it
NOT_FINITE = "not_finite.json"  # the step and the images of a loss of NaN or Inf
_ABSENT = object()
_SAVED = (".ckpt", ".safetensors", "answers.json", NOT_FINITE)  # ends of the names of what took time to compute
_EARLY = {LOCK, TRAIN_LOG, SESSIONS, VIEWS}  # files that are written before the first step
_LOGGERS = ("tensorboard", "wandb", "wandb_id.txt")
# What any run may write into its folder before it is complete
_MADE = (CONFIG, TRAIN_LOG, SESSIONS, VIEWS, METRICS, CHECKPOINTS, EXPORTED.parent.name, "pictures", *_LOGGERS)


def read_config(out: Path) -> dict[str, Any] | None:
    """The configuration of the run in a folder, with the current names of the options; None if there is no run.

    Raises:
        UserError: the configuration cannot be read.
    """
    return rename_record(recorded(out)) if (out / CONFIG).exists() else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str], prefix: str = "") -> list[str]:
    """The dotted names of options that differ between two configurations, except those in ``free``."""
    names: list[str] = []
    for key in sorted({*old, *new}):
        mine, other = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if prefix + key in free or same_value(prefix + key, mine, other):
            continue
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            names += differences(mine, other, free, f"{prefix}{key}.")
        else:
            names.append(prefix + key)
    return names


def check_run(
    out: Path,
    config: Mapping[str, Any],
    *,
    resume: bool,
    free: Collection[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any] | None:
    """The configuration of the run in a folder that is resumed; None if a new run can start there.

    Arguments and errors as for :func:`open_run`, but that another process may hold the folder. Nothing is written.
    """
    for stale in out.glob(f".{CONFIG}.*.part"):  # of a run that was killed right after its start
        stale.unlink(missing_ok=True)
    old = read_config(out)
    if old is None:
        if has_checkpoint(out / CHECKPOINTS):
            raise UserError(f"{out} has checkpoints but no {CONFIG}; restore that file, or name another folder")
        require_new_folder(out, "the run", but=(TILES,))
        return None
    refuse_other_run(out, resume)
    changed = changed_options(old, config, free, defaults)
    if changed:
        length = {"epochs", "max_steps"} & set(changed) & config.keys()  # another verb has no length
        raise UserError(
            f"the run in {out} was started with other values of {', '.join(changed)} (see {out / CONFIG}); "
            f"resume it with those, or {train_longer(out, old) if length else 'name another folder'}"
        )
    return old


def refuse_other_run(out: Path, resume: bool) -> None:
    """Raise UserError unless the run in a folder is to be resumed."""
    if not resume:
        raise UserError(f"{out} already holds a run; name another folder, or continue that run with --resume")


def changed_options(
    old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str], defaults: Mapping[str, Any]
) -> list[str]:
    """The dotted names of options that two configurations set to other values. Arguments as for :func:`open_run`."""
    return differences(_completed(old, plain(defaults)), plain(new), free)


def train_longer(out: Path, config: Mapping[str, Any]) -> str:
    """How to train longer than a run with these options was planned for: its schedule cannot change."""
    if "method" not in config:  # a detector or a classifier, whose heads no run starts with
        length = "max_steps" if "max_steps" in config else "epochs"
        return f"train longer in another folder, from the start: --{length} N --out {quoted(f'{out}_2')}"
    return f"train longer in another folder, from its weights: {from_weights(out)}"


def from_weights(out: Path) -> str:
    """The options of another run that starts with the weights of a run."""
    return f"--weights {quoted(out)} --out {quoted(f'{out}_2')}"


@contextmanager
def open_run(
    out: Path,
    config: Mapping[str, Any],
    *,
    resume: bool,
    free: Collection[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
    note: str = "",
    made: Collection[str] = (),
) -> Iterator[Path]:
    """Create the folder of a new run, or open that of a run to resume. Only one process of a run calls this.

    The folder is locked: a second run is refused. What is printed in this block is also appended to ``train.log``.

    The folder of a new run is removed if the run fails before it has written anything, by an error that the user can
    fix before its first checkpoint or weights, or by a signal before these and its first measurements. Files that
    somebody else has put there are left.

    Args:
        out: the folder.
        config: the options of the run, in the plain types of YAML.
        resume: resume the run in the folder; if there is none, start one.
        free: dotted names of options in ``config`` that may change when a run is resumed.
        defaults: values of options that did not exist in the version that started the run.
        note: a comment at the top of ``config.yaml``.
        made: patterns of names in the folder that only such a run writes before it is complete.

    Raises:
        UserError: the folder holds another run, or something else, or another process writes to it.
    """
    if not out.is_dir():
        require_new_folder(out, "the run")
    with sole_writer(out):
        old = check_run(out, config, resume=resume, free=free, defaults=defaults)
        if old is None:
            with atomic_write(out / CONFIG) as part:
                head = f"# {note}\n" if note else ""
                part.write_text(head + yaml.safe_dump(plain(config), sort_keys=False))
        remove_remains(out)
        with logged(out / TRAIN_LOG):
            try:
                yield out
            except BaseException as error:
                _log_error(error)
                files = _files_of(out) - _EARLY
                by_user = isinstance(error, UserError)
                saved = any(name.endswith(_SAVED if by_user else (*_SAVED, METRICS)) for name in files)
                ended = by_user or isinstance(error, SystemExit | KeyboardInterrupt)
                _say_how_to_continue(error, out, files)
                if old is None and (files == {CONFIG} or (ended and not saved)):
                    _remove_made(out, (*_MADE, *made))
                raise


def _files_of(out: Path) -> set[str]:
    """The names of the files in a run folder, except tiles."""
    paths = [path for path in out.iterdir() if path.name != TILES]
    return {path.name for top in paths for path in (top, *top.rglob("*")) if path.is_file()}


def _remove_made(out: Path, made: Collection[str]) -> None:
    """Remove what a run has written: the lock, and the folder if it is empty then, are removed by their owner.

    ``config.yaml`` stays if files of others do: without it the same command, with --resume, would not take the folder.
    """
    paths = list(out.iterdir())
    own = [path for path in paths if any(fnmatchcase(path.name, pattern) for pattern in made)]
    alone = {path.name for path in paths} <= {path.name for path in own} | {LOCK, TILES}
    for path in own:
        if alone or path.name != CONFIG:
            with suppress(OSError):
                remove(path)


def stopped_early(out: Path) -> str:
    """The line of a run that was stopped before anything was saved: its folder may have been removed."""
    how = "; the same command with --resume starts it again" if StopSignals.resumable else ""
    return f"densepath: stopped before anything was saved in {out}{how}"


def _say_how_to_continue(error: BaseException, out: Path, files: Collection[str]) -> None:
    """For a run that ends outside its training, which says so itself: by a signal, or a full disk."""
    how = f"the same command with --resume continues {out}"
    checkpoint = any(name.endswith(".ckpt") for name in files)
    if isinstance(error, SystemExit | KeyboardInterrupt):
        if isinstance(error, Interrupted):
            return
        if not any(name.endswith(_SAVED) for name in files):
            say(stopped_early(out))
        elif StopSignals.resumable:
            say(f"densepath: stopped; {how}{' from its newest checkpoint' * checkpoint}")
    elif checkpoint and isinstance(error, UserError) and isinstance(error.__cause__, OSError):
        error.remedy = error.remedy if "--resume" in str(error) else f"; the run is saved: {how}"


def _log_error(error: BaseException) -> None:
    if isinstance(error, UserError):
        log(f"densepath: error: {error}")
    elif isinstance(error, Exception):
        log("".join(traceback.format_exception(error)).rstrip())


def _completed(old: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, completed with the defaults of missing options, part by part."""
    completed = {**defaults, **old}
    for name, value in old.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping):
            completed[name] = _completed(value, defaults[name])
    return completed
