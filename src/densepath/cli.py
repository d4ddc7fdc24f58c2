"""The command line: calls the function of a verb, and turns every error into a line and an exit code."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from densepath.core import system
from densepath.core.errors import UserError, is_too_large, one_line, shortage, unwrapped
from densepath.core.keywords import quoted
from densepath.core.signals import unwinding_on_signals
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import flush_streams, open_streams, write_line, write_result
from densepath.options import close_match
from densepath.verbs import NEXT, SCORED, SHARED, VERBS
from densepath.version import __version__

EXIT_BUG, EXIT_USER, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141
_OPTIONS = ("--help", "--version", "--print_completion")  # that are given instead of a verb
_OF_MEMORY = ("batch_size", "view_size", "train_size", "size")  # options on which the memory of a device depends


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 2 for errors that the user can fix; 130 when interrupted; 1 for a bug.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _wait_shortly()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged files are reported in a line that names them
    open_streams()
    try:
        with unwinding_on_signals():
            return _checked(argv)
    finally:
        flush_streams()


def _wait_shortly() -> None:
    """Let the threads of torch, which is not loaded yet, sleep at a barrier after about a millisecond.

    By default they keep their cores busy for 20 or 200 ms (libgomp, Intel's OpenMP), even if a thread that they wait
    for cannot run because other programs have its core.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        os.environ.setdefault("KMP_BLOCKTIME", "1")


def _checked(argv: list[str]) -> int:
    """Run the command line; every error becomes a line and an exit code."""
    try:
        _run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except UserError as error:
        return _fail(f"{error}{error.remedy}")
    except SystemExit as stop:
        # Python 3.14 would show the traceback of one that is a KeyboardInterrupt as well.
        raise SystemExit(stop.code) from None
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except RecursionError:
        return _fail("folders, or values in a file, are nested too deeply; flatten them")
    except BrokenPipeError:
        # Otherwise Python reports on exit that it cannot flush to a closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        return _fail(f"{one_line(str(error.filename))}: {reason}" if error.filename else reason)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            return _fail(f"the device has not enough memory; {_less_memory(argv)}")
        if (lacking := shortage(error)) == "memory":
            return _fail(f"this machine has not enough memory; {_less_memory(argv, 'workers')}")
        if is_too_large(error):
            return _fail(f"a number is too large for any machine ({one_line(str(error))}); look at the options")
        if lacking == "threads":
            return _fail("no more threads can be started; raise the limit on processes or on memory (see ulimit -a)")
        write_line("".join(traceback.format_exception(error)).rstrip(), sys.stderr)
        if place := _of_method(error):
            return _fail(f"{type(error).__name__} in the method of {place}: {error}; correct it, see the lines above")
        command = one_line(shlex.join(["densepath", *argv]))
        return _fail(
            f"this is a bug in densepath {__version__}; please report the lines above and: {command}", EXIT_BUG
        )


def _of_method(error: BaseException) -> str:
    """The file and line of a user's own method that raised an error; empty if it was raised elsewhere.

    What libraries raise counts where they are called.
    """
    import sysconfig

    base = getattr(sys.modules.get("densepath.methods.base"), "Method", None)
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if Path(file).is_relative_to(Path(__file__).parent):
            return ""
        if file.startswith("<") or any(Path(file).is_relative_to(folder) for folder in libraries):
            continue
        held = [value for value in frame.f_globals.values() if isinstance(value, type)]
        if base is not None and any(issubclass(each, base) for each in held):
            return f"{file}, line {line}"
    return ""


def _less_memory(argv: list[str], *more: str) -> str:
    """What a user can do if memory is short: the options that the verb has for it."""
    try:
        name, _ = _find_verb(argv)
        known = VERBS[name].command(name).options() if name else {}
    except Exception:  # its module may not fit into memory either
        known = {}
    options = [f"--{option}" for option in (*_OF_MEMORY, *more) if option in known]
    return f"lower {' or '.join(options)}" if options else "end other programs, or raise the limit (see ulimit -a)"


def _fail(message: str, code: int = EXIT_USER) -> int:
    write_line(f"densepath: error: {unwrapped(message)}", sys.stderr)
    return code


def _run(argv: list[str]) -> None:
    if argv[:1] == ["--version"]:
        print(f"densepath {__version__}")
        return
    if sys.platform == "win32":
        raise UserError("densepath needs the locks and signals of Linux or macOS; on Windows, install it in WSL 2")
    if argv and argv[0] == "--print_completion":
        from densepath.completion import completion

        print(completion({name: (verb.help, verb.command(name)) for name, verb in VERBS.items()}, argv[1:]))
        return
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return
    name, words = _find_verb(argv)
    if name is None:
        print(_overview(argv[0]))
        return
    command = VERBS[name].command(name)
    if "-h" in words or "--help" in words:
        print(command.help(words))
    elif command.recipes is not None and "--print_config" in words:
        print(command.configuration(words), end="")
    else:
        watch = Stopwatch()
        system.is_command = True
        _report(name, command.run(words), watch)


def _find_verb(argv: list[str]) -> tuple[str | None, list[str]]:
    """The verb at the beginning of the words, and the other words; None for a group of verbs such as ``data``."""
    for length in (1, 2):
        name = " ".join(argv[:length])
        if name in VERBS:
            return name, argv[length:]
    group = [verb for verb in VERBS if verb.startswith(f"{argv[0]} ")]
    if group and (len(argv) == 1 or argv[1] in ("-h", "--help")):
        return None, []
    known = group or list(dict.fromkeys(verb.split()[0] for verb in VERBS))
    wrong = argv[: 2 if group else 1]
    if wrong[-1].startswith("-") and not group:
        raise UserError(f"unknown option {wrong[0]}; {close_match(wrong[0], _OPTIONS) or 'see densepath --help'}")
    # The names of a group are compared without what all begin with.
    hint = close_match(wrong[-1], [verb.split()[-1] for verb in known])
    hint = hint.replace("did you mean ", f"did you mean {argv[0]} ") if group else hint
    raise UserError(f"unknown verb {' '.join(wrong)!r}; {hint or 'there are: ' + ', '.join(known)}")


def _overview(group: str = "") -> str:
    """The list of all verbs, or of a group, with a line for each."""
    verbs = {name: verb for name, verb in VERBS.items() if name.startswith(group)}
    width = max(map(len, verbs)) + 2
    return "\n".join(
        [
            f"usage: densepath {group or 'VERB'} ...",
            "",
            "Learn visual features from unlabelled medical images, and transfer them to tasks with few labels.",
            "",
            *(f"  {name:{width}}{verb.help}" for name, verb in verbs.items()),
            "",
            "densepath VERB --help explains a verb and its options (--help all: all of them).",
            "densepath --version prints the version, densepath --print_completion bash|zsh|tcsh completion.",
        ]
    )


def _report(verb: str, result: Any, watch: Stopwatch) -> None:
    """Print the result of a verb: scores as a table, a path as it is. If processes share the work, the first prints.

    A closed output is ignored, and so is a full disk where a file holds the scores.
    """
    if verb in SHARED and not system.first_of_job():
        return
    if isinstance(result, dict) or (isinstance(result, Mapping) and verb in SCORED):
        write: Callable[[str], Any] = write_result
        if getattr(result, "out", None) is not None:
            write = partial(write_line, stream=sys.stdout)
        width = max([24, *(len(name) + 2 for name in result)])
        for name, value in result.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            write(f"{name:{width}}{shown}")
    elif isinstance(result, os.PathLike):
        write_line(os.fspath(result), sys.stdout)
        if verb in NEXT and not (verb == "embed" and os.path.isdir(result)):  # of slides, which it has named itself
            from densepath.core.closing import say_end

            say_end(watch, "", {}, (NEXT[verb].format(quoted(result)),))
