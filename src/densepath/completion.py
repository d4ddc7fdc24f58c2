"""Completion of the command line in a shell, by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from densepath.command import Command
from densepath.core.errors import UserError, suggest
from densepath.methods import METHODS
from densepath.options import Option, choices_of
from densepath.training.recipes import recipe_names
from densepath.training.resolve import method_of

# How to enable it, as a comment at the top of the script.
_USE = {
    "bash": "densepath --print_completion bash > ~/.local/share/bash-completion/completions/densepath",
    "zsh": "densepath --print_completion zsh > _densepath, in a folder of $fpath",
    "tcsh": "source the file in ~/.cshrc",
}


def completion(verbs: Mapping[str, tuple[str, Command]], words: Sequence[str]) -> str:
    """A script that lets a shell complete verbs, options, choices and paths.

    Args:
        verbs: verb, e.g. "data glas" -> a line on what it does, and its options.
        words: the shell: "bash", "zsh" or "tcsh".

    Raises:
        UserError: no such shell, or shtab is not installed.
    """
    if len(words) != 1 or words[0] not in _USE:
        raise UserError(f"--print_completion takes a shell; {suggest(' '.join(words), _USE)}")
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion needs shtab; pip install 'densepath[completion]'") from error
    main = argparse.ArgumentParser("densepath")
    main.add_argument("--version", action="store_true", help="print the version")
    groups: dict[str, Any] = {"": main.add_subparsers()}
    for name, (line, command) in verbs.items():
        group, _, verb = name.rpartition(" ")
        if group not in groups:
            groups[group] = groups[""].add_parser(group, help=f"{group} ...").add_subparsers()
        _add_options(groups[group].add_parser(verb, help=line), command, shtab.FILE)
    script: str = shtab.complete(main, shell=words[0])
    return f"# {_USE[words[0]]}\n{script}"


def _add_options(parser: argparse.ArgumentParser, command: Command, file: Any) -> None:
    """Add the options of a verb, and those of all methods if it takes one."""
    options: dict[str, Option] = {}
    for method in METHODS if method_of(command.schema, {}) else [None]:
        options |= command.options(method)
    for key, option in options.items():
        name = key if key in command.positional else f"--{key}"
        text = option.help.replace("%", "%%")  # argparse formats it, in Python 3.14 to check it
        if option.is_flag:
            parser.add_argument(name, f"--no_{key}", action="store_true", help=text)
            continue
        choices = list(METHODS) if key == "method" else recipe_names(command.recipes or "") if key == "config" else None
        choices = choices or [str(choice) for choice in choices_of(option.annotation)] or None
        given: dict[str, Any] = {"nargs": "*"} if option.is_list else {}
        action: Any = parser.add_argument(name, help=text, choices=choices, **given)
        if Path in (option.annotation, *get_args(option.annotation)):
            action.complete = file
