"""A parser of options, from the command line or from a recipe, whose errors are one line each."""

from __future__ import annotations

import re
from argparse import Action, ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import docstring_parser
import yaml
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from densepath.core.errors import UserError
from densepath.core.yaml_files import is_old_number
from densepath.options import Option, as_yaml, choices_of, close_match, in_words, kind_of

_STEPS = ("max_steps", "steps", "num_steps", "max_iters", "iterations")  # where a verb counts epochs


class _Help(DefaultHelpFormatter):
    """The help as :meth:`Parser.add_options` wrote it, without Python's names of types."""

    def _get_help_string(self, action: Action) -> str:
        return super()._get_help_string(action) if action.dest == "help" else action.help or ""


class Parser(ArgumentParser):
    """A parser of options that reports errors as a :class:`UserError` of one line.

    Args:
        prog: the command, for the help.
        described: object whose docstring describes the command.
        positional: options that are given without their name, in this order; the last one may be a list of texts.
        complete: whether options without a default must be given.
        renamed: old name of an option -> its current name.
        short: short form of an option -> its name.
        shown: names of options -> the values that the help shows as defaults.
    """

    def __init__(
        self,
        prog: str,
        described: Any = None,
        positional: Sequence[str] = (),
        complete: bool = True,
        renamed: Mapping[str, str] | None = None,
        short: Mapping[str, str] | None = None,
        shown: Mapping[str, Any] | None = None,
    ) -> None:
        docstring = docstring_parser.parse(getattr(described, "__doc__", "") or "")
        paragraphs = [docstring.short_description, docstring.long_description]
        text = re.sub(r":\w+:|`", "", "\n\n".join(p for p in paragraphs if p))
        super().__init__(prog=prog, description=text, allow_abbrev=False, exit_on_error=False, formatter_class=_Help)
        self.options: dict[str, Option] = {}
        self._positional = positional
        self._complete = complete
        self._shown = shown or {}
        self.renamed = dict(renamed or {})
        self.read_before: tuple[str, ...] = ()  # options that are taken from the words before; only suggested
        self._forms = {f"--{form}": f"--{name}" for form, name in (short or {}).items()}

    def add_options(self, options: Iterable[Option], title: str | None = None, description: str | None = None) -> None:
        """Add options, in a group of their own in the help if there is a title."""
        group = self.add_argument_group(title, description) if title else self
        for option in options:
            self.options[option.key] = option
            forms = [form for form, name in self._forms.items() if name == f"--{option.key}"]
            text = f"{option.help} ({forms[0]} for short)" if forms else option.help
            given: dict[str, Any] = {}
            if option.key in self._shown or not option.required:
                given["default"] = self._shown.get(option.key, option.default)
            given["help"] = f"{text} {_notes(option, given)}".strip()
            if option.is_flag:
                given["action"] = ActionYesNo(yes_prefix="", no_prefix="no_")
            else:
                given["type"] = option.annotation
            if option.is_list:
                given["metavar"] = "VALUE ..."
            if option.key in self._positional:
                group.add_argument(option.key, **given)
            else:
                needed = "default" not in given and self._complete
                action = group.add_argument(f"--{option.key}", required=needed, **given)
                # Without jsonargparse's form --NAME+ of lists, which :meth:`read` does not take
                action.option_strings = [form for form in action.option_strings if not form.endswith("+")]
        required = [key for key, option in self.options.items() if option.required and key not in self._positional]
        named = [f"--{key} {key.upper()}" for key in required]
        places = [f"{key.upper()} ..." if self.options[key].is_list else key.upper() for key in self._positional]
        self.usage = " ".join([self.prog, *places, *named, "[options]"])

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """Read the words without checking values: option -> its text, or whether its flag is on.

        Raises:
            UserError: an option is unknown, its value is missing, or a flag has one.
        """
        named = {f"--{key}": option for key, option in self.options.items() if key not in self._positional}
        flags = {f"--no_{key}": key for key, option in self.options.items() if option.is_flag}
        switches = flags | {f"--{key}": key for key in flags.values()}
        given: dict[str, Any] = {}
        places: list[str] = []
        rest = list(words)
        while rest:
            name, equals, value = (word := rest.pop(0)).partition("=")
            name = self._forms.get(name, name)
            if not re.match(r"--?[a-zA-Z]", word):
                places.append(word)
            elif name in switches and (equals or (not self._positional and rest[:1] in (["true"], ["false"]))):
                raise UserError(f"{name} takes no value; give --{switches[name]} or --no_{switches[name]}")
            elif name in switches:
                given[switches[name]] = name not in flags
            elif name not in named:
                raise UserError(self.unknown(name, [*named, *flags, *self.read_before]))
            else:
                count = 0 if equals else next((i for i, w in enumerate(rest) if w.startswith("--")), len(rest))
                count = count if named[name].is_list else min(count, 1)
                if not (equals or count):
                    raise UserError(f"{name} needs a value; {self.see_help}")
                words_of = [value] if equals else rest[:count]
                only = words_of[0] if len(words_of) == 1 else None
                # A list as YAML, or a value that is not a list
                whole = only is not None and (only in ("null", *choices_of(named[name].annotation)) or _is_list(only))
                # Text is quoted: the name of a run folder may be 0, or contain a comma.
                if named[name].is_text_list and not (equals and whole):
                    words_of, whole = _quoted(name, words_of), False
                if named[name].is_open_list and not named[name].is_text_list and named[name].key in given:
                    raise UserError(f"{name} is given twice; give all its values after one")
                if named[name].is_text_list and not whole:
                    before = given.get(named[name].key, "")  # texts of a repeated option are added
                    words_of = [before[1:-1], *words_of] if before.startswith("[") and before != "[]" else words_of
                text = ", ".join(words_of)
                given[named[name].key] = f"[{text}]" if named[name].is_list and not whole else text
                rest = rest[count:]
        last = self.options.get(self._positional[-1]) if self._positional else None
        if last is not None and last.is_text_list and len(places) >= len(self._positional):
            count = len(self._positional) - 1
            places[count:] = [f"[{', '.join(_quoted(last.key, places[count:]))}]"]
        if len(places) > len(self._positional):
            raise UserError(f"unexpected argument {places[len(self._positional)]!r}; {self.see_help}")
        return given | dict(zip(self._positional, places, strict=False))

    def check(self, given: Mapping[str, Any], written: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
        """The values of all options in their types; parts are dictionaries.

        Args:
            given: option -> its value, or the text of it.
            written: option whose value is that of a YAML file -> its name there, for messages.

        Raises:
            UserError: an option is missing, a value has the wrong type, or a path is empty.
        """
        given = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in given.items()}
        missing = [
            key for key, option in self.options.items() if option.required and self._complete and key not in given
        ]
        if missing:
            names = [self._name(key) for key in missing]
            raise UserError(f"{' and '.join(names)} must be given; {self.see_help}")
        for key, value in given.items():
            option, text = self.options[key], value if isinstance(value, str) else ""
            old = option.is_number and any(map(is_old_number, re.split(r"[\s,\[\]{}]+", text)))
            if old or not option.takes(value) or (key in written and not option.takes_written(value)):
                raise UserError(self._wrong(key, given, written))
        words = [word for key in given if key not in self._positional for word in self.options[key].words(given[key])]
        try:
            values: dict[str, Any] = self.parse_args([*words, *(given[key] for key in self._positional)]).as_dict()
        except ArgumentError as error:
            raise UserError(self._explain(str(error), given, written)) from None
        for key in given:
            value = values.get(key)
            if self.options[key].is_number_or_list and isinstance(value, list | tuple) and len(value) == 1:
                values[key] = value[0]
            if self.options[key].is_path and "" in (given[key], *(value if isinstance(value, list | tuple) else ())):
                raise UserError(f"an empty path does not exist; give {written.get(key, self._name(key))} a path")
        return values

    def unknown(self, name: str, known: Sequence[str]) -> str:
        """The error message for an unknown option."""
        key = name.removeprefix("--")
        if key in self.renamed:
            return f"{name} is now --{self.renamed[key]}"
        if key in _STEPS and "--epochs" in known and "--max_steps" not in known:
            return f"unknown option {name}; {self.prog} counts epochs, so give --epochs"
        return f"unknown option {name}; {close_match(name, known) or self.see_help}"

    def _explain(self, message: str, given: Mapping[str, Any], written: Mapping[str, str]) -> str:
        match = re.match(r'(?:Parser key "|argument --)([\w.]+)', message)
        if match is None or match[1] not in self.options:
            return f"{message}; {self.see_help}"
        return self._wrong(match[1], given, written)

    def _wrong(self, key: str, given: Mapping[str, Any], written: Mapping[str, str]) -> str:
        """The error message for a value of the wrong type."""
        annotation = self.options[key].annotation
        value = given.get(key, "its default")
        shown = as_yaml(value) if key in written and not isinstance(value, str) else repr(value)
        name = written.get(key, self._name(key))
        hint = close_match(str(value), [c for c in choices_of(annotation) if isinstance(c, str)])
        option = self.options[key]
        may_be_text = option.is_text_list if isinstance(value, list) else option.is_text
        if key in written and may_be_text and not isinstance(value, str | Mapping):
            hint = "write it in quotes"
        if isinstance(value, str) and is_old_number(value):
            hint = "leave out zeros at its beginning, and colons"
        return f"{name} takes {in_words(annotation)}, not {shown}" + (f"; {hint}" if hint else "")

    def _name(self, key: str) -> str:
        """An option as the user writes it."""
        return key if key in self._positional else f"--{key}"

    @property
    def see_help(self) -> str:
        """A hint to the help of the command."""
        return f"see {self.prog} --help"


def _is_list(text: str) -> bool:
    """Whether a text is a list as YAML. A pattern of names may begin with a bracket, too."""
    try:
        return text.startswith("[") and isinstance(yaml.safe_load(text), list)
    except (yaml.YAMLError, ValueError, RecursionError):
        return False


def _quoted(name: str, texts: Sequence[str]) -> list[str]:
    """Texts as YAML.

    Raises:
        UserError: one is not UTF-8, and YAML has no such texts.
    """
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{name} takes texts in UTF-8, not {text}; rename the file or folder")
    return [*map(as_yaml, texts)]


def _notes(option: Option, given: Mapping[str, Any]) -> str:
    """What the help says of an option's values, in parentheses; empty if its description says all."""
    notes = ["required"] if "default" not in given else []
    if kind := "" if option.is_flag else kind_of(option.annotation):
        notes.append(kind)
    value = given.get("default")
    if value is True:
        notes.append("default: on")
    elif value is not None and value is not False and value not in ((), ""):
        notes.append(f"default: {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}")
    return f"({'; '.join(notes)})".replace("%", "%%") if notes else ""
