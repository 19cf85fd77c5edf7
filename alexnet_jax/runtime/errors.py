"""What stops the program with one line instead of a traceback."""

import difflib
import os
import re
import signal
from collections.abc import Sequence


class InputError(Exception):
    """Something the user gave cannot work. The message is one line: what, where, what to do. Exit code 2."""


class UnreadableFiles(InputError):
    """Files of a data set are no pictures; `reasons` has why for each path, as `printable` shows it."""

    def __init__(self, reasons: dict[str, str]):
        """Take at least one file."""
        first, why = next(iter(reasons.items()))
        several = f"{len(reasons):,} files cannot be read as pictures, such as {first} ({why}); replace or"
        one = f"{first}: cannot be read as a picture ({why}); replace or remove it"
        super().__init__(one if len(reasons) == 1 else f"{several} remove them")
        self.reasons = reasons


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGINT came: exit code 128 and its number. It is no Exception: nothing takes it for one."""

    def __init__(self, number: int):
        """Take the signal's number."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class Diverged(Exception):
    """The loss, or a parameter, is no longer a finite number. Exit code 1."""


def first_line(error: Exception) -> str:
    """Return the first line of another's exception, for a line of ours; its kind if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def reason(error: Exception) -> str:
    """Return why a file could not be read, without its path: the system's words, or the first line."""
    return (isinstance(error, OSError) and error.strerror) or first_line(error)


def printable(path: str | os.PathLike) -> str:
    """Return a path on one line of UTF-8; bytes that are not UTF-8 and control characters become escapes."""
    text = os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def some(names: Sequence[str]) -> str:
    """Return up to three names, quoted, and the number of the others."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def nearest(field: str, known) -> str:
    """'; did you mean X?', or nothing."""
    last = field.rsplit(".", maxsplit=1)[-1]
    same_name = [name for name in known if name.split(".")[-1] == last]
    close = same_name or difflib.get_close_matches(field, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
