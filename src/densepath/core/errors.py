"""The one exception that the command line turns into a line for its user."""


class UserError(Exception):
    """Something that the user can mend: one line that says what is wrong and what to do."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """A text whose control characters, which names in files may hold, are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
