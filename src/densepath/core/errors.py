"""The one exception that the command line turns into a line for its user."""


class UserError(Exception):
    """Something that the user can mend: one line that says what is wrong and what to do."""
