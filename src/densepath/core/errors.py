"""The exception that the command line prints as one line for its user, and the words of such lines."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

# What torch, C++ libraries and the loader of shared libraries say
_NO_MEMORY = ("DefaultCPUAllocator", "std::bad_alloc", "failed to map segment", "Cannot allocate memory")
_NO_THREAD = "can't start new thread"
GUARD = 'put what the script runs below if __name__ == "__main__":'
# What torch, NumPy, Pillow and Python say of a number that they cannot hold, or of a size that no memory can have
_TOO_LARGE = (
    "Storage size calculation overflowed",
    "Overflow when unpacking long",
    "array is too big",
    "Maximum allowed dimension exceeded",
    "Maximum allowed size exceeded",
    "integer is greater than maximum",
    "too large to convert to C",
    "int too big to convert",
)


class UserError(Exception):
    """An error that the user can fix: one line that says what is wrong and what to do."""

    remedy = ""  # what the command line adds to the line

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """A text with its control characters escaped: file names and names in files may contain them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unwrapped(text: str) -> str:
    """A text of several lines as one line. Its other blanks stay: names of files may contain them."""
    return one_line(re.sub(r"\s*\n\s*", " ", text.strip("\n")))


def suggest(name: str, known: Iterable[str]) -> str:
    """A question that lists the most similar known names, or all of them if none is similar."""
    names = list(known)
    close = get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(names)}"


def first_few(names: Sequence[str], count: int = 3, separator: str = ", ") -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return separator.join(names[:count]) + more


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number of things: "1 image", "2 images"; ``many`` where it is not ``one`` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def that_or_these(names: Sequence[str]) -> str:
    """The pronoun for what was named: "that" for one, "these" for several."""
    return "that" if len(names) == 1 else "these"


def fault_of(error: Exception) -> str:
    """What a reader of a table or of JSON missed, in words of users: a key, or values of another form."""
    if isinstance(error, KeyError):
        return f"it has no {str(error.args[0])!r}"
    return str(error) if isinstance(error, ValueError | OSError) else "its values have another form"


def refuse(cases: Sequence[str], what: str, remedy: str) -> None:
    """Raise a UserError that names the first cases, if there are any."""
    if cases:
        raise UserError(f"{what}: {first_few(cases)}; {remedy}")


def shortage(error: BaseException) -> str:
    """What the machine or its device lacked if that raised an error: "memory", or "threads"; empty for other errors."""
    text = str(error)
    of_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    of_device = type(error).__name__ == "OutOfMemoryError"  # of torch, which is imported late
    if isinstance(error, MemoryError) or of_system or of_device or any(sign in text for sign in _NO_MEMORY):
        return "memory"
    return "threads" if _NO_THREAD in text else ""


def is_too_large(error: BaseException) -> bool:
    """Whether a number does not fit into those of a machine, or into its memory as a size. Damaged files may have such
    numbers, too."""
    return any(sign in str(error) for sign in _TOO_LARGE)


@contextmanager
def errors_as(refusal: Callable[[Exception], UserError]) -> Iterator[None]:
    """Raise another error for what a reader raises, which on damaged content is nearly any type.

    A UserError passes as it is, and so does what a lack of memory or of threads raises.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or shortage(error):
            raise
        raise refusal(error) from error
