"""What stops the program with one line instead of a traceback."""

import difflib


class InputError(Exception):
    """Something the user gave cannot work. The message is one line: what, where, what to do. Exit code 2."""


class Diverged(Exception):
    """The loss, or a parameter, is no longer a finite number. Exit code 1."""


def first_line(error: Exception) -> str:
    """Return the first line of another's exception, for a line of ours; its kind if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def nearest(field: str, known) -> str:
    """'; did you mean X?', or nothing."""
    last = field.rsplit(".", maxsplit=1)[-1]
    same_name = [name for name in known if name.split(".")[-1] == last]
    close = same_name or difflib.get_close_matches(field, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
